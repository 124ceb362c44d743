"""Short rows against rows of the target's length on a GPU: time and memory, measured and planned.

    python benchmarks/gpu_cost.py [MODEL] [--shape llama-1b] [--to 64k] [--cases endprompt:8k,...]

A case is a recipe, the tokens of its row, and rows of a step, all in one pass (1 without). Each
runs `endprompt.train.run` on real rows in a process of its own; the first two steps are left out.
Weights don't change the time, so that `--shape` makes a random model of that shape with MODEL's
tokenizer. Beside each case stands what `endprompt plan` says of the GPU, and beside the ratios
those of the paper's figure 4.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import train_step
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from endprompt import recipe as recipes
from endprompt import rope, units
from endprompt.cost import flops, plan
from endprompt.cost.memory import train_memory_bytes
from endprompt.io import files, provenance
from endprompt.models import checkpoint as models
from endprompt.models import embedded
from endprompt.train.run import train

RESULTS = Path(__file__).parent / "results" / "gpu_cost.json"
CASES = "endprompt:1k,endprompt:1k:32,endprompt:8k,endprompt:8k:4,full:16k,full:32k,full:64k"
STEPS = 5
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
}  # fmt: skip


class Watch(TrainerCallback):
    """The clock around every step, all work of the GPU done; ends the run without saving."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The first step begins."""
        if not self.marks:
            self._mark()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step ends."""
        self._mark()
        if len(self.marks) > STEPS:
            raise train_step.Enough

    def _mark(self) -> None:
        torch.cuda.synchronize()
        self.marks.append(time.perf_counter())


def random_model(shape: str, tokenizer: Any, folder: Path) -> str:
    """A random Llama of a shape, saved with a tokenizer."""
    with torch.device("cuda"):
        network = LlamaForCausalLM(LlamaConfig(**SHAPES[shape]))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(case: str, model: str, target: int) -> dict[str, Any]:
    """Milliseconds a token and peak memory of one case in this process, and the plan's."""
    method, size, *more = case.split(":")
    tokens, rows = units.tokens(size), int(more[0]) if more else 1
    recipe = recipes.load(method).replace(
        {"rows.tokens": tokens, "training.tokens_per_step": rows * tokens,
         "training.tokens": (STEPS + 1) * rows * tokens, "training.save_steps": 10**6}
    )  # fmt: skip
    config = models.load_config(model)
    recipe = recipe.resolve(window=rope.read_base(config).window, target=target, gpu=True)
    watch = Watch()
    tokenizer = models.load_tokenizer(model)
    text = train_step.documents(tokenizer, tokens)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(train_step.Enough):
        train(recipe, model=model, documents=text, target=target, out=Path(folder),
              callbacks=[watch])  # fmt: skip
    free, whole = torch.cuda.mem_get_info()  # the allocator keeps what it had at the peak
    held = whole - free
    seconds = [later - before for before, later in itertools.pairwise(watch.marks)][2:]
    decoder = flops.read(config)
    where = _machine()
    training = recipe.training
    planned = plan.train_seconds(recipe, decoder, where) / recipe.amounts.rows
    memory = train_memory_bytes(
        decoder,
        row_tokens=tokens,
        rows_at_once=rows,
        **recipe.memory(),
        runtime=where.device.runtime_bytes,
    ).total
    best = min(seconds) / rows
    return {
        "method": method,
        "row_tokens": tokens,
        "rows_per_step": rows,
        "checkpointing": bool(training.gradient_checkpointing),
        "seconds": [round(each, 4) for each in seconds],
        "ms_per_token": 1e3 * best / tokens,
        "memory_bytes": held,
        "share_of_peak": flops.row(recipe, decoder, False).total / best / where.device.peak,
        "planned_ms_per_token": 1e3 * planned / tokens,
        "planned_memory_bytes": memory,
        "time_error": planned / best - 1,
        "memory_error": memory / held - 1,
    }


def _machine() -> plan.Machine:
    name = torch.cuda.get_device_name().lower()
    known = next(key for key in plan.DEVICES if key.split("-")[0] in name)
    return plan.machine(known)


def main() -> None:
    """Measure every case, print them and the ratios, write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", nargs="?", help="folder, hub name or GGUF; default: embedded")
    parser.add_argument("--shape", choices=SHAPES, help="a random model of this shape")
    parser.add_argument("--to", default="64k")
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.model, units.tokens(given.to))))
        return
    if not torch.cuda.is_available():
        raise SystemExit("no GPU: benchmarks/cost.py measures on a CPU")
    model = embedded.resolve(given.model)
    with tempfile.TemporaryDirectory() as folder:
        if given.shape:
            model = random_model(given.shape, models.load_tokenizer(model), Path(folder))
        rows = []
        for case in given.cases.split(","):
            began = time.perf_counter()
            try:
                rows.append(train_step.child(__file__, [model, "--one", case, "--to", given.to]))
            except SystemExit as error:
                print(f"{case}: {error}", flush=True)
                continue
            row = rows[-1]
            print(
                f"{row['method']:10} {row['rows_per_step']:2} x {row['row_tokens']:6,} tokens: "
                f"{row['ms_per_token']:.4f} ms a token (planned {row['time_error']:+.0%}), "
                f"{row['memory_bytes'] / 2**30:.2f} GiB (planned {row['memory_error']:+.0%}), "
                f"{row['share_of_peak']:.0%} of the peak; "
                f"{time.perf_counter() - began:.0f} s",
                flush=True,
            )
            write(given.out, given.shape or Path(model).name, given.to, rows)
    for one in ratios(rows):
        print("{what}: time {time:.2f} (paper {paper_time}), memory {memory:.2f}".format(**one))


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every other case over every case of `endprompt`."""
    short = [row for row in rows if row["method"] == "endprompt"]
    return [
        {
            "what": f"{row['method']} at {row['row_tokens']:,} / endprompt at "
            f"{base['rows_per_step']} x {base['row_tokens']:,}",
            "time": row["ms_per_token"] / base["ms_per_token"],
            "memory": row["memory_bytes"] / base["memory_bytes"],
            "paper_time": plan.PAPER["speedup"].get(row["method"]),
        }
        for row in rows
        if row["method"] != "endprompt"
        for base in short
    ]


def write(out: Path, name: str, target: str, rows: list[dict[str, Any]]) -> None:
    """The record of what was measured so far."""
    everything = json.loads(out.read_text()) if out.is_file() else {}
    found = {"to": target, "rows": rows, "ratios": ratios(rows)}
    everything[name] = {**provenance.provenance(), **found}
    files.write_json(out, everything)


if __name__ == "__main__":
    main()
