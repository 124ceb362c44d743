"""Short rows against rows of the target's length: time and memory a token, measured and predicted.

    python benchmarks/cost.py [MODEL] [--cases endprompt:1024:3,full:8192:1,...] [--out FILE]

A case is a recipe, tokens of its row and steps; each runs `endprompt.train.run` in a process of its
own, one row a step, one thread, seconds of the processor (see train_step.py). The first of several
steps is left out. Beside each stands what `endprompt plan` predicts from a matmul timed in
the same process and from attention timed once, and beside the ratios those of the paper's figure 4.
A case that is in FILE already is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import train_step

from endprompt import recipe as recipes
from endprompt import rope
from endprompt.cost import flops, plan
from endprompt.cost.memory import GIB, train_memory_bytes
from endprompt.io import files, provenance
from endprompt.models import embedded
from endprompt.models.checkpoint import load_config
from endprompt.train.calibration import ATTENTION_TOKENS, attention_speed

RESULTS = Path(__file__).parent / "results" / "cost.json"
CASES = (
    "endprompt:1024:3,endprompt:2048:3,full:8192:1,longlora:8192:1,full:16384:1,longlora:16384:1"
)
PAIRS = (("full", 8192), ("full", 16384), ("longlora", 8192), ("longlora", 16384))
TARGET = 32768
TIME_BOUND, MEMORY_BOUND = 0.20, 0.15


def predicted(
    method: str, tokens: int, config: Any, peak: float, attention: float
) -> dict[str, float]:
    """Seconds of a step of one row and bytes at its peak, as the plan counts them."""
    recipe = recipes.load(method).replace({"rows.tokens": tokens, "training.tokens": tokens,
                                           "training.tokens_per_step": tokens})  # fmt: skip
    window = rope.read_base(config).window
    resolved = recipe.resolve(window=window, target=TARGET, gpu=False)
    decoder = flops.read(config)
    where = plan.cpu("", memory_bytes=0, peak=peak, attention=attention, tokens=ATTENTION_TOKENS)
    held = train_memory_bytes(
        decoder,
        row_tokens=tokens,
        **resolved.memory(checkpointing=False),
    )
    return {
        "seconds": plan.train_seconds(resolved, decoder, where, checkpointing=False),
        "memory_bytes": held.total,
    }


def measure(case: str, model: str) -> dict[str, Any]:
    """One case in a process of its own."""
    method, tokens, steps = case.split(":")
    words = [model, "--one", "ours", "--tokens", tokens, "--method", method, "--steps", steps]
    found = train_step.child(train_step.__file__, [*words, "--target", str(TARGET)])
    return {**found, "method": method, "steps": int(steps)}


def compared(measured: dict[str, Any], config: Any, attention: float) -> dict[str, Any]:
    """A measurement a token, its prediction, and how far that is off."""
    tokens = measured["row_tokens"]
    seconds, held = min(measured["seconds"]), measured["peak_memory_bytes"]
    peak = measured["matmul_flops_per_second"]
    told = predicted(measured["method"], tokens, config, peak, attention)
    return {
        "method": measured["method"],
        "row_tokens": tokens,
        "ms_per_token": 1e3 * seconds / tokens,
        "memory_bytes": held,
        "predicted_ms_per_token": 1e3 * told["seconds"] / tokens,
        "predicted_memory_bytes": told["memory_bytes"],
        "time_error": told["seconds"] / seconds - 1,
        "memory_error": told["memory_bytes"] / held - 1,
    }


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every case of the target's length over every case of `endprompt`."""
    by_case = {(row["method"], row["row_tokens"]): row for row in rows}
    short = [row for row in rows if row["method"] == "endprompt"]
    return [
        {
            "what": f"{method} at {tokens:,} / endprompt at {base['row_tokens']:,}",
            "time": by_case[method, tokens]["ms_per_token"] / base["ms_per_token"],
            "memory": by_case[method, tokens]["memory_bytes"] / base["memory_bytes"],
            "paper_time": plan.PAPER["speedup"][method],
        }
        for method, tokens in PAIRS
        if (method, tokens) in by_case
        for base in short
    ]


def main() -> None:
    """Measure what is missing, print both tables, write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", nargs="?", help="folder or hub name; default: the embedded model")
    parser.add_argument("--cases", default=CASES, help="RECIPE:TOKENS:STEPS, with commas")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    model = embedded.resolve(given.model)
    config = load_config(model)
    torch.set_num_threads(1)
    decoder = flops.read(config)
    speed = attention_speed(decoder.heads, decoder.head_size, 3, train_step.clock)
    measured = json.loads(given.out.read_text())["measured"] if given.out.is_file() else {}
    for case in given.cases.split(","):
        if case not in measured:
            measured[case] = measure(case, model)
            print(json.dumps(measured[case]), flush=True)
        rows = [compared(one, config, speed) for one in measured.values()]
        paper = {"memory": plan.PAPER["memory_gb"]["full"] / plan.PAPER["memory_gb"]["endprompt"]}
        found = {"threads": 1, "attention_flops_per_second": speed, "rows": rows,
                 "ratios": ratios(rows), "paper": paper, "measured": measured}  # fmt: skip
        files.write_json(given.out, {**provenance.provenance(), **found})
    for row in rows:
        off = "" if abs(row["time_error"]) <= TIME_BOUND else "  time is off by more than 20 %"
        off += "" if abs(row["memory_error"]) <= MEMORY_BOUND else "  memory is off by over 15 %"
        print(
            f"{row['method']:10} {row['row_tokens']:6,} tokens: {row['ms_per_token']:6.2f} ms a "
            f"token (predicted {row['predicted_ms_per_token']:.2f}, {row['time_error']:+.0%}), "
            f"{row['memory_bytes'] / GIB:5.2f} GiB (predicted "
            f"{row['predicted_memory_bytes'] / GIB:.2f}, {row['memory_error']:+.0%}){off}"
        )
    for one in ratios(rows):
        print(
            f"{one['what']}: time {one['time']:.2f} (paper {one['paper_time']}), "
            f"memory {one['memory']:.2f} (paper, full: {paper['memory']:.2f})"
        )


if __name__ == "__main__":
    main()
