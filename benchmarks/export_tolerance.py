"""How far rounded weights are from those trained: what `export verify` has to allow.

    python benchmarks/export_tolerance.py DIR [DIR ...] --json RESULT.json

Rounds the float32 weights of each export to bf16 and fp16, computes in float32 as `verify` does,
and gives the differences of the log-probabilities of the five likeliest tokens, every 64 tokens of
the reference's text: many more places than `verify` looks at.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from endprompt.export.reference import LIKELIEST, logits_at, read
from endprompt.io import files, provenance
from endprompt.models import checkpoint as models

EVERY = 64


def measure(folder: Path) -> dict[str, Any]:
    """Quantiles of the differences in nats, inside and past the old window, for both dtypes."""
    import torch

    expected = read(folder)
    lengths = list(range(EVERY, len(expected.tokens) + 1, EVERY))
    past_N = np.array(lengths) > expected.window
    config = models.load_config(str(folder))
    trained_NV = logits_at(models.load(str(folder), config), expected.tokens, lengths)
    likeliest_NK = np.argsort(-trained_NV)[:, :LIKELIEST]
    found: dict[str, Any] = {}
    for dtype in ("bfloat16", "float16"):
        model = models.load(str(folder), config)
        for weights in model.parameters():  # buffers, RoPE's frequencies, are never rounded
            weights.data = weights.data.to(getattr(torch, dtype)).to(torch.float32)
        given_NV = logits_at(model, expected.tokens, lengths)
        differences_NK = np.abs(np.take_along_axis(given_NV - trained_NV, likeliest_NK, axis=1))
        found[dtype] = {
            name: _summary(differences_NK[where].max(axis=1))
            for name, where in (("inside", ~past_N), ("past", past_N))
        }
        print(folder, dtype, found[dtype], flush=True)
    return {"scaling": expected.rope_parameters["rope_type"], "every": EVERY} | found


def _summary(largest_N: np.ndarray) -> dict[str, float]:
    return {
        "places": len(largest_N),
        "median": float(np.median(largest_N)),
        "99 %": float(np.quantile(largest_N, 0.99)),
        "largest": float(largest_N.max()),
    }


def main() -> None:
    """Measure each folder, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="exports in float32")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    results = [measure(folder) for folder in given.folders]
    if given.json:
        files.write_json(given.json, {"versions": provenance.versions(), "results": results})


if __name__ == "__main__":
    main()
