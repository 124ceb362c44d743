"""The default recipe trains as it did: no refactoring moves the numbers unseen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from loss_trajectory import LOSSES, RECORDED, train

TOLERANCE = 0.002
"""Nats per token, for other processors; another layout, scaling or headroom moves the first loss by
0.009 and more."""


def test_default_recipe_gives_the_recorded_losses(tmp_path: Path) -> None:
    """`make trajectory` records them again, for a change that is meant to move them."""
    recorded, losses = json.loads(RECORDED.read_text()), train(tmp_path)
    assert [entry["step"] for entry in losses] == [entry["step"] for entry in recorded]
    for key in LOSSES:
        np.testing.assert_allclose(
            [entry[key] for entry in losses],
            [entry[key] for entry in recorded],
            rtol=0,
            atol=TOLERANCE,
            err_msg=key,
        )
