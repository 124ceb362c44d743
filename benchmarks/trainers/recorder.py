"""Keeps what a trainer calls its model with; in runs that are to go wrong, in the guard's place.

Imported in the trainer's own environment; IN_TRAINERS_RECORD names the file to write.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from transformers import TrainerCallback


class Recorder(TrainerCallback):
    """Takes the guard's arguments, checks nothing, and keeps every batch of the training."""

    def __init__(self, **_: Any) -> None:
        self._batches: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Watch every call of the model."""

        def keep(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            held = {**({"input_ids": arguments[0]} if arguments else {}), **named}
            kept = {
                name: held[name].detach().cpu().numpy().copy()
                for name in ("input_ids", "position_ids", "labels")
                if held.get(name) is not None
            }
            mask = held.get("attention_mask")
            scaling = getattr(module.config, "rope_parameters", None)
            self._batches.append(
                {
                    **kept,
                    "mask": None if mask is None else list(mask.shape),
                    "rope": None if scaling is None else dict(scaling),
                    "window": module.config.max_position_embeddings,
                }
            )

        given["model"].register_forward_pre_hook(keep, with_kwargs=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write the batches."""
        np.save(os.environ["IN_TRAINERS_RECORD"], np.array(self._batches, dtype=object))
