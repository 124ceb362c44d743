"""Rows piece by piece, and how many rows documents hold."""

from __future__ import annotations

import numpy as np

from endprompt.data.describe import RowsHeld, Section, rows_held, sections
from endprompt.data.rows import Row

ROW = Row(
    tokens_T=np.arange(6),
    positions_T=np.array([2, 3, 4, 10, 11, 12]),
    weights_T=np.array([1, 1, 1, 0, 0, 1], np.float32),
    segments_T=np.array([0, 0, 0, 1, 1, 1], np.uint8),
)


def test_a_row_is_cut_at_its_jumps_and_where_its_kind_changes() -> None:
    assert sections(ROW) == [
        Section(0, 3, 2, 4, 2, "prefix", 1.0),
        Section(3, 6, 10, 12, 5, "terminal", 0.0),
    ]


def test_questions_and_answers_are_apart_by_weight() -> None:
    ends = [(section.start, section.stop) for section in sections(ROW, by_weight=True)]
    assert ends == [(0, 3), (3, 5), (5, 6)]


def test_rows_are_counted_uncut_and_packed() -> None:
    assert rows_held(np.array([10, 25, 9]), 10) == RowsHeld(2, 35 / 44, 3, 4)
