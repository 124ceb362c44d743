"""The position check: proof, on the loaded model, that training will see the far distances.

It uses the very collator and call that training uses. Each check is one fault that lets a run
run while not one long distance is trained, or while local layers learn what they never
meet: a mask that hides the prefix from the terminal, RoPE left unscaled, theta or an old factor
lost, positions without a jump, a last position short of the target, a local mask made of indices.
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
from endprompt.models import families, masks, rotation
from endprompt.models.recording import recording
from endprompt.recipe import Prefix, Terminal
from endprompt.train import gaps
from endprompt.train.loss import hidden_states, weighted_loss

Collator = Callable[[list[dict[str, Any]]], dict[str, Tensor]]
BACKENDS = ("eager", "sdpa")
PREFIX_TOKENS, TERMINAL_TOKENS = 48, 16
MOST_CONTIGUOUS = 1040
"""Tokens of the row without jumps: beyond the span of most local layers, and quick."""


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
    family: families.Family,
    target: int,
    *,
    wanted: rope.Parameters | None = None,
    backends: tuple[str, ...] | None = None,
    collator: Collator = collate,
    row: dict[str, Any] | None = None,
) -> list[Check]:
    """Run every check on a loaded model, for each attention backend.

    family    layers and RoPE of the model before scaling
    wanted    `rope_parameters` that the layers which are scaled should have; None: those in the
              model's config
    backends  None: eager, and sdpa where the family has it
    row       the row to use in place of the paper's, as `RowSource` gives it
    """
    if backends is None:
        backends = BACKENDS if model._supports_sdpa else BACKENDS[:1]
    example = row or probe_row(model.config.vocab_size, target)
    batch = {key: value.to(model.device) for key, value in collator([example]).items()}
    wanted = wanted or rope.of_global_layers(model.config)
    checks = [
        *_positions(batch, target),
        *_scaling(family.base, wanted, target),
        *frequencies(model, family, wanted, target),
        *_rotation(model, family, wanted, target),
    ]
    before = model.config._attn_implementation
    for backend in backends:
        model.set_attn_implementation(backend)
        for recompute in (False, True):
            with _checkpointing(model, recompute):
                label = f"{backend}+checkpointing" if recompute else backend
                checks += _reach(model, batch, label)
        if family.local_span(target) is not None:
            checks += _local(model, batch, backend)
    model.set_attn_implementation(before)
    return checks


@torch.no_grad()
def check_gaps(
    model: Any, family: families.Family, target: int, filled: gaps.FilledGaps
) -> list[Check]:
    """Keys in a gap count as their text would.

    A text at the end of the target is read whole, and with the keys of its middle third in a gap:
    hidden states behind the gap agree.
    """
    batch = batch_of(model, PREFIX_TOKENS)
    batch["position_ids"] = batch["position_ids"] + target - PREFIX_TOKENS
    rows = batch["position_ids"]
    with recording(model) as recorded:
        whole = hidden_states(model, batch)[0][0]
        angles = rotation.angles(model, family, rows, rows[0])
    layouts = rotation.layouts(model, family)
    third = PREFIX_TOKENS // 3
    middle = slice(third, 2 * third)
    bank = gaps.bank_of(recorded, family, layouts, angles, kept=middle)
    apart = {
        name: torch.cat([column[:, :third], column[:, 2 * third :]], 1)
        for name, column in batch.items()
    }
    apart["gap_positions"] = rows[:, middle]
    apart["gap_slots"] = torch.arange(third, device=rows.device)[None]
    with filled.holding(bank).of(model, apart):
        split = hidden_states(model, apart)[0][0]
    error = float((split[third:] - whole[2 * third :]).abs().max())
    size = float(whole.abs().max())
    detail = f"differ by {error:.2g} of {size:.2g} from the text read whole"
    backend = str(model.config._attn_implementation)
    return [Check("keys in gaps stand as their text would", backend, error <= 1e-3 * size, detail)]


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


def _scaling(base: rope.Base, wanted: rope.Parameters, target: int) -> Iterator[Check]:
    """What is written, against the base's own frequencies."""
    kind, theta = wanted.get("rope_type", "default"), float(wanted.get("rope_theta", 0.0))
    kept = theta == base.theta or (kind == "default" and theta > base.theta)
    yield Check("theta kept", "-", kept, f"{theta:g}, base {base.theta:g}")
    own, own_size = base.frequencies(target)
    turns, size = rope.inverse_frequencies(
        wanted, base.rotary_size, length=target, window=base.window
    )
    scaled = not np.allclose(turns, own, rtol=1e-3)
    yield Check("RoPE is scaled", "-", scaled, f"rope_type {kind}, theta {theta:g}")
    if base.parameters is not None:
        slower = bool((turns <= own * (1 + 1e-6)).all() and size >= own_size * (1 - 1e-6))
        detail = f"{own[-1] / turns[-1]:.3g} times slower at the last pair"
        yield Check("the base's own scaling is kept", "-", slower, detail)


def frequencies(
    model: Any, family: families.Family, wanted: rope.Parameters, target: int
) -> Iterator[Check]:
    """What the model's rotary embedding holds for each kind of layer, against NumPy's."""
    base, embedding = family.base, rotation.embedding(model)
    for layers in family.layers:
        if layers.parameters is None:
            continue
        parameters = wanted if layers.scaled else layers.parameters
        expected, size = rope.inverse_frequencies(
            parameters, base.rotary_size, length=target, window=base.window
        )
        place = torch.tensor([[0, target - 1]], device=model.device)
        kind = (layers.kind,) if family.by_kind else ()
        # some scalings settle their frequencies by the highest position met: ask before reading
        cos, sin = embedding(torch.zeros(1, 2, 1, device=place.device), place, *kind)
        buffer = getattr(embedding, "_".join((*kind, "inv_freq")))
        held = buffer.detach().double().cpu().numpy()
        same = held.shape == expected.shape and np.allclose(held, expected, rtol=1e-5)
        detail = f"model {held[-1]:.6g}, written {expected[-1]:.6g} radians at the last pair"
        label = "-" if len(family.layers) == 1 else f"{layers.name} layers"
        yield Check("frequencies as written", label, bool(same), detail)

        angles = (target - 1) * expected
        error = 0.0
        for got, wave in ((cos, np.cos), (sin, np.sin)):
            values = got[0, 1].double().cpu().numpy()
            nearest = min(  # pairs lie half a head apart in most families, side by side in some
                (values[: len(expected)], values[:: max(1, len(values) // len(expected))]),
                key=lambda measured: np.abs(measured - wave(angles) * size).max(),
            )
            error = max(error, float(np.abs(nearest - wave(angles) * size).max()))
        yield Check(
            "cos and sin reach the target", label, error < 0.02, f"largest error {error:.2g}"
        )


@torch.no_grad()
def _rotation(
    model: Any, family: families.Family, wanted: rope.Parameters, target: int
) -> Iterator[Check]:
    """How far queries of every layer turn when a row moves, against what is said of the layer.

    Moving a row changes nothing else, as attention sees differences of positions.
    """
    base = family.base
    shift = max(1, (target - base.window) // 2)
    tokens = torch.as_tensor(probe_row(model.config.vocab_size, target)["input_ids"])[None, :32]
    ids = tokens.to(model.device)
    late = torch.arange(target - ids.shape[1], target, device=model.device)[None]
    queries = []
    with recording(model) as recorded:
        for positions in (late, late - shift):
            batch = {
                "input_ids": ids,
                "position_ids": positions,
                "attention_mask": torch.ones_like(ids),
            }
            hidden_states(model, batch)
            queries.append({i: layer.query_HTD.double().cpu() for i, layer in recorded.items()})
    for layers in family.layers:
        turns = np.zeros(base.rotary_size // 2)
        if layers.parameters is not None:
            turns = rope.inverse_frequencies(
                wanted if layers.scaled else layers.parameters,
                base.rotary_size, length=target, window=base.window,
            )[0]  # fmt: skip
        turned = torch.polar(torch.ones(len(turns)).double(), torch.tensor(turns * shift))
        errors = {
            i: _turned_by(queries[1][i], queries[0][i], turned) if i in queries[0] else np.inf
            for i in layers.indices
        }
        worst = max(errors, key=lambda i: errors[i])
        label = "-" if len(family.layers) == 1 else f"{layers.name} layers"
        detail = f"largest difference {errors[worst]:.2g}, in layer {worst}"
        yield Check("queries turn as written", label, errors[worst] < 0.1, detail)


def _turned_by(before_HTD: Tensor, after_HTD: Tensor, turned_J: Tensor) -> float:
    """Difference of `after` and `before` turned pair by pair, as a part of its size.

    Families differ in where the pairs of a head lie; the nearest layout counts.
    """
    errors = []
    for layout in rotation.candidates(2 * len(turned_J)):
        moved = torch.complex(*layout.pairs(before_HTD)) * turned_J
        difference = torch.complex(*layout.pairs(after_HTD)) - moved
        errors.append(float(difference.norm() / moved.norm().clamp_min(1e-30)))
    return min(errors)


@torch.no_grad()
def _local(model: Any, batch: dict[str, Tensor], label: str) -> Iterator[Check]:
    """Local layers: nothing far through them, and on a row without jumps Transformers' own."""
    span = model.config.sliding_window
    masks_given = masks.of_row(model, batch["position_ids"], batch["attention_mask"])
    terminal_T = batch["segments"][0] == TERMINAL
    positions_T = batch["position_ids"][0]
    far_T = ~terminal_T & (positions_T <= positions_T[terminal_T].min() - span)
    apart = (terminal_T[:, None] == terminal_T) & torch.ones_like(
        terminal_T[:, None] & terminal_T
    ).tril()
    if far_T.any() and isinstance(masks_given, dict):
        masks_cut = masks.of_row(
            model, batch["position_ids"], batch["attention_mask"], apart[None, None]
        )
        alone = batch | {"masks": masks_given | {families.GLOBAL: masks_cut[families.GLOBAL]}}
        other = dict(alone)
        ids = batch["input_ids"].clone()
        ids[0, far_T] = (ids[0, far_T] + 1) % model.config.vocab_size
        other["input_ids"] = ids
        alone_TH = hidden_states(model, alone)[0][0, terminal_T]
        other_TH = hidden_states(model, other)[0][0, terminal_T]
        moved, size = float((alone_TH - other_TH).abs().max()), float(alone_TH.abs().max())
        detail = f"moved by {moved:.2g} of {size:.2g} with global layers cut off"
        passed = bool(np.isfinite(moved)) and moved <= 1e-6 * size
        yield Check("local layers alone see nothing far", label, passed, detail)
    elif not isinstance(masks_given, dict):
        yield Check("local layers alone see nothing far", label, False, "one mask for all layers")

    row = batch_of(model, min(span + 16, MOST_CONTIGUOUS))
    ours = hidden_states(model, row)[0]
    theirs = hidden_states(model, row | {"masks": row["attention_mask"]})[0]
    error, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
    tokens = row["input_ids"].shape[1]
    detail = f"differ by {error:.2g} of {size:.2g} from Transformers' own over {tokens} tokens"
    yield Check("local layers without a jump", label, error <= 1e-4 * size, detail)


def _reach(model: Any, batch: dict[str, Tensor], label: str) -> Iterator[Check]:
    """Change a prefix token, look at the terminal; send a gradient from there to the prefix."""
    terminal = batch["segments"][0] == TERMINAL
    other = dict(batch)
    other["input_ids"] = batch["input_ids"].clone()
    other["input_ids"][0, 0] = (batch["input_ids"][0, 0] + 1) % model.config.vocab_size
    with torch.no_grad():
        plain = hidden_states(model, batch)[0][0, terminal]
        two = hidden_states(model, other)[0][0, terminal]
    moved = float((plain - two).abs().max())
    size = float(plain.abs().max())
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
