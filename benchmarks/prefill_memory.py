"""Time and memory of a long prefill: this engine against plain Transformers, pairwise.

Compared are

- `engine` with `generate`: chunked prefill against `model.generate` of Transformers with its
  defaults, eight tokens decoded greedily by both;
- `engine-scored` with `logits`: the engine's loss of every token against one forward pass that
  returns all logits, which is what a plain loss needs.

    taskset -c 1 python benchmarks/prefill_memory.py [MODEL] [--lengths 2k,4k,8k] [--dtype bfloat16]

Each measurement runs in a process of its own, the two of a pair one after the other. Time is the
processor's (`process_time`, one thread), so that other work on the machine counts little; the
least of the rounds is taken, and wall-clock time is recorded beside it. Memory is the peak above
the base: interpreter, libraries and weights after a short prompt; unknown where loading took more.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import train_step

from endprompt import units
from endprompt.io import files, provenance
from endprompt.models import embedded

PAIRS = (("engine", "generate"), ("engine-scored", "logits"))
DECODED = 8
RESULTS = Path(__file__).parent / "results" / "prefill_memory.json"


def measure(kind: str, model: str, length: int, chunk: int, dtype: str) -> dict[str, Any]:
    """One measurement in this process: peak memory in bytes, seconds, and what was decoded."""
    import numpy as np
    import torch

    from endprompt.eval.engine import Engine

    torch.set_num_threads(1)
    engine = Engine.load(model, dtype=dtype, device="cpu", chunk=chunk)
    ids = np.random.default_rng(0).integers(100, engine.vocabulary, length).tolist()
    small = ids[:64]
    engine.generate(small, 2)
    base = provenance.peak_memory_bytes()
    began, worked = time.perf_counter(), time.process_time()
    found: list[Any] = []
    with torch.inference_mode():
        ids_BT = torch.tensor([ids])
        if kind == "engine":
            found = engine.generate(ids, DECODED)
        elif kind == "engine-scored":
            found = [round(engine.context().extend(ids, scored=length - 1).mean, 5)]
        elif kind == "generate":
            out = engine.model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=DECODED,
                do_sample=False,
            )
            found = out[0, length:].tolist()
        elif kind == "logits":
            out = engine.model(ids_BT, labels=ids_BT)
            found = [round(float(out.loss), 5)]
    return {
        "kind": kind,
        "length": length,
        "peak_bytes": provenance.peak_memory_bytes(),
        "base_bytes": base,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "found": found,
    }


def compared(rows: list[dict[str, Any]], length: int, pair: tuple[str, str]) -> dict[str, Any]:
    """Ours over theirs at one length: processor time, and memory above the base."""
    ours, theirs = (
        [row for row in rows if (row["length"], row["kind"]) == (length, kind)] for kind in pair
    )

    def ratio(of: Any) -> float | None:
        least = [min(map(of, rows)) for rows in (ours, theirs)]
        return least[0] / least[1] if min(least) > 0 else None

    return {
        "length": length,
        "ours": pair[0],
        "theirs": pair[1],
        "time": ratio(lambda row: row["cpu_seconds"]),
        "memory": ratio(lambda row: row["peak_bytes"] - row["base_bytes"]),
        "same": ours[0]["found"] == theirs[0]["found"],
    }


def main() -> None:
    """Measure each pair at each length, print the ratios, write the record as it grows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", nargs="?", help="folder or hub name; default: the embedded model")
    parser.add_argument("--lengths", default="2k,4k,8k,16k")
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--pairs", default=",".join("/".join(pair) for pair in PAIRS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, help="default: in results/, by the dtype")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    lengths = units.lengths(given.lengths)
    if given.one:
        print(json.dumps(measure(given.one, given.model, lengths[0], given.chunk, given.dtype)))
        return
    model = embedded.resolve(given.model)
    wanted = given.pairs.split(",")
    pairs = [pair for pair in PAIRS if "/".join(pair) in wanted]
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for length in lengths:
        for pair in pairs:
            for kind in pair * given.rounds:
                words = [model, "--one", kind, "--lengths", str(length), "--dtype", given.dtype]
                rows.append(train_step.child(__file__, [*words, "--chunk", str(given.chunk)]))
                row = rows[-1]
                above = (row["peak_bytes"] - row["base_bytes"]) / 2**30
                print(
                    f"{length:6} {kind:14} {row['cpu_seconds']:7.1f} s of the processor "
                    f"({row['seconds']:.1f} s), {above:5.2f} GiB above base, {row['found']}",
                    flush=True,
                )
            ratios.append(compared(rows, length, pair))
            memory = ratios[-1]["memory"]
            print("{length:6} {ours} / {theirs}: time {time:.2f}, memory ".format(**ratios[-1])
                  + (f"{memory:.2f}" if memory else "unknown"), flush=True)  # fmt: skip
            files.write_json(
                given.out or train_step.results(RESULTS, given.dtype),
                {
                    **provenance.provenance(),
                    "dtype": given.dtype,
                    "ratios": ratios,
                    "rows": rows,
                    "threads": 1,
                },
            )


if __name__ == "__main__":
    main()
