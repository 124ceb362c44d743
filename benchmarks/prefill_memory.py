"""Peak memory and time of a long prefill: this engine against plain Transformers.

Each measurement runs in a process of its own. Compared are

- `engine`: chunked prefill, then eight tokens decoded greedily;
- `generate`: `model.generate` of Transformers, eight tokens, with its defaults;
- `logits`: one forward pass that returns all logits, which is what a plain loss needs;
- `engine-scored`: the engine's loss of every token.

    python benchmarks/prefill_memory.py MODEL --length 32k --out results/prefill_memory.json

The base (interpreter, libraries, weights) is measured as well: what counts is what lies above it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from endprompt import units
from endprompt.io import files, provenance

KINDS = ("base", "engine", "generate", "engine-scored", "logits")
DECODED = 8


def measure(kind: str, model: str, length: int, chunk: int) -> dict[str, Any]:
    """One measurement in this process: peak memory in bytes, seconds, and what was decoded."""
    import numpy as np
    import torch

    from endprompt.eval.engine import Engine

    engine = Engine.load(model, dtype="float32", device="cpu", chunk=chunk)
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


def main() -> None:
    """Measure each kind in a process of its own, print the ratios, write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--length", default="32k")
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    length = units.tokens(options.length)
    if options.one:
        print(json.dumps(measure(options.one, options.model, length, options.chunk)))
        return
    rows: list[dict[str, Any]] = []
    for kind in options.kinds.split(","):
        command = [sys.executable, __file__, options.model, "--one", kind]
        command += ["--length", options.length, "--chunk", str(options.chunk)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["killed: no memory left"])[-1]
            rows.append({"kind": kind, "length": length, "failed": last})
            print(f"{kind:14} failed: {last}")
            continue
        row = json.loads(done.stdout.strip().splitlines()[-1])
        rows.append(row)
        above = (row["peak_bytes"] - row["base_bytes"]) / 2**30
        print(
            f"{kind:14} peak {row['peak_bytes'] / 2**30:6.2f} GiB, {above:6.2f} above base, "
            f"{row['seconds']:7.1f} s, {row['cpu_seconds']:7.1f} s of CPU, {row['found']}"
        )
    known = {row["kind"]: row for row in rows if "peak_bytes" in row}
    for ours, theirs in (("engine", "generate"), ("engine-scored", "logits")):
        if ours in known and theirs in known:
            one, other = known[ours], known[theirs]
            memory = (other["peak_bytes"] - other["base_bytes"]) / (
                one["peak_bytes"] - one["base_bytes"]
            )
            work = other["cpu_seconds"] / one["cpu_seconds"]
            print(f"{theirs} / {ours}: {memory:.2f} x the memory above base, {work:.2f} x the CPU")
    if options.out:
        files.write_json(options.out, {**provenance.provenance(), "rows": rows})


if __name__ == "__main__":
    main()
