"""A process with a llama.cpp engine and a cache, for tests: ``llama_worker.py MODEL DIRECTORY N``.

Each line of its standard input is a prompt, as token ids in JSON. It prints the text of N tokens after it, and how many
tokens came from the disk, as JSON.
"""

from __future__ import annotations

import json
import sys

import llama_cpp

from ds4kv.engines.llama_cpp import attach


def main(model: str, directory: str, count: str) -> None:
    llm = llama_cpp.Llama(model, n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    with attach(llm, directory) as cache:
        print("ready", flush=True)
        for line in sys.stdin:
            answer = llm.create_completion(json.loads(line), max_tokens=int(count), temperature=0, repeat_penalty=1.0)
            print(json.dumps([answer["choices"][0]["text"], cache.restored]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
