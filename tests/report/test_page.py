"""The page: well-formed, self-contained, safe, complete, and honest about what is absent."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import html5lib
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from run_sample import sample

from endprompt.errors import DataError
from endprompt.report import figures, page
from endprompt.report.run_files import read

HTML = "{http://www.w3.org/1999/xhtml}"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{7*7}} $x^2$"


def parsed(text: str) -> ElementTree.Element:
    """The page's tree; raises on anything that the HTML standard calls a parse error."""
    return html5lib.HTMLParser(strict=True).parse(text)


@pytest.fixture(scope="module")
def made() -> str:
    return page.render(json.loads(json.dumps(sample())))


@pytest.fixture(scope="module")
def tree(made: str) -> ElementTree.Element:
    return parsed(made)


def text_of(tree: ElementTree.Element) -> str:
    return " ".join("".join(tree.itertext()).split())


def poisoned(value: Any) -> Any:
    """Every string of a record made hostile, keys and numbers left."""
    if isinstance(value, dict):
        return {key: poisoned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value


def test_page_is_well_formed_and_starts_with_the_verdict(tree: ElementTree.Element) -> None:
    main = tree.find(f"{HTML}body/{HTML}main")
    assert main is not None
    first = main[0]
    assert first.get("id") == "verdict"
    assert "Past the old window of 8,192 tokens" in text_of(first)


def test_page_refers_to_nothing_outside_itself(tree: ElementTree.Element) -> None:
    for element in tree.iter():
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] in ("href", "src", "action", "data", "poster", "srcset"):
                assert value.startswith("#") or value == "data:,", (element.tag, name, value)
            assert "url(" not in value or value.startswith("url(#")
    style = tree.find(f".//{HTML}style")
    assert style is not None
    assert "url(" not in (style.text or "")
    assert "@import" not in (style.text or "")


def test_policy_names_the_script_and_style_by_hash_and_no_inline_style_is_left(
    tree: ElementTree.Element,
) -> None:
    policy = next(
        meta.get("content", "")
        for meta in tree.iter(f"{HTML}meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        [element] = tree.iter(f"{HTML}{tag}")
        digest = base64.b64encode(hashlib.sha256((element.text or "").encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for element in tree.iter():
        for name in element.attrib:
            assert name != "style"
            assert not name.startswith("on")


def test_hostile_text_stays_text(run: dict[str, Any]) -> None:
    made = page.render(poisoned(run))
    tree = parsed(made)
    assert len(list(tree.iter(f"{HTML}script"))) == 1
    assert not list(tree.iter(f"{HTML}img"))
    assert "<script>alert(1)</script>" in text_of(tree)
    assert "{{7*7}}" in text_of(tree)


def test_ids_are_unique_and_labels_point_somewhere(tree: ElementTree.Element) -> None:
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in tree.iter():
        for pointed in (element.get("aria-labelledby") or "").split():
            assert pointed in ids
        if element.tag == f"{HTML}a":
            assert element.attrib["href"][1:] in ids


def test_every_figure_is_named_and_described(tree: ElementTree.Element) -> None:
    drawn = [element for element in tree.iter() if element.tag.endswith("}svg")]
    assert len(drawn) == 5
    for svg in drawn:
        assert svg.get("role") == "img"
        names = [element.tag.rpartition("}")[2] for element in svg[:2]]
        assert names == ["title", "desc"]
        assert all(len(text_of(element)) > 5 for element in svg[:2])


def test_tables_have_captions_and_headers(tree: ElementTree.Element) -> None:
    found = list(tree.iter(f"{HTML}table"))
    assert len(found) >= 10
    for table in found:
        assert table[0].tag == f"{HTML}caption"
        assert all(head.get("scope") in ("col", "row") for head in table.iter(f"{HTML}th"))


def test_what_is_absent_is_said(run: dict[str, Any]) -> None:
    for absent in ("arms", "example_row", "coverage", "command"):
        del run[absent]
    shown = text_of(parsed(page.render(run)))
    for said in (
        "No arm of this run was trained",
        "results are not measured",
        "recorded no training row",
        "distances trained were not recorded",
        "No training curve was recorded",
        "command was not recorded",
    ):
        assert said in shown


def test_distances_of_the_example_row_stand_in_for_those_of_the_run(run: dict[str, Any]) -> None:
    del run["coverage"]
    drawn = figures.coverage(run)
    assert drawn is not None
    # 984 + 40 tokens at both ends of 16,384: distances 0..983 and 15,361..16,383.
    assert "the training row shown above trains 2,007 of 16,384 distances" in drawn.description
    run["example_row"]["segments"].reverse()
    assert figures.coverage(run) is None


def test_an_arm_without_evaluation_is_shown_as_not_measured(run: dict[str, Any]) -> None:
    run["arms"][3]["evaluation"] = None
    assert "not measured" in text_of(parsed(page.render(run)))


paths = st.lists(st.integers(0, 10**6), min_size=1, max_size=8)


@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(holes=paths)
def test_page_survives_any_part_of_the_record_missing(holes: list[int]) -> None:
    record = json.loads(json.dumps(sample()))
    for hole in holes:
        # Walk down at random and take one optional key out: never one inside a measured value.
        at: Any = record
        for _ in range(hole % 3):
            inner = [value for value in at.values() if isinstance(value, dict)] or [at]
            inner += [one for one in (at.get("arms") or []) if isinstance(one, dict)]
            at = inner[hole % len(inner)]
        keys = [key for key in at if key not in ("name", "mean", "recipes")]
        if keys:
            at[keys[hole % len(keys)]] = None
    parsed(page.render(record))


def test_several_runs_are_set_side_by_side(run: dict[str, Any]) -> None:
    other = json.loads(json.dumps(run))
    whole = page.combined({"one": run, "two": other})
    # Untrained arms are equal, so they stand there once: 2 + 3 trained + 3 trained.
    assert len(whole["arms"]) == 8
    tree = parsed(page.render_all({"one": run, "two": other}))
    assert "2 runs compared: one, two" in text_of(tree)
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_runs_on_other_texts_are_not_paired(run: dict[str, Any]) -> None:
    other = json.loads(json.dumps(run))
    other["text"]["sha256"] = "ee" * 32
    made = page.render_all({"one": run, "two": other})
    assert "do not share one text" in text_of(parsed(made))
    whole = page.combined({"one": run, "two": other})
    assert '"values"' not in json.dumps(whole["arms"])


def test_files_are_written_beside_the_page(run: dict[str, Any], tmp_path: Path) -> None:
    written = page.write({"run": run}, tmp_path / "r.html", assets=tmp_path / "files")
    names = {path.name for path in written}
    assert {"r.html", "needles.svg", "needles.png", "comparisons.csv", "loss_by_length.md"} <= names
    assert all(path.stat().st_size > 30 for path in written)
    drawing = ElementTree.parse(tmp_path / "files" / "training.svg")
    assert "var(" not in ElementTree.tostring(drawing.getroot(), encoding="unicode")


def test_same_record_gives_the_same_page(run: dict[str, Any], made: str) -> None:
    assert page.render(run) == made


def test_page_ships_in_the_package() -> None:
    shipped = Path(page.__file__).parent / "template"
    assert {path.name for path in shipped.iterdir()} >= {"page.html", "page.css", "page.js"}
    assert not re.search(r"https?://", (shipped / "page.html").read_text())


def test_a_folder_without_a_record_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run\.json"):
        read(tmp_path)
    file = tmp_path / "run.json"
    for text, match in (("{", "is not whole JSON"), ("{}", "lacks arms"), ('{"arms":[]}', None)):
        file.write_text(text)
        if match:
            with pytest.raises(DataError, match=match):
                read(tmp_path)
    file.write_text('{"arms": [], "schema_version": 99}')
    with pytest.raises(DataError, match="schema_version 99"):
        read(tmp_path)
