"""Studies on toy bases: runs shared and kept, a page that says what they are worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from endprompt.cli.app import run
from endprompt.lab.arms import Regime
from endprompt.lab.model import Base
from endprompt.study import compare, definition, page
from endprompt.study.definition import Study
from endprompt.study.laboratory import Laboratory

TITLE = "<script>alert(1)</script>"


def tiny(name: str, title: str, **arms: dict) -> Study:
    measures = [
        {"name": "m", "table": "x", "benchmark": "ruler", "source": "table 1", "at": [1, 2],
         "paper": {"a": 2.0, "b": 1.0}},
        {"name": "c", "table": "x", "benchmark": "flops", "unit": "times", "source": "figure 4"},
        {"name": "k", "table": "x", "benchmark": "ruler", "kinds": ["chain"], "source": "table 1"},
    ]  # fmt: skip
    return Study.model_validate(
        {"name": name, "title": title, "source": "table 1", "claim": "c", "main": "a",
         "arms": arms, "measures": measures}
    )  # fmt: skip


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> tuple[Laboratory, list[Study]]:
    base = Base(width=32, mlp=16, steps=3, tokens_per_step=256)
    regime = Regime(base=base, tokens_per_step=256, steps={"pi": 4}, examinations=2)
    pose, short = {"recipe": "pose", "target": 2}, {"recipe": "short", "target": 2}
    studies = [
        tiny("one", TITLE, a=pose, b=short),
        tiny("two", "Two", a=pose, b=short | {"tokens": 2}),
    ]
    folder = tmp_path_factory.mktemp("studies")
    return Laboratory(studies, folder / "runs", folder / "cache", seeds=(100,),
                      regime=regime), studies  # fmt: skip


def test_runs_are_shared_between_studies_and_done_once(
    laboratory: tuple[Laboratory, list[Study]], tmp_path: Path
) -> None:
    lab, studies = laboratory
    # base, base scaled, pose, short, short with twice the tokens
    assert len(lab.todo()) == 5
    lab.run(at_once=1)
    assert lab.todo() == []
    before = {path: path.stat().st_mtime_ns for path in lab._runs.rglob("*.json")}
    lab.run(at_once=1)
    assert before == {path: path.stat().st_mtime_ns for path in lab._runs.rglob("*.json")}
    once, twice = (lab.results(study, study.arms["b"])[0] for study in studies)
    assert twice.tokens == 2 * once.tokens

    found = compare.everything(studies, "lab", lab, missing=0, seeds=1, command="again")
    paths = page.write(found, tmp_path)
    html = (tmp_path / "study.html").read_text()
    assert TITLE not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "know single and multikey questions only" in html
    assert {path.suffix for path in paths} == {".html", ".json", ".csv", ".md", ".svg", ".png"}
    ours = found["studies"][0]["measures"][1]["ours"]
    assert ours["a"]["mean"] == 1.0
    assert set(found["studies"][0]["measures"][0]["ours"]) == {"none", "pi", "a", "b"}


def test_equal_arms_of_all_studies_are_trained_once() -> None:
    studies = [definition.load(name) for name in definition.names()]
    lab = Laboratory(studies, Path("nowhere"), Path("nowhere"), seeds=(100,))
    assert sum(len(study.arms_at("lab")) for study in studies) > 25
    assert sum(len(group.recipes) for group in lab.groups()) == 18
    assert len(lab.todo()) == 26


def test_the_list_and_the_plan_need_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["study"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in definition.names())
    assert run(["study", "all", "--dry-run", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "130 runs to do on 5 base(s)"
    assert list(tmp_path.iterdir()) == []
    assert run(["study", "rulr"]) == 1
    assert "did you mean 'ruler'" in capsys.readouterr().err
    assert run(["study", "ruler", "--scale", "papr"]) == 1
    assert "did you mean 'paper'" in capsys.readouterr().err


def test_a_study_without_meaning_says_so_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["study", "longbench", "--out", str(tmp_path)]) == 0
    assert "no meaning at scale lab: LongBench asks about natural texts" in capsys.readouterr().out
    assert not (tmp_path / "lab" / "runs").exists()
    assert "No meaning at this scale" in (tmp_path / "lab" / "study.html").read_text()
