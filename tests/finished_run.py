"""The folder of a finished run, made without its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from endprompt import recipe as recipes
from endprompt.io import files, provenance
from endprompt.models import checkpoint as models
from tiny_checkpoint import WINDOW

TARGET = 512


def make_run(base: Path, folder: Path, scaling: str = "yarn", **more: Any) -> Path:
    """The folder of a finished run, as `extend` leaves it, without its training."""
    recipe = recipes.load("endprompt").replace(
        {"rope.scaling": scaling, "rows.tokens": 64, "training.tokens": 128}
    )
    recipe = recipe.resolve(window=WINDOW, target=TARGET, gpu=False)
    checkpoint = folder / "arms" / "endprompt" / "model"
    checkpoint.parent.mkdir(parents=True)
    config = models.scaled_config(str(base), recipe, TARGET)
    network = models.load(str(base), config)
    with torch.no_grad():
        network.lm_head.weight.mul_(1.1)  # what training changed
    models.save(network, models.load_tokenizer(str(base)), checkpoint, TARGET)
    loss = {"mean": 2.5, "values": [2.5]}
    run = {
        **provenance.provenance(),
        "command": f"endprompt extend {base} --to 512 --out {folder}",
        "checkpoint": str(checkpoint),
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": recipe.hash(),
        "model": {"name": "base", "path": str(base), "source": str(base), "window_tokens": WINDOW,
                  "licence": "that of the base"},
        "text": {"name": str(folder / "books"), "licence": "the user's own"},
        "target": TARGET,
        "lengths": [128, 256],
        "arms": [{"name": "endprompt", "label": "YARN + endprompt", "trained": True,
                  "evaluation": {"loss": {"128": loss, "256": loss}}}],
        "verdict": [],
    }  # fmt: skip
    files.write_json(folder / "run.json", run | more)
    return folder
