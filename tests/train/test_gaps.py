"""Filled gaps: a row that is a cut of a long text, its gaps holding the rest, reads as the text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from endprompt import recipe
from endprompt.cost import flops
from endprompt.cues import CueWriter
from endprompt.data.gaps import GapFiller, lead
from endprompt.data.packing import stretches
from endprompt.data.rows import RowSource, collate
from endprompt.data.tokens import TokenDocuments
from endprompt.errors import RecipeError, TextError, TrainingError
from endprompt.io.files import sha256_file
from endprompt.models import bf16_attention, families, rotation
from endprompt.models import checkpoint as models
from endprompt.models.recording import recording
from endprompt.train import activations, gaps, position_check, run
from endprompt.train.loss import hidden_states
from tiny_families import EXTENDED, tiny_known_model, tiny_model

TARGET = 96
FILLED = recipe.load("recall-anchors").replace({"rows.gaps": "filled"})
KEPT = np.r_[0:20, 44:50, 77:96]
"""A row of three segments, cut out of a text of TARGET tokens."""
MANY = np.arange(0, TARGET, 3)
"""One of 32 segments."""
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
    "attention_factor": 1.3,
}
MODELS: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "YaRN": {"rope_parameters": YARN, "max_position_embeddings": TARGET},
    "partial, side by side": {"family": "glm", "partial_rotary_factor": 0.5},
    "one local layer": {
        "family": "qwen2", "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 30, "use_sliding_window": True,
    },
}  # fmt: skip


def text_batch(tokens: int = TARGET, rows: int = 2) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 97, (rows, tokens), generator=drawn)
    return {
        "input_ids": ids,
        "position_ids": torch.arange(tokens).expand_as(ids),
        "attention_mask": torch.ones_like(ids),
        "loss_weights": torch.ones_like(ids, dtype=torch.float32),
        "segments": torch.zeros_like(ids, dtype=torch.uint8),
    }


def true_bank(model: Any, family: families.Family, batch: dict[str, torch.Tensor]) -> gaps.Bank:
    """Keys and values of the first row of a text that the model reads whole."""
    layouts = rotation.layouts(model, family)
    one = {name: column[:1] for name, column in batch.items()}
    with recording(model) as recorded, torch.no_grad():
        hidden_states(model, one)
        angles = rotation.angles(model, family, one["position_ids"], one["position_ids"][0])
    return gaps.bank_of(recorded, family, layouts, angles, kept=slice(None))


def cut(batch: dict[str, torch.Tensor], kept: Any = KEPT) -> dict[str, torch.Tensor]:
    """The row of some tokens of a text, the others in its gaps."""
    row = {name: column[:1, kept] for name, column in batch.items()}
    others = np.setdiff1d(np.arange(batch["input_ids"].shape[1]), kept)
    gap = torch.tensor(others)[None]
    return row | {"gap_positions": gap, "gap_slots": gap}


@pytest.mark.parametrize("attention", gaps.BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(MODELS))
def test_a_cut_of_a_text_reads_as_the_whole_text(
    name: str, dtype: torch.dtype, attention: str
) -> None:
    model = tiny_model(attention=attention, **MODELS[name]).to(dtype).eval()
    family = families.read(model.config)
    batch = text_batch()
    with torch.no_grad():
        whole = hidden_states(model, batch)[0][0]
    filled = gaps.FilledGaps(model, family, true_bank(model, family, batch))
    row = cut(batch)

    with torch.no_grad(), filled.of(model, row):
        tail = hidden_states(model, row)[0][0]

    error = float((tail - whole[KEPT]).abs().max())
    # norms are float32 in either
    assert error < (1e-5 if dtype == torch.float32 else 5e-7) * float(whole.abs().max())
    with torch.no_grad():
        empty = hidden_states(model, row)[0][0]
    assert torch.allclose(empty[:20], tail[:20], atol=1e-5)  # nothing is before the first gap
    assert (empty[20:] - tail[20:]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTENDED)
def test_every_family_reads_a_cut_as_the_whole(name: str) -> None:
    model = tiny_known_model(name).eval()
    family = families.read(model.config)
    filled = gaps.FilledGaps(model, family, gaps.Bank({}, {}))
    (check,) = position_check.check_gaps(model, family, family.base.window, filled)
    assert check.passed, check.detail


def test_the_position_check_catches_keys_that_are_not_turned() -> None:
    model = tiny_model(**MODELS["YaRN"]).eval()
    family = families.read(model.config)
    filled = gaps.FilledGaps(model, family, gaps.Bank({}, {}))
    (sound,) = position_check.check_gaps(model, family, TARGET, filled)
    filled._layouts = [None]
    (broken,) = position_check.check_gaps(model, family, TARGET, filled)
    assert (sound.passed, broken.passed) == (True, False)


def with_frozen_keys(model: Any, kept: Any) -> None:
    """Let the model read a text so that keys and values of other tokens have no gradient."""
    frozen = np.setdiff1d(np.arange(TARGET), kept)

    def forward(module: Any, query: Any, key: Any, value: Any, mask: Any, **rest: Any) -> Any:
        key, value = key.clone(), value.clone()
        key[:, :, frozen] = key[:, :, frozen].detach()
        value[:, :, frozen] = value[:, :, frozen].detach()
        return sdpa_attention_forward(module, query, key, value, mask, **rest)

    AttentionInterface.register("frozen_keys", forward)
    AttentionMaskInterface.register("frozen_keys", sdpa_mask)
    model.set_attn_implementation("frozen_keys")


@pytest.mark.parametrize("keeps", ["all", "layers", "matmuls"])
def test_gradients_are_those_of_the_whole_text_with_frozen_keys(keeps: str) -> None:
    model = tiny_model(**MODELS["YaRN"])
    family = families.read(model.config)
    batch = {name: column[:1] for name, column in text_batch().items()}
    bank = true_bank(model, family, batch)
    asked_TH = torch.randn(len(KEPT), 64, generator=torch.Generator().manual_seed(1))
    with_frozen_keys(model, KEPT)
    (hidden_states(model, batch)[0][0, KEPT] * asked_TH).sum().backward()
    wanted = {name: weight.grad.clone() for name, weight in model.named_parameters()
              if weight.grad is not None}  # fmt: skip
    model.zero_grad()
    model.set_attn_implementation("sdpa")

    filled = gaps.FilledGaps(model, family, bank)
    if keeps != "all":
        matmuls = partial(create_selective_checkpoint_contexts, partial(activations._policy, 96))
        model.activation_checkpointing_enable(
            {"use_reentrant": False} | ({"context_fn": matmuls} if keeps == "matmuls" else {})
        )
    row = cut(batch)
    with filled.of(model, row):
        hidden = hidden_states(model, row)[0][0]
    (hidden * asked_TH).sum().backward()  # outside, as a training step's

    found = {name: weight.grad for name, weight in model.named_parameters()}
    assert len(wanted) > 10
    for name, gradient in wanted.items():
        if "embed" in name:  # of the others too, which the row does not hold
            continue
        assert torch.allclose(found[name], gradient, atol=1e-4, rtol=1e-4), name


@pytest.mark.parametrize(
    ("name", "kept", "calls"),
    [
        ("YaRN", KEPT, 2 * (3 + 2)),  # segments with keys of gaps before them are made twice
        ("one local layer", KEPT, 3 + 2),
        ("YaRN", MANY, 0),  # segments that share a part see different keys of gaps
    ],
)
def test_filled_rows_train_by_bf16_matmuls_as_with_sdpa(
    monkeypatch: pytest.MonkeyPatch, name: str, kept: Any, calls: int
) -> None:
    attended = mock.Mock(wraps=bf16_attention.attend)
    monkeypatch.setattr(bf16_attention, "attend", attended)
    model = tiny_model(**MODELS[name])
    family = families.read(model.config)
    batch = {name: column[:1] for name, column in text_batch().items()}
    filled = gaps.FilledGaps(model, family, true_bank(model, family, batch))
    row = cut(batch, kept)
    gradients = []
    for fast in (False, True):
        monkeypatch.setattr(bf16_attention, "_fast_matmuls", lambda fast=fast: fast)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), filled.of(model, row):
            hidden_states(model, row)[0].float().square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()
                                    if p.grad is not None]))  # fmt: skip
    assert attended.call_count == calls
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.02


def test_operations_of_filled_gaps_are_those_that_torch_counts() -> None:
    model = tiny_model(attention="eager")
    family = families.read(model.config)
    batch = text_batch()
    filled = gaps.FilledGaps(model, family, true_bank(model, family, batch))

    def counted(row: dict[str, Any]) -> tuple[int, int]:
        with FlopCounterMode(display=False) as counter:
            with filled.of(model, row):
                hidden = hidden_states(model, row)[0]
            hidden.sum().backward()
        pairs = np.searchsorted(row["gap_positions"][0].numpy(), row["position_ids"][0].numpy())
        return counter.get_total_flops(), int(pairs.sum())

    row = cut(batch)
    few = row | {name: row[name][:, [0, -1]] for name in ("gap_positions", "gap_slots")}
    (all_flops, all_pairs), (few_flops, few_pairs) = counted(row), counted(few)

    decoder = flops.read(model.config)
    step = [flops.training(decoder, 45, gap_pairs=n).total for n in (all_pairs, few_pairs)]
    # what is made again ends at the last number that a gradient needs: here before the values
    assert all_flops - few_flops == pytest.approx(7 / 8 * (step[0] - step[1]), rel=1e-6)


def test_rows_of_a_batch_have_their_own_gaps_and_padding_changes_nothing() -> None:
    model = tiny_model().eval()
    family = families.read(model.config)
    batch = text_batch()
    filled = gaps.FilledGaps(model, family, true_bank(model, family, batch))
    rows = [cut(batch), cut(batch, np.r_[0:9, 50:60])]
    examples = [{name: column[0].numpy() for name, column in row.items()} for row in rows]

    together = collate(examples)

    with torch.no_grad():
        with filled.of(model, together):
            both = hidden_states(model, together)[0]
        for n, row in enumerate(rows):
            with filled.of(model, row):
                alone = hidden_states(model, row)[0][0]
            assert torch.allclose(both[n, : len(alone)], alone, atol=1e-5)


def test_a_row_of_many_segments_is_read_in_a_few_parts() -> None:
    model = tiny_model(**MODELS["one local layer"]).double().eval()
    family = families.read(model.config)
    batch = text_batch()
    with torch.no_grad():
        whole = hidden_states(model, batch)[0][0]
    filled = gaps.FilledGaps(model, family, true_bank(model, family, batch))
    kept = np.arange(0, TARGET, 3)
    row = cut(batch, kept)
    with torch.no_grad(), filled.of(model, row):
        tail = hidden_states(model, row)[0][0]
    assert float((tail - whole[kept]).abs().max()) < 1e-6


@pytest.mark.parametrize("name", list(MODELS))
def test_how_keys_turn_is_seen_in_bf16_too(name: str) -> None:
    model = tiny_model(**MODELS[name]).eval()
    family = families.read(model.config)
    wanted = rotation.layouts(model, family)
    assert rotation.layouts(model.to(torch.bfloat16), family) == wanted


def test_another_attention_is_refused_by_name() -> None:
    model = tiny_model()
    family = families.read(model.config)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(TrainingError, match="sdpa and eager, not with 'flex_attention'"):
        gaps.FilledGaps(model, family, gaps.Bank({}, {}))


def test_a_row_meets_other_text_only_and_all_of_its_gaps() -> None:
    rng = np.random.default_rng(0)
    documents = TokenDocuments.from_arrays([rng.integers(3, 90, 640)])
    filler = GapFiller(stretches(documents, 64, 0), keys=500, bank=10_000, seed=0)
    assert filler.tokens == 10 * (64 - 8) == sum(len(p) - lead(p) for p in filler.pieces)
    tokens = np.concatenate([piece[lead(piece) :] for piece in filler.pieces])
    positions = np.r_[0:30, 200:220, 500:514]
    text = filler.pieces[3]

    filling = filler.fill(positions, text, rng)

    assert len(filling.positions_G) == 450
    assert np.array_equal(np.union1d(positions, filling.positions_G), np.arange(514))
    shown = tokens[filling.slots_G]
    assert not set(filling.slots_G) & set(range(3 * 56, 4 * 56))
    assert len(np.unique(shown[:56])) > 20

    some = GapFiller(stretches(documents, 64, 0), keys=100, bank=50, seed=0)
    filling = some.fill(positions, text, rng)
    assert len(filling.positions_G) == 100
    assert some.tokens == 50
    assert np.diff(filling.positions_G).max() <= 5 + 20


def test_filled_rows_are_those_with_empty_gaps_and_keys_beside_them(tiny: Path) -> None:
    rng = np.random.default_rng(0)
    documents = TokenDocuments.from_arrays([rng.integers(0, 256, 3000)])
    cues = CueWriter(models.load_tokenizer(str(tiny)))
    chosen = FILLED.replace({"rows.tokens": 128})
    empty = chosen.replace({"rows.gaps": "empty"})
    sources = [
        RowSource(documents, one.rows, cues, target=512, seed=1, count=8) for one in (chosen, empty)
    ]
    for index in range(8):
        filled, plain = (source.row(index) for source in sources)
        assert np.array_equal(filled.positions_T, plain.positions_T)
        assert np.array_equal(filled.tokens_T, plain.tokens_T)
        assert plain.filling is None
        count = filled.positions_T[-1] + 1 - 128
        assert filled.filling is not None
        assert len(filled.filling.positions_G) == count
        assert np.array_equal(filled.filling.slots_G, sources[0].row(index).filling.slots_G)


def test_one_stretch_of_text_cannot_fill_gaps() -> None:
    documents = TokenDocuments.from_arrays([np.arange(100)])
    with pytest.raises(TextError, match="one stretch of 64 tokens"):
        GapFiller(stretches(documents, 64, 0), keys=10, bank=10, seed=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows.document_mask": True}, "document_mask"),
        ({"training.attention": "shifted"}, "attention full"),
    ],
)
def test_settings_that_hide_gaps_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        FILLED.replace(changes)


def test_rows_past_the_window_are_refused() -> None:
    chosen = FILLED.replace({"rows.tokens": 256})
    with pytest.raises(RecipeError, match="past the window of 128"):
        chosen.resolve(window=128, target=1024, gpu=False)


class Killed(Exception):
    pass


def test_training_with_filled_gaps_resumes_bit_for_bit(tiny: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = TokenDocuments.from_arrays([rng.integers(0, 256, n) for n in (3000, 1500)])
    chosen = (
        FILLED
        .replace({
            "rows.kinds.0.terminal.recall": {"verbatim": 2, "cue_tokens": (4, 6),
                                             "answer_tokens": (4, 6)},
            "rows.tokens": 128, "training.tokens": 128 * 2 * 4, "training.tokens_per_step": 256,
            "training.save_steps": 2,
        })
        .resolve(window=128, target=512, gpu=False)
    )  # fmt: skip
    assert (chosen.rows.gap_keys, chosen.rows.gap_bank) == (384, 384)

    def train(out: str, kill_at: int | None = None) -> run.Trained:
        def progress(state: dict[str, Any]) -> None:
            if state["done"] == kill_at:
                raise Killed

        return run.train(
            chosen, model=str(tiny), documents=documents, target=512, out=tmp_path / out,
            progress=progress,
        )  # fmt: skip

    whole = train("whole")
    with pytest.raises(Killed):
        train("parts", 3)
    parts = train("parts")

    assert parts.resumed_at == [2]
    weights = [
        sha256_file(tmp_path / out / "model/model.safetensors") for out in ("whole", "parts")
    ]
    assert weights[0] == weights[1]
    names = {check["name"]: check["passed"] for check in whole.position_check}
    assert names["keys in gaps stand as their text would"]
    assert "endprompt" not in (tmp_path / "whole/model/config.json").read_text()
    plain = chosen.replace({"rows.gaps": "empty"})
    plain = run.train(
        plain, model=str(tiny), documents=documents, target=512, out=tmp_path / "plain"
    )
    assert plain.curve[0]["loss"] != whole.curve[0]["loss"]
    assert plain.flops < whole.flops
