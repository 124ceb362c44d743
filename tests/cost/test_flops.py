"""Counted operations against torch's own counter on real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from endprompt.cost import flops
from endprompt.models import known
from endprompt.recipe import Training
from tiny_families import tiny_config, tiny_known_model, tiny_model

T = 64


def counted(model: Any, *, backward: bool) -> int:
    """Operations of a row that torch counts; its attention is the whole square, not the half."""
    ids = torch.arange(3, 3 + T)[None]
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt_neox", "olmo2"])
def test_forward_equals_the_counter(family: str) -> None:
    decoder = flops.read(tiny_config(family))
    whole_square = flops.forward(decoder, T) + flops.attention(decoder, T)
    model = tiny_model(family, attention="eager")
    assert counted(model, backward=False) == pytest.approx(whole_square, rel=1e-3)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen 3 MoE", "OLMoE", "gpt-oss"])
def test_a_mixture_is_counted_by_the_experts_that_a_token_goes_through(name: str) -> None:
    """And kept with all of them."""
    model = tiny_known_model(name, attention="eager")
    model.set_experts_implementation("eager")  # torch's counter knows no grouped matmuls
    decoder = flops.read(model.config)
    whole_square = flops.forward(decoder, T) + flops.attention(decoder, T)
    assert counted(model, backward=False) == pytest.approx(whole_square, rel=0.02)  # the router
    assert decoder.weights == pytest.approx(model.num_parameters(), rel=0.02)


def test_big_checkpoints_are_counted_from_their_configs() -> None:
    """Billions of weights, without one of them: of all experts, and of those that multiply."""
    for name, weights, multiplied in (
        ("Qwen 3 MoE", 30.5e9, 3.3e9 - 0.3e9),
        ("gpt-oss", 20.9e9, 3.6e9),
        ("Mixtral", 46.7e9, 12.9e9),
        ("Gemma 3, larger (text)", 27.0e9, 27.0e9),
        ("Llama 3.1, 3.3", 8.0e9, 7.5e9),
    ):
        decoder = flops.read(known.FAMILIES[name].read())
        assert decoder.weights == pytest.approx(weights, rel=0.03), name
        assert decoder.multiplied_weights == pytest.approx(multiplied, rel=0.1), name


@pytest.mark.parametrize("trainable", ["all", "attention", "lora", "lora+"])
def test_training_equals_the_counter(trainable: Any) -> None:
    from endprompt.train import adapters

    decoder = flops.read(tiny_config())
    model = adapters.prepare(tiny_model(attention="eager"), Training(trainable=trainable))
    expected = flops.training(decoder, T, trainable=trainable).total + 3 * flops.attention(
        decoder, T
    )
    # LoRA alone sends no gradient below the first layer: at two layers that is a visible part
    tolerance = 0.12 if trainable in ("lora", "attention") else 0.001
    assert counted(model, backward=True) == pytest.approx(expected, rel=tolerance)


def test_checkpointing_equals_the_counter() -> None:
    decoder = flops.read(tiny_config())
    model = tiny_model(attention="eager")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    expected = flops.training(decoder, T, checkpointing=True).total + 4 * flops.attention(
        decoder, T
    )
    assert counted(model, backward=True) == pytest.approx(expected, rel=0.001)


def test_shifted_attention_counts_the_pairs_inside_groups() -> None:
    decoder = flops.read(tiny_config(num_key_value_heads=4))
    size = T // 4
    still = 4 * size**2 / 2
    moved = 3 * size**2 / 2 + 2 * (size / 2) ** 2 / 2
    pairs = (still + moved) / 2
    assert flops.attention(decoder, T, "shifted") == pytest.approx(
        flops.attention(decoder, T) * pairs / (T**2 / 2)
    )
    groups, whole = (flops.training(decoder, T, kind=kind) for kind in ("shifted", "full"))
    assert groups.attention < whole.attention
    assert groups.matmuls == whole.matmuls


def test_weights_are_those_of_the_model() -> None:
    for family, changes in (("llama", {}), ("phi3", {}), ("llama", {"tie_word_embeddings": True})):
        model = tiny_model(family, **changes)
        matrices = sum(each.numel() for each in model.parameters() if each.ndim == 2)
        assert flops.read(tiny_config(family, **changes)).weights == matrices


def test_a_row_of_the_target_costs_more_than_its_share_of_tokens() -> None:
    """Llama-3-8B, 8K against 64K: eight times the tokens, the square of them in attention."""
    llama = flops.Decoder(32, 4096, 14336, 32, 8, 128, 128256)
    assert llama.weights == pytest.approx(8.03e9, rel=0.01)
    ratio = flops.training(llama, 65536).total / flops.training(llama, 8192).total
    assert 13 < ratio < 16
    assert flops.training(llama, 8192, trainable="nothing").total == 0
