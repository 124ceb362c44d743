"""The losses of the default recipe on a tiny model, step by step, through the command line.

`make trajectory` records them again, for a change that is meant to move them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tiny_checkpoint import WORDS, save_tiny

RECORDED = Path(__file__).parent / "reference" / "loss_trajectory.json"
METHOD = "recall-anchors"
WINDOW, TARGET, STEPS = 2048, 8192, 12
LOSSES = ("loss", "prefix_loss", "terminal_loss")
SETTINGS = {
    "training.tokens": 1024 * STEPS,
    "training.tokens_per_step": 1024,
    "training.learning_rate": 1e-2,  # a tiny model learns nothing at the recipe's own
}


def train(folder: Path) -> list[dict[str, float]]:
    """Prepare text, train on it, and give the losses of each step."""
    model = save_tiny(
        folder / "model", max_position_embeddings=WINDOW, initializer_range=0.2, hidden_size=64
    )
    rng = np.random.default_rng(0)
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(rng.choice(WORDS, 2000)) for _ in range(2)))
    _endprompt("prepare", text, "--tokenizer", model, "--out", folder / "data")
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    _endprompt(
        "train", METHOD, "--model", model, "--data", folder / "data", "--to", TARGET, *settings,
        "--out", folder / "run",
    )  # fmt: skip
    curve = json.loads((folder / "run" / "train.json").read_text())["curve"]
    return [
        {"step": entry["step"], **{key: round(entry[key], 5) for key in LOSSES}} for entry in curve
    ]


def _endprompt(*words: object) -> None:
    command = [sys.executable, "-m", "endprompt", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    if done.returncode:
        raise RuntimeError(done.stderr)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        lines = ",\n  ".join(json.dumps(entry) for entry in train(Path(work)))
    RECORDED.write_text(f"[\n  {lines}\n]\n")
