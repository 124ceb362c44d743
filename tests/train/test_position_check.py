"""Every fault that makes a run void is planted once and must be caught."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from endprompt import rope
from endprompt.data.rows import collate
from endprompt.errors import ProbeError
from endprompt.models import families
from endprompt.train import position_check

WINDOW, TARGET, THETA = 128, 1024, 50000.0
BACKENDS = ("eager", "eager+checkpointing", "sdpa", "sdpa+checkpointing")


def model(scaling: str = "yarn", theta: float = THETA) -> Any:
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=TARGET,
    )  # fmt: skip
    config.rope_parameters = rope.parameters(rope.Base(theta, 16, WINDOW), scaling, 8.0)
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


BASE = families.read(
    LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2,
                max_position_embeddings=WINDOW, rope_theta=THETA)
)  # fmt: skip


def failed(network: Any, **changes: Any) -> set[tuple[str, str]]:
    checks = position_check.check_positions(network, BASE, TARGET, **changes)
    return {(check.name, check.backend) for check in checks if not check.passed}


@pytest.mark.parametrize("scaling", ["pi", "ntk", "yarn"])
def test_a_sound_model_passes_every_check(scaling: str) -> None:
    assert failed(model(scaling)) == set()


def test_mask_absent_is_caught_on_every_backend() -> None:
    network = model()
    forward = network.forward
    network.forward = lambda **given: forward(**{**given, "attention_mask": None})
    everywhere = {(name, backend) for backend in BACKENDS for name in (
        "terminal sees the prefix", "gradient reaches the prefix")}  # fmt: skip
    assert failed(network) == everywhere


def test_cut_as_if_rows_were_packed_is_caught_in_spite_of_a_mask() -> None:
    network = model()
    forward = network.forward

    def cut(**given: Any) -> Any:
        piece = (given["position_ids"].diff(prepend=given["position_ids"][:, :1]) > 1).cumsum(-1)
        same = piece[:, None, :, None] == piece[:, None, None, :]
        causal = torch.ones(same.shape[-2:], dtype=torch.bool).tril()
        hidden = torch.where(same & causal, 0.0, torch.finfo(torch.float32).min)
        return forward(**{**given, "attention_mask": hidden})

    network.forward = cut
    assert {name for name, _ in failed(network)} == {
        "terminal sees the prefix", "gradient reaches the prefix"}  # fmt: skip


def test_rope_left_unscaled_is_caught() -> None:
    assert ("RoPE is scaled", "-") in failed(model("none"))


def test_theta_lost_is_caught() -> None:
    assert ("theta kept", "-") in failed(model(theta=10000.0))


def test_frequencies_that_differ_from_the_config_are_caught() -> None:
    network = model()
    network.model.rotary_emb.inv_freq = network.model.rotary_emb.inv_freq * 8
    assert ("frequencies as written", "-") in failed(network)


def test_table_that_ends_at_the_old_window_is_caught() -> None:
    network = model()
    embedding = network.model.rotary_emb
    forward = embedding.forward
    embedding.forward = lambda x, position_ids: forward(x, position_ids.clamp(max=WINDOW - 1))
    assert ("cos and sin reach the target", "-") in failed(network)


def test_jump_missing_is_caught() -> None:
    def contiguous(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(examples)
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        return batch

    found = failed(model(), collator=contiguous)
    assert ("the jump exists", "-") in found
    assert ("last position is target-1", "-") in found


def test_last_position_short_of_the_target_is_caught() -> None:
    def short(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(examples)
        far = batch["position_ids"] > WINDOW
        batch["position_ids"] -= far.long()
        return batch

    assert failed(model(), collator=short) == {("last position is target-1", "-")}


def test_gradient_cut_on_its_way_is_caught() -> None:
    network = model()
    for layer in network.model.layers:
        for part in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            part.register_forward_hook(lambda module, given, out: out.detach())
    assert {name for name, _ in failed(network)} == {"gradient reaches the prefix"}


def test_failure_names_the_fault_and_stops() -> None:
    checks = position_check.check_positions(model("none"), BASE, TARGET)
    with pytest.raises(ProbeError, match=r"void: RoPE is scaled \[-\]: rope_type default"):
        position_check.require(checks)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
