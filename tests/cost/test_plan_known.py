"""A plan needs no weights: a folder with a config is enough, of any size and family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from endprompt.models import known


@pytest.mark.parametrize("name", ["Llama 3.1, 3.3", "gpt-oss"])
def test_a_big_model_is_planned_from_its_config_alone(
    name: str, tmp_path: Path, endprompt: Callable[..., Any]
) -> None:
    changes = {"Llama 3.1, 3.3": {"num_hidden_layers": 80, "hidden_size": 8192,
                                  "num_attention_heads": 64, "intermediate_size": 28672},
               "gpt-oss": {}}[name]  # fmt: skip
    known.FAMILIES[name].read(**changes).save_pretrained(tmp_path / "model")
    done = endprompt("plan", tmp_path / "model", "--to", "256k", "--gpu", "h100:64",
                     "--methods", "recall-anchors", "--json", tmp_path / "plan.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    weights = {"Llama 3.1, 3.3": 70.5e9, "gpt-oss": 20.9e9}[name]
    assert found["weights"] == pytest.approx(weights, rel=0.01)
    assert found["target"] == 262144
