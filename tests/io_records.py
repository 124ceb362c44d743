"""A whole example of every file that this package writes, by its type."""

from __future__ import annotations

from typing import Any

from endprompt import record

BASE: dict[str, Any] = {
    "seed": 1, "base": {"window": 128}, "warm_start": "none", "seconds": 1.5, "cpu_seconds": 1.0,
    "tokens": 1000, "parameters": 10,
}  # fmt: skip
VALID: dict[type[record.Record], dict[str, Any]] = {
    record.Training: {
        "recipe": {}, "target": 512, "tokens": 64, "flops": 1e9, "seconds": 1.0,
        "peak_memory_bytes": 1, "curve": [{"step": 1}], "resumed_at": [2],
    },
    record.Window: {
        "lengths": [64], "last": 16, "seed": 0, "texts": ["ab"], "seconds": 1.0,
        "peak_memory_bytes": 1, "losses": [{"length": 64, "nll": 2.0}],
        "curve": [{"start": 0, "end": 64, "nll": 2.0}],
        "needles": [
            {"length": 64, "depth": 0.5, "nll_per_token": 1.0, "digits_right": 0.5, "hit": False}
        ],
        "quotes": [{"length": 64, "nll": 1.0}],
    },
    record.ScalingProbe: {
        "scaling": "yarn", "headroom": 1.5, "settings": {"beta_fast": 16.0},
        "rope_parameters": {"rope_type": "yarn"}, "answers": [[0.5, 1.0]], "seconds": 1.0,
        "computation": {},
    },
    record.Run: {"schema_version": 1, "arms": [{"name": "base"}], "target": 512},
    record.Checks: {"checks": [{"name": "jump"}], "calibration": None},
    record.Timings: {"total": 1.0, "training": 0.5},
    record.Base: BASE,
    record.LabResult: {
        "arm": "pose", "scaling": "yarn", "factor": 8, "seed": 1, "trained": True, "recipe": {},
        "tokens": 1, "flops": 1.0, "train_seconds": 1.0, "curve": [], "gradient": [],
        "answers": {"128": {"single": [[0.5, 1]]}}, "loss": {"128": [[1.0, 1.0, 1.0, 1.0]]},
        "base": BASE, "provenance": {},
    },
    record.Untaught: {
        "lengths": [64],
        "answers": [{"task": "mrcr", "length": 64, "depth": 0.5, "nll": 1.0, "right": 0.5}],
    },
    record.Answers: {"cells": [], "asked": 2, "answered": 2, "failed": 0, "notes": ["made up"]},
    record.StudyArm: {
        "arm": "pose", "text": "a", "seed": 0, "target": 512, "recipe": {},
        "training": {
            "recipe": {}, "target": 512, "tokens": 64, "flops": 1e9, "seconds": 1.0,
            "peak_memory_bytes": 1, "curve": [], "resumed_at": [],
        },
        "provenance": {},
    },
    record.Split: {
        "train": [{"document": 0, "start": 0, "stop": 9}],
        "held_out": [[{"document": 1, "start": 0, "stop": 9}]],
    },
}  # fmt: skip
