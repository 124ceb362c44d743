"""Documents to training rows: a row is a function of seed and index alone.

Whatever the number of workers or ranks, row `i` of a run is the same, so that resuming needs no
loader state. Which stretch of text a row shows is reshuffled every epoch; which kind of row it
is follows a low-discrepancy sequence, so that shares hold over any run of neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from endprompt import positions
from endprompt.cues import Content, CueWriter, Segment
from endprompt.data import exposure
from endprompt.data.gaps import Filling, GapFiller
from endprompt.data.packing import Documents, stretches
from endprompt.errors import RecipeError
from endprompt.positions import Ints
from endprompt.recipe import Kind, Prefix, Rows, Terminal

if TYPE_CHECKING:
    import torch

PREFIX, TERMINAL = 0, 1
IGNORED = -100
GOLDEN = 0.6180339887498949
GAP_ROWS = 64
"""Rows on which it is counted what filled gaps cost."""
EXPOSED_ROWS = 64
"""Rows, spread over the run, on which it is counted how much context trained tokens have."""


@dataclass(frozen=True)
class Row:
    """One training row of T physical tokens."""

    tokens_T: Ints
    positions_T: Ints
    weights_T: NDArray[np.float32]
    """Loss weight of predicting each token from those before it; that of the first is unused."""
    segments_T: NDArray[np.uint8]
    """PREFIX or TERMINAL of each token."""
    filling: Filling | None = None
    """Keys of other text between the tokens; None: the gaps are empty."""


class RowSource:
    """Training rows of a recipe, by index; a map-style dataset for a PyTorch loader.

    rows.tokens must be a number by now. Rows whose stretch is too short for their terminal are
    an error, never contiguous rows in silence.
    """

    def __init__(
        self,
        documents: Documents,
        rows: Rows,
        cues: CueWriter,
        *,
        target: int,
        seed: int,
        count: int,
    ) -> None:
        assert isinstance(rows.tokens, int), "rows.tokens is resolved before rows are made"
        self._stretches = stretches(documents, rows.tokens, seed, rows.pack)
        self._last = _last_of_document(documents) if rows.document_mask else None
        self._rows, self._cues, self._target, self._seed = rows, cues, target, seed
        self._shares = np.cumsum([kind.share for kind in rows.kinds])
        self._count = count
        self.filler: GapFiller | None = None
        """What fills the gaps of rows; None: they are empty."""
        if rows.gaps == "filled":
            amounts = rows.gap_amounts(target - rows.tokens)
            self.filler = GapFiller(
                self._stretches, keys=amounts["gap_keys"], bank=amounts["gap_bank"], seed=seed
            )

    def __len__(self) -> int:
        return self._count

    @property
    def epochs(self) -> float:
        """How often the text is seen."""
        return self._count / len(self._stretches)

    def kind(self, index: int) -> Kind:
        """The kind of row `index`; shares hold to within one row over any run of rows."""
        place = (0.5 + index * GOLDEN) % 1.0 * self._shares[-1]
        return self._rows.kinds[int(np.searchsorted(self._shares, place, side="right"))]

    def row(self, index: int) -> Row:
        """Row `index`, the same for the same seed whoever asks."""
        row = self._assembled(index)
        if self._rows.far_weight:
            weights_T = self._far_weights[self._octaves(row)]
            row = replace(row, weights_T=row.weights_T * weights_T)
        if self.filler is None:
            return row
        drawn = np.random.default_rng([self._seed, index, 5])
        return replace(
            row, filling=self.filler.fill(row.positions_T, self._stretches[index], drawn)
        )

    def _assembled(self, index: int) -> Row:
        """Row `index` with its kind's weights and empty gaps."""
        rng = np.random.default_rng([self._seed, index, 1])
        kind, text_T = self.kind(index), self._stretches[index]
        content = Content(text_T, [])
        if kind.terminal is not None:
            content = self._cues.write(kind.terminal, text_T, rng)
        stops = None
        if kind.prefix.layout == "longrecipe":
            stops = np.flatnonzero(np.isin(content.prefix_P, self._cues.sentence_ends()))
        return assemble(
            content.prefix_P,
            content.terminals,
            kind.prefix,
            kind.terminal,
            target=self._target,
            rng=rng,
            stops=stops,
            reach=min((index + 1) / self._count, 1.0) if kind.prefix.grows else 1.0,
            weights_P=content.weights_P,
        )

    @cached_property
    def _far_weights(self) -> NDArray[np.float32]:
        """Factor of the loss weight of each octave of context, from what the run's rows train."""
        counts = np.zeros(1 + exposure.EDGES, np.int64)
        for index in np.linspace(0, self._count - 1, min(EXPOSED_ROWS, self._count)).astype(int):
            row = self._assembled(int(index))
            trained = row.weights_T[1:] > 0
            counts += np.bincount(self._octaves(row)[1:][trained], minlength=len(counts))
        if not counts[1:].any():
            raise RecipeError(
                f"rows.far_weight is {self._rows.far_weight:g}, and no token that is trained has "
                f"{self._target // exposure.TAIL} positions before it, a quarter of the target of "
                f"{self._target}: take rows that jump, or set it to 0"
            )
        return exposure.weights(counts, self._rows.far_weight)

    def _octaves(self, row: Row) -> Ints:
        documents_T = None if self._last is None else _documents(row.tokens_T, self._last)
        contexts_T = exposure.contexts(row.positions_T, documents_T, row.segments_T == TERMINAL)
        return exposure.octaves(contexts_T, self._target)

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        row = self.row(index)
        example = {
            "input_ids": row.tokens_T,
            "position_ids": row.positions_T,
            "loss_weights": row.weights_T,
            "segments": row.segments_T,
        }
        if row.filling is not None:
            example["gap_positions"], example["gap_slots"] = row.filling
        if self._last is not None:
            example["documents"] = _documents(row.tokens_T, self._last)
        return example

    def gap_pairs(self, rows: int = GAP_ROWS) -> float:
        """Query-key pairs with keys in gaps that a row has, the mean of the first so many."""
        if self.filler is None:
            return 0.0
        return gap_pairs(self.row(index) for index in range(min(rows, len(self))))

    @property
    def left_out_tokens(self) -> int:
        """Tokens of the documents that no row shows."""
        return self._stretches.left_out_tokens


def _documents(tokens_T: Ints, last: int) -> Ints:
    """Number of each token's document, which ends with the id `last`."""
    return np.cumsum(tokens_T == last) - (tokens_T == last)


def _last_of_document(documents: Documents) -> int:
    """The id that each document ends with, which separates those of a packed row."""
    eos = getattr(documents, "eos", None)
    if eos is None:
        raise RecipeError(
            "rows.document_mask needs documents that end with an end-of-sequence token"
        )
    return int(eos)


def assemble(
    prefix_P: Ints,
    terminals: list[Segment],
    prefix: Prefix,
    terminal: Terminal | None,
    *,
    target: int,
    rng: np.random.Generator,
    stops: Ints | None = None,
    reach: float = 1.0,
    weights_P: NDArray[np.float32] | None = None,
) -> Row:
    """Give positions to a prefix and its terminals; raises PositionError when they don't fit.

    stops  int[k], indices in the prefix where its sentences end: what `longrecipe` asks for
    reach  part of the room beyond the prefix's own length that its layout may fill, 0 to 1
    weights_P  float[P], loss weights as multiples of `prefix.weight`; None: all 1
    """
    if weights_P is None:
        weights_P = np.ones(len(prefix_P), np.float32)
    lengths = [len(segment.tokens) for segment in terminals]
    room = len(prefix_P) + int(reach * (target - sum(lengths) - len(prefix_P)))
    first = positions.LAYOUTS[prefix.layout](
        len(prefix_P), target=room, rng=rng, chunks=prefix.chunks, stops=stops
    )
    rest: list[Ints] = []
    if terminal is not None:
        after, pieces = int(first[-1]) + 1, terminal.pieces
        rest = positions.PLACES[terminal.place](
            lengths, after=after, target=target, rng=rng, pieces=pieces
        )
    return Row(
        np.concatenate([prefix_P, *(segment.tokens for segment in terminals)]),
        np.concatenate([first, *rest]),
        np.concatenate(
            [
                np.float32(prefix.weight) * weights_P,
                *(segment.weights for segment in terminals),
            ]
        ),
        np.repeat(np.array([PREFIX, TERMINAL], np.uint8), [len(prefix_P), sum(lengths)]),
    )


def gap_pairs(rows: Iterable[Row]) -> float:
    """Query-key pairs with keys in gaps, of a mean row: what filled gaps cost in attention."""
    pairs = [
        0 if row.filling is None
        else int(np.searchsorted(row.filling.positions_G, row.positions_T).sum())
        for row in rows
    ]  # fmt: skip
    return float(np.mean(pairs)) if pairs else 0.0


def collate(examples: Iterable[dict[str, NDArray[Any]]]) -> dict[str, torch.Tensor]:
    """Rows to one batch: int64[B, T] ids, positions, mask; float32[B, T] weights; segments.

    One example a row and an explicit mask of ones: without it Transformers takes the jump for
    the border between two packed sequences and hides the prefix from the terminal. Shorter rows
    are padded on the right, masked and weighed nothing. Where rows keep their documents apart,
    `visible` bool[B, 1, T, T] says which token (last axis) each token attends to. Where gaps are
    filled, `gap_positions` and `gap_slots` int64[B, G] say where which keys stand; -1: no key.
    """
    import torch

    examples = list(examples)
    longest = max(len(example["input_ids"]) for example in examples)

    def stack(key: str, fill: float, dtype: torch.dtype) -> torch.Tensor:
        longest = max(len(example[key]) for example in examples)
        return torch.tensor(
            np.stack(
                [
                    np.pad(example[key], (0, longest - len(example[key])), constant_values=fill)
                    for example in examples
                ]
            ),
            dtype=dtype,
        )

    lengths = np.array([len(example["input_ids"]) for example in examples])
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    batch = {
        "input_ids": stack("input_ids", 0, torch.int64),
        "position_ids": stack("position_ids", 0, torch.int64),
        "attention_mask": torch.from_numpy(mask),
        "loss_weights": stack("loss_weights", 0, torch.float32),
        "segments": stack("segments", PREFIX, torch.uint8),
    }
    if "gap_positions" in examples[0]:
        batch["gap_positions"] = stack("gap_positions", -1, torch.int64)
        batch["gap_slots"] = stack("gap_slots", -1, torch.int64)
    if "documents" in examples[0]:
        batch["visible"] = torch.from_numpy(
            np.stack([_visible(example, longest) for example in examples])
        )
    return batch


def _visible(example: dict[str, NDArray[Any]], longest: int) -> NDArray[np.bool_]:
    """bool[1, T, T]: the past within the same document; a terminal sees all of the prefix."""
    T = len(example["documents"])
    documents, terminal = example["documents"], example["segments"] == TERMINAL
    visible = np.eye(longest, dtype=bool)  # padding sees itself: a softmax over nothing is NaN
    past = np.tri(T, dtype=bool)
    visible[:T, :T] = past & ((documents[:, None] == documents) | terminal[:, None])
    return visible[None]
