"""Every model family through the position check, forward and backward, on each backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from endprompt import recipe as recipes
from endprompt import rope
from endprompt.cues import Segment
from endprompt.data.rows import assemble, collate
from endprompt.models import families
from endprompt.recipe import Prefix, Terminal
from endprompt.train import position_check
from endprompt.train.loss import hidden_states, weighted_loss
from tiny_families import tiny_config, tiny_model

TARGET = 512
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "phi": {},
    "phi3": {"original_max_position_embeddings": 128},
    "smollm3": {"num_hidden_layers": 4},  # its fourth layer has no RoPE
    "olmo": {},
    "olmo2": {},
    "gpt_neox": {},
}


def scaling_of(family: str) -> str:
    """YaRN where the family can hold it."""
    return "longrope" if family in rope.ONLY else "yarn"


def scaled(family: str, scaling: str) -> tuple[Any, families.Family]:
    """A tiny model as `models.checkpoint.scaled_config` would scale it."""
    changes = FAMILIES[family]
    read = families.read(tiny_config(family, **changes))
    base = read.base
    parameters = rope.parameters(base, scaling, TARGET / base.window)
    window = base.window if scaling == "dynamic" else TARGET
    model = tiny_model(
        family, rope_parameters=parameters, max_position_embeddings=window, **changes
    )
    return model, read


@pytest.mark.parametrize("family", FAMILIES)
def test_family_passes_the_position_check(family: str) -> None:
    model, base = scaled(family, scaling_of(family))
    checks = position_check.check_positions(model, base, TARGET)
    assert [check for check in checks if not check.passed] == []
    assert {check.backend for check in checks} >= {"eager", "sdpa", "sdpa+checkpointing"}


@pytest.mark.parametrize("scaling", ["pi", "ntk", "dynamic", "llama3", "longrope"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_every_scaling_passes_the_position_check(family: str, scaling: str) -> None:
    model, base = scaled(family, scaling)
    failed = [c for c in position_check.check_positions(model, base, TARGET) if not c.passed]
    assert failed == []


@pytest.mark.parametrize("family", FAMILIES)
def test_unscaled_family_is_caught(family: str) -> None:
    changes = FAMILIES[family]
    model = tiny_model(family, **changes)
    base = families.read(tiny_config(family, **changes))
    failed = {c.name for c in position_check.check_positions(model, base, TARGET) if not c.passed}
    assert failed == {"RoPE is scaled"}


def jumping_row(tokens: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(1)
    drawn = rng.integers(3, 97, tokens)
    terminal = Segment(drawn[-16:], np.ones(16, np.float32))
    row = assemble(drawn[:-16], [terminal], Prefix(), Terminal(), target=TARGET, rng=rng)
    return collate(
        [
            {
                "input_ids": row.tokens_T,
                "position_ids": row.positions_T,
                "loss_weights": row.weights_T,
                "segments": row.segments_T,
            }
        ]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_backends_agree_on_a_row_that_jumps(family: str) -> None:
    """eager and sdpa with gradients; flex attention has no backward on a CPU."""
    model, _ = scaled(family, scaling_of(family))
    model.eval()
    batch = jumping_row(256)
    losses, hidden = {}, {}
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        model.zero_grad(set_to_none=True)
        found = weighted_loss(model, batch)
        found.weighted.backward()
        losses[backend] = found.weighted.item()
        gradient = model.get_input_embeddings().weight.grad
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0
        with torch.no_grad():
            hidden[backend] = hidden_states(model, batch)[0]
    assert losses["eager"] == pytest.approx(losses["sdpa"], rel=1e-4)
    torch.testing.assert_close(hidden["eager"], hidden["sdpa"], rtol=1e-3, atol=1e-4)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Flex attention as its own plain formula: compiling it takes minutes on a CPU."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_flex_attention_agrees_and_its_terminal_sees_the_prefix(family: str) -> None:
    model, _ = scaled(family, "yarn")
    model.eval()
    batch = jumping_row(256)
    other = dict(batch, input_ids=batch["input_ids"].clone())
    other["input_ids"][0, 0] = (batch["input_ids"][0, 0] + 1) % 97
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        sdpa = hidden_states(model, batch)[0]
        model.set_attn_implementation("flex_attention")
        flex = hidden_states(model, batch)[0]
        moved = (hidden_states(model, other)[0] - flex).abs()
    torch.testing.assert_close(flex, sdpa, rtol=1e-3, atol=1e-4)
    assert moved[0, -16:].amax(-1).min() > 1e-6 * flex.abs().max()


@pytest.mark.parametrize("name", [n for n in recipes.names() if recipes.load(n).trained])
def test_every_recipe_takes_a_step(name: str, tiny: Any, tmp_path: Any) -> None:
    """By one word: built, checked, trained for one step, saved, loaded again."""
    from transformers import AutoModelForCausalLM

    from endprompt.train.run import train

    window, target, recipe = 128, 2048, recipes.load(name)
    changes: dict[str, Any] = {"training.learning_rate": 1e-2, "training.warmup_steps": 0}
    if recipe.rows.tokens == "auto":
        window = changes["rows.tokens"] = 1536  # a token a letter makes long cues
    resolved = recipe.replace(changes).resolve(window=window, target=target, gpu=False)
    resolved = resolved.replace({"training.tokens": resolved.training.tokens_per_step})
    done = train(
        resolved, model=str(tiny), documents=Text(9000), target=target, out=tmp_path / "run"
    )
    assert done.steps == 1
    assert done.tokens == resolved.amounts.row_tokens
    assert done.flops > 0
    before = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    after = model.state_dict()
    assert after.keys() == before.keys()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    if name == "longlora":
        # LoRA's second matrix starts at zero, so q moves at the first step through it
        assert any("q_proj" in key for key in moved)
        assert not any("mlp" in key for key in moved)
        assert any("norm" in key for key in moved)
        assert any("embed_tokens" in key for key in moved)
    else:
        assert any("mlp" in key for key in moved)


class Text:
    """One document of bytes with full stops."""

    def __init__(self, length: int) -> None:
        rng = np.random.default_rng(0)
        self.text = rng.integers(33, 126, length)
        self.lengths = np.array([length], dtype=np.int64)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.text
