"""What trains, and what is left of LoRA when it is merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from endprompt.errors import ModelError
from endprompt.recipe import Training
from endprompt.train import adapters
from tiny_families import tiny_model

FAMILIES = ("llama", "phi3", "gpt_neox", "qwen3", "olmo2")


def step(model: Any) -> set[str]:
    """Names of the parameters that one optimizer step moves."""
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    ids = torch.arange(3, 67)[None]
    for _ in range(2):  # the second matrix of LoRA starts at zero: its partner moves at step two
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimizer.step()
    return {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_moves_nothing_but_its_own_layers(family: str) -> None:
    model = tiny_model(family)
    layers = adapters.attention_layers(model)
    adapters.prepare(model, Training(trainable="lora"))
    moved = step(model)
    linear = [m for layer in layers.values() for m in layer.modules() if hasattr(m, "lora_A")]
    assert len(layers) == 2
    assert len(linear) == 2 * {"phi3": 2, "gpt_neox": 2}.get(family, 4)
    assert all("lora_" in name for name in moved)
    assert len(moved) == 2 * len(linear)
    assert {m.r["default"] for m in linear} == {8}
    assert {m.scaling["default"] for m in linear} == {2.0}  # alpha 16 / rank 8


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_plus_moves_embeddings_and_every_norm_as_well(family: str) -> None:
    model = adapters.prepare(tiny_model(family), Training(trainable="lora+"))
    moved = {name for name in step(model) if "lora_" not in name}
    embedding = {n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight}
    norms = {n for n, _ in model.named_parameters() if "norm" in n}
    assert norms
    assert moved == embedding | norms


def test_attention_moves_attention_alone() -> None:
    model = adapters.prepare(tiny_model(), Training(trainable="attention"))
    moved = step(model)
    assert moved
    assert all(".self_attn." in name for name in moved)
    assert len(moved) == 2 * 4


def test_all_moves_everything_and_nothing_moves_nothing() -> None:
    model = adapters.prepare(tiny_model(), Training(trainable="all"))
    assert step(model) == {name for name, _ in model.named_parameters()}
    model = adapters.prepare(tiny_model(), Training(trainable="nothing"))
    assert not [each for each in model.parameters() if each.requires_grad]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trainable", ["lora", "lora+"])
def test_merged_model_has_the_plain_layout_and_the_same_logits(family: str, trainable: Any) -> None:
    model = tiny_model(family).eval()
    names = set(model.state_dict())
    untrained = model.state_dict()[next(n for n in names if n.endswith(("q_proj.weight",
                "qkv_proj.weight", "query_key_value.weight")))].clone()  # fmt: skip
    adapters.prepare(model, Training(trainable=trainable))
    step(model.train())
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        adapted = model.eval()(input_ids=ids).logits
        merged = adapters.merge(model)(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == names
    now = model.state_dict()[next(n for n in names if n.endswith(("q_proj.weight",
          "qkv_proj.weight", "query_key_value.weight")))]  # fmt: skip
    assert not torch.equal(now, untrained)


def test_merging_a_model_without_lora_changes_nothing() -> None:
    model = tiny_model()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    assert adapters.merge(model) is model
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name])


def test_model_without_attention_layers_is_refused_by_name() -> None:
    model = torch.nn.Linear(2, 2)
    model.config = type("Config", (), {"model_type": "mamba"})()
    with pytest.raises(ModelError, match="no attention layers found in model type 'mamba'"):
        adapters.prepare(model, Training(trainable="lora"))
