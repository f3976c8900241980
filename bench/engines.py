"""Requests to one engine, in a process of their own: what bench/ttft.py starts.

Standard input is a JSON of the arguments of `answers`, standard output one of an `Answer` a prompt. Before the clock
starts the model is loaded and has answered another prompt.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

LAYOUTS = {"ds4kv raw": "v1", "ds4kv v2": "v2", "ds4kv checked": "v2-checked", "ds4kv packed": "packed"}
LEVELS = {"ds4kv checked": 0}
OTHER_PROMPT = 300
CPUS = len(os.sched_getaffinity(0))


@dataclass
class Answer:
    """What became of a prompt; seconds."""

    ready: float = 0.0
    """Until the engine began to compute: what was in the cache is in the model."""
    first: float = 0.0
    """Until it had its first token."""
    computed: int = 0
    """Tokens of the prompt that it had to compute."""
    held: float = 0.0
    """Of the request, what the cache took after the last token."""
    kept: float = 0.0
    """From the last token until the state was where another process finds it."""
    request: float = 0.0
    """Until the answer was given back."""
    whole: float = 0.0
    """Until the state was where another process finds it."""
    bytes: int = 0
    """What the cache holds then, on disk or in memory."""
    tokens: list[int] = field(default_factory=list)


def disk_bytes(directory: str) -> int:
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(directory) for name in names)


class LlamaCpp:
    """llama-cpp-python; prompts are evaluated by 512 tokens."""

    def __init__(self, model: str, ctx_size: int) -> None:
        from llama_cpp import Llama

        self._llm = Llama(
            model, n_ctx=ctx_size, n_batch=512, n_threads=CPUS, n_threads_batch=CPUS, seed=1, verbose=False
        )
        self._cache: Any = None
        self._finish: Callable[[], object] = lambda: None
        self._memory: Callable[[], int] | None = None
        self._directory = ""

    def warm_up(self, ids: list[int]) -> None:
        self._llm.create_completion(ids, max_tokens=2, temperature=0.0)
        self.forget()

    def forget(self) -> None:
        """The state of the last request, which the engine would go on with by itself."""
        self._llm._ctx.kv_cache_clear()
        self._llm.reset()

    def use(self, way: str, directory: str, shared: dict[str, Any]) -> None:
        """Gives it a cache; ``shared`` is what the engines of one process have in common."""
        import llama_cpp

        self._directory = directory
        if way == "no cache":
            return
        if way == "LlamaRAMCache":
            cache = shared.setdefault("ram", llama_cpp.LlamaRAMCache(capacity_bytes=4 << 30))
            self._memory = lambda: sum(
                state.llama_state_size + state.scores.nbytes for state in cache.cache_state.values()
            )
            self._llm.set_cache(cache)
        elif way == "LlamaDiskCache":
            self._llm.set_cache(llama_cpp.LlamaDiskCache(directory, capacity_bytes=4 << 30))
        else:
            from ds4kv.engines import llama_cpp as adapter

            if way.endswith(" Cache"):
                cache = adapter.Cache(directory, self._llm, layout="v1", level=None)
                self._llm.set_cache(cache)
            else:
                cache = adapter.attach(self._llm, directory, layout=LAYOUTS[way], level=LEVELS.get(way))
            self._finish = cache.close

    def ask(self, ids: list[int], answer_tokens: int) -> Answer:
        answer = Answer()
        eval_, sample = self._llm.eval, self._llm.sample
        times: list[float] = []

        def timed_eval(tokens: list[int]) -> None:
            if not answer.ready:
                answer.ready, answer.computed = time.perf_counter() - start, len(tokens)
            eval_(tokens)

        def timed_sample(*args: Any, **kwargs: Any) -> int:
            token = sample(*args, **kwargs)
            times.append(time.perf_counter() - start)
            answer.tokens.append(int(token))
            return token

        self._llm.eval, self._llm.sample = timed_eval, timed_sample
        try:
            start = time.perf_counter()
            with hushed():
                self._llm.create_completion(ids, max_tokens=answer_tokens, temperature=0.0)
            answer.request = time.perf_counter() - start
            self._finish()
            answer.whole = time.perf_counter() - start
        finally:
            del self._llm.eval, self._llm.sample
        answer.first, last = times[0], times[-1]
        answer.held, answer.kept = answer.request - last, answer.whole - last
        answer.bytes = self._memory() if self._memory else disk_bytes(self._directory)
        return answer

    def close(self) -> None:
        self._llm.close()


class Transformers:
    """transformers, by hand: the prefill, then a token at a time, the likeliest."""

    def __init__(self, model: str, ctx_size: int, dtype: str = "float32") -> None:
        import torch
        import transformers

        torch.set_grad_enabled(False)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self._cache: Any = None
        self._directory = ""

    def warm_up(self, ids: list[int]) -> None:
        self.ask(ids, 2)

    def forget(self) -> None:
        """Nothing: without a cache each request begins anew."""

    def use(self, way: str, directory: str, shared: dict[str, Any]) -> None:
        self._directory = directory
        if way != "no cache":
            from ds4kv.engines import transformers as adapter

            self._cache = adapter.PrefixCache(directory, self._model, layout=LAYOUTS[way], level=LEVELS.get(way))

    def ask(self, ids: list[int], answer_tokens: int) -> Answer:
        import torch

        answer, prompt = Answer(), torch.tensor([ids])
        start = time.perf_counter()
        past, found = (None, 0) if self._cache is None else self._cache.load(prompt)
        answer.ready, answer.computed = time.perf_counter() - start, len(ids) - found
        out = self._model(prompt[:, found:], past_key_values=past, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        answer.tokens.append(int(token))
        answer.first = time.perf_counter() - start
        begun = time.perf_counter()
        if self._cache is not None:
            self._cache.save(prompt, out.past_key_values)
            answer.held = time.perf_counter() - begun
            self._cache.close()
            answer.kept = time.perf_counter() - begun
        while len(answer.tokens) < answer_tokens:
            out = self._model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            answer.tokens.append(int(token))
        answer.request = answer.whole = time.perf_counter() - start
        answer.bytes = disk_bytes(self._directory)
        return answer

    def close(self) -> None: ...


ENGINES = {
    "llama.cpp": LlamaCpp,
    "transformers": Transformers,
    "transformers bf16": partial(Transformers, dtype="bfloat16"),
}


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """LlamaDiskCache tells on standard error what it does."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def answers(
    engine: str, model: str, way: str, directory: str, prompts: list[list[int]], *, ctx_size: int, answer_tokens: int
) -> list[Answer]:
    """One answer a prompt; each prompt has a fresh engine."""
    given, shared = [], {}
    for ids in prompts:
        running = ENGINES[engine](model, ctx_size)
        running.warm_up([1 + number % 200 for number in range(OTHER_PROMPT)])
        running.use(way, directory, shared)
        given.append(running.ask(ids, answer_tokens))
        running.close()
    return given


if __name__ == "__main__":
    print(json.dumps([asdict(answer) for answer in answers(**json.load(sys.stdin))]))
