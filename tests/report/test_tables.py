"""Tables are the same data as HTML, CSV and Markdown, and never run as anything else."""

from __future__ import annotations

import csv
import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from endprompt.report import tables
from endprompt.report.run_files import METRICS
from endprompt.report.tables import Cell, Table


def test_target_has_a_column_even_when_nobody_measured_it(run: dict[str, Any]) -> None:
    for table in tables.results(run):
        assert table.columns[-1] == "16,384 (past the window, target)"
        assert {row[-1].text for row in table.rows} == {tables.ABSENT}


def test_every_arm_has_a_row_with_its_interval(run: dict[str, Any]) -> None:
    table = tables.by_length(run, METRICS[0])
    assert table is not None
    assert [row[0].text for row in table.rows] == [arm["label"] for arm in run["arms"]]
    assert all(row[1].note.startswith("[") for row in table.rows)


def test_loss_on_key_tokens_stands_beside_the_loss_where_it_was_asked(run: dict[str, Any]) -> None:
    assert "key_loss_by_length" not in [table.name for table in tables.results(run)]
    for n, arm in enumerate(run["arms"]):
        values = [3.0 - 0.1 * n + 0.01 * k for k in range(20)]
        cell = {"mean": float(sum(values) / 20), "values": values}
        arm["evaluation"]["key_loss"] = {"8192": cell}
    names = [table.name for table in tables.results(run)]
    assert names[:2] == ["loss_by_length", "key_loss_by_length"]
    compared = tables.compared(run)
    assert compared is not None
    said = [row for row in compared.rows if row[0].text.startswith("Loss on key tokens")]
    assert [row[1].text for row in said] == ["8,192"] * (len(run["arms"]) - 1)


def test_cost_sets_the_plan_beside_what_was_measured(run: dict[str, Any]) -> None:
    table = tables.costs(run)
    assert table is not None
    planned, first = table.rows[:2]
    assert [cell.text for cell in planned][1:] == ["28", "28,672", "3.00e+13", "3.7", "4.6"]
    assert [cell.text for cell in first][1:] == ["28", "28,672", "3.10e+13", "3.8", "4.3"]


def test_failed_check_is_shown_as_failed(run: dict[str, Any]) -> None:
    run["position_check"][0]["passed"] = False
    table = tables.position_check(run)
    assert table is not None
    assert [row[2].text for row in table.rows] == ["FAILED", "passed"]


texts = st.text(max_size=20)


@given(st.lists(texts, min_size=1, max_size=4))
def test_csv_round_trips_and_holds_no_formula(words: list[str]) -> None:
    table = Table("t", "t", tuple(words), (tuple(Cell(word) for word in words),))
    read = list(csv.reader(io.StringIO(table.csv(), newline="")))
    assert len(read) == 2
    for cell, word in zip(read[1], words, strict=True):
        assert cell.removeprefix("'") == " ".join(word.split()).removeprefix("'")
        risky = cell[:1] in tuple("=+-@")
        assert not risky or tables._is_number(cell.split(" ")[0])


@given(st.lists(texts, min_size=1, max_size=4))
def test_markdown_keeps_its_columns_whatever_the_text(words: list[str]) -> None:
    table = Table("t", "t", tuple(words), (tuple(Cell(word) for word in words),))
    for line in table.markdown().split("\n")[:-1]:
        bare = line.replace("\\\\", "").replace("\\|", "")
        assert bare.count("|") == len(words) + 1
