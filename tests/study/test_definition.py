"""Study files: every shipped one builds, mistakes are named, equal arms are one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from endprompt.errors import RecipeError
from endprompt.study import definition
from endprompt.study.definition import Arm

PAPER = {
    "table 1", "table 2", "table 3", "table 4", "table 5", "table 6", "table 7", "table 8",
    "table 9", "figure 2", "figure 3", "figure 4",
}  # fmt: skip


@pytest.mark.parametrize("name", definition.names())
def test_every_shipped_study_builds_and_says_why_a_scale_has_no_meaning(name: str) -> None:
    study = definition.load(name)
    for scale in definition.SCALES:
        assert study.arms_at(scale) or study.absent[scale]
    assert study.main in study.arms
    if study.source.startswith(("table", "figure")):
        assert study.arms_at("paper") == study.arms
        assert any(measure.paper for measure in study.measures)


def test_every_table_and_figure_of_the_paper_has_a_study() -> None:
    sources = " ".join(
        f"{one.source} {' '.join(measure.source for measure in one.measures)}"
        for one in map(definition.load, definition.names())
    )
    covered = {what for what in PAPER if what in sources}
    covered |= {f"table {n}" for n in (3, 4) if "tables 3 and 4" in sources}
    assert covered == PAPER


def test_the_unprinted_table_follows_from_the_printed_ones() -> None:
    by_name = {one.name: one.paper for one in definition.load("ruler").measures}
    for arm, mean in by_name["4K to 64K"].items():
        printed = sum(by_name[name][arm] for name in ("4K", "8K, the window", "16K", "32K"))
        assert by_name["64K, the target"][arm] == pytest.approx(5 * mean - printed, abs=0.005)


def test_equal_arms_have_one_name_and_settings_another() -> None:
    plain, same = Arm(recipe="endprompt"), Arm(recipe="endprompt", note="said otherwise")
    changed = Arm(recipe="endprompt", set={"rows.kinds.0.terminal.cue": "ep3"})
    assert plain.built() == same.built()
    assert changed.built().name != plain.built().name
    assert Arm(recipe="endprompt", tokens=0.5).built().name == "endprompt-x0.5"


SMALL = {
    "title": "t", "source": "table 1", "claim": "c", "main": "a",
    "arms": {"a": {"recipe": "pose"}, "b": {"recipe": "short"}},
    "measures": [{"name": "m", "table": "x", "benchmark": "ruler", "source": "table 1",
                  "paper": {"a": 2.0, "b": 1.0}}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"main": "c"}, "main 'c' is no arm"),
        (
            {"arms": {"a": {"recipe": "pos"}}},
            "arm 'a': unknown method 'pos' (did you mean",
        ),
        ({"arms": {"a": {"recipe": "pi"}}}, "arm 'a': 'pi' trains nothing"),
        ({"arms": {"a": {"recipe": "pose", "traget": 4}}}, "did you mean 'target'?"),
        ({"arms": {"a": {"recipe": "pose", "set": {"rows.nope": 1}}}}, "arm 'a':"),
        ({"arms": {"a": {"recipe": "pose"}}}, "measure 'm': no arm 'b'"),
    ],
)
def test_a_mistake_in_a_file_is_named(change: dict, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SMALL))
    assert definition.load(tmp_path / "mine.yaml").name == "mine"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SMALL | change))
    with pytest.raises(RecipeError) as error:
        definition.load(tmp_path / "mine.yaml")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_name_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'ruler'"):
        definition.load("rulre")
