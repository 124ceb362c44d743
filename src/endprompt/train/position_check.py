"""The position check: proof, on the loaded model, that training will see the far distances.

It uses the very collator and call that training uses. Each check is one fault that lets a run
go on while not one long distance is trained: a mask that hides the prefix from the terminal,
RoPE left unscaled, theta lost, positions without a jump, a last position short of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from endprompt import rope
from endprompt.cues import Segment
from endprompt.data.rows import TERMINAL, Row, assemble, collate
from endprompt.errors import ProbeError
from endprompt.recipe import Prefix, Terminal
from endprompt.train.loss import hidden_states, weighted_loss

Collator = Callable[[list[dict[str, Any]]], dict[str, Tensor]]
BACKENDS = ("eager", "sdpa")
PREFIX_TOKENS, TERMINAL_TOKENS = 48, 16


@dataclass(frozen=True)
class Check:
    """One line of the position check."""

    name: str
    backend: str
    passed: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)


def probe_row(vocabulary: int, target: int) -> dict[str, Any]:
    """A short row as the paper's scheme makes it: tokens drawn with a fixed seed, jump included."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, max(vocabulary, 8), PREFIX_TOKENS + TERMINAL_TOKENS)
    terminal_S = Segment(tokens[PREFIX_TOKENS:], np.ones(TERMINAL_TOKENS, np.float32))
    row: Row = assemble(
        tokens[:PREFIX_TOKENS], [terminal_S], Prefix(), Terminal(), target=target, rng=rng
    )
    return {
        "input_ids": row.tokens_T,
        "position_ids": row.positions_T,
        "loss_weights": row.weights_T,
        "segments": row.segments_T,
    }


def batch_of(model: Any, length: int) -> dict[str, Tensor]:
    """A batch of one row of `length` drawn tokens, contiguous, on the model's device."""
    tokens = torch.randint(3, max(model.config.vocab_size, 8), (1, length), device=model.device)
    return {
        "input_ids": tokens,
        "position_ids": torch.arange(length, device=model.device)[None],
        "attention_mask": torch.ones_like(tokens),
        "loss_weights": torch.ones(1, length, device=model.device),
        "segments": torch.zeros(1, length, dtype=torch.uint8, device=model.device),
    }


def check_positions(
    model: Any,
    base: rope.Base,
    target: int,
    *,
    backends: tuple[str, ...] = BACKENDS,
    collator: Collator = collate,
    row: dict[str, Any] | None = None,
) -> list[Check]:
    """Run every check on a loaded model, for each attention backend.

    base  RoPE of the model before scaling; the config in `model` says how it was scaled
    row   the row to use in place of the paper's, as `RowSource` gives it
    """
    example = row or probe_row(model.config.vocab_size, target)
    batch = {key: value.to(model.device) for key, value in collator([example]).items()}
    checks = [*_positions(batch, target), *_frequencies(model, base, target)]
    before = model.config._attn_implementation
    for backend in backends:
        model.set_attn_implementation(backend)
        for recompute in (False, True):
            with _checkpointing(model, recompute):
                label = f"{backend}+checkpointing" if recompute else backend
                checks += _reach(model, batch, label)
    model.set_attn_implementation(before)
    return checks


def require(checks: list[Check]) -> None:
    """Raise ProbeError that names every check that failed."""
    failed = [f"{check.name} [{check.backend}]: {check.detail}"
              for check in checks if not check.passed]  # fmt: skip
    if failed:
        raise ProbeError(f"position check failed, training would be void: {'; '.join(failed)}")


def _positions(batch: dict[str, Tensor], target: int) -> Iterator[Check]:
    positions = batch["position_ids"][0]
    steps = positions.diff()
    last, jump = int(positions.max()), int(steps.max())
    yield Check("last position is target-1", "-", last == target - 1, f"{last} of {target - 1}")
    yield Check("the jump exists", "-", jump > 1, f"largest step {jump}")
    rising = bool((steps > 0).all())
    yield Check("positions rise strictly", "-", rising, f"smallest step {int(steps.min())}")


def _frequencies(model: Any, base: rope.Base, target: int) -> Iterator[Check]:
    parameters = model.config.rope_parameters
    theta = float(parameters.get("rope_theta", 0.0))
    plain = rope.inverse_frequencies(rope.parameters(base, "none", 1.0), base.rotary_size)[0]
    expected, expected_size = rope.inverse_frequencies(
        parameters, base.rotary_size, length=target, window=base.window
    )
    scaled = not np.allclose(expected, plain, rtol=1e-3)
    embedding = _rotary_embedding(model)
    place = torch.tensor([[0, target - 1]], device=embedding.inv_freq.device)
    # some scalings settle their frequencies by the highest position met: ask before reading
    cos, sin = embedding(torch.zeros(1, 2, 1, device=place.device), place)
    held = embedding.inv_freq.detach().double().cpu().numpy()

    kind = parameters.get("rope_type", "default")
    kept = theta == base.theta or (kind == "default" and theta > base.theta)
    yield Check("theta kept", "-", kept, f"{theta:g}, base {base.theta:g}")
    yield Check("RoPE is scaled", "-", scaled, f"rope_type {kind}, theta {theta:g}")
    same = held.shape == expected.shape and np.allclose(held, expected, rtol=1e-5)
    detail = f"model {held[-1]:.6g}, written {expected[-1]:.6g} radians at the last pair"
    yield Check("frequencies as written", "-", bool(same), detail)

    angles = (target - 1) * expected
    wanted = np.concatenate([np.cos(angles), np.sin(angles)]) * expected_size
    half = len(expected)
    got = torch.cat([cos[0, 1, :half], sin[0, 1, :half]]).double().cpu().numpy()
    error = float(np.abs(got - wanted).max())
    yield Check("cos and sin reach the target", "-", error < 0.02, f"largest error {error:.2g}")


def _reach(model: Any, batch: dict[str, Tensor], label: str) -> Iterator[Check]:
    """Change a prefix token, look at the terminal; send a gradient from there to the prefix."""
    terminal = batch["segments"][0] == TERMINAL
    other = dict(batch)
    other["input_ids"] = batch["input_ids"].clone()
    other["input_ids"][0, 0] = (batch["input_ids"][0, 0] + 1) % model.config.vocab_size
    with torch.no_grad():
        one = hidden_states(model, batch)[0][0, terminal]
        two = hidden_states(model, other)[0][0, terminal]
    moved = float((one - two).abs().max())
    size = float(one.abs().max())
    seen = bool(np.isfinite(moved)) and moved > 1e-6 * size
    yield Check("terminal sees the prefix", label, seen, f"moved by {moved:.2g} of {size:.2g}")

    caught: list[Tensor] = []

    def keep(_: Any, __: Any, embedded: Tensor) -> Tensor:
        embedded = embedded.detach().requires_grad_()
        caught.append(embedded)
        return embedded

    # the first terminal token is predicted from the last prefix token: it says nothing of a mask
    inside = terminal & terminal.roll(1)
    only_terminal = dict(batch)
    only_terminal["loss_weights"] = inside[None].float()
    with _embedding_hook(model, keep):
        weighted_loss(model, only_terminal).weighted.backward()
    model.zero_grad(set_to_none=True)
    gradient = caught[0].grad
    size = 0.0 if gradient is None else float(gradient[0, ~terminal].norm())
    reaches = bool(np.isfinite(size)) and size > 0
    yield Check("gradient reaches the prefix", label, reaches, f"norm {size:.2g}")


@contextmanager
def _embedding_hook(model: Any, hook: Callable[..., Tensor]) -> Generator[None]:
    handle = model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _checkpointing(model: Any, on: bool) -> Generator[None]:
    training = model.training
    if on:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
    try:
        yield
    finally:
        if on:
            model.activation_checkpointing_disable()
        model.train(training)


def _rotary_embedding(model: Any) -> Any:
    for module in model.modules():
        if hasattr(module, "inv_freq") and hasattr(module, "rope_type"):
            return module
    raise ProbeError(f"model type {model.config.model_type!r} has no rotary embedding")
