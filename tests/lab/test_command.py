"""`endprompt lab` says what is wrong in one line, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from endprompt.cli.app import run
from endprompt.lab import study
from endprompt.units import seconds


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arms", "short,pos"], "unknown method 'pos' (did you mean 'pose'?)"),
        (["--arms", "yarn-mine.yaml"], "no recipe file yarn-mine.yaml"),
        (["--arms", "pi"], "arm 'pi' trains nothing"),
        (["--scaling", "yarm"], "unknown scaling 'yarm' (did you mean 'yarn'?)"),
    ],
)
def test_a_mistake_is_named(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lab"
    assert run(["lab", *words, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("words", [["--factor", "1"], ["--factor", "x"], ["--budget", "soon"]])
def test_a_number_that_is_none_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lab", *words]) != 0
    assert "is no " in capsys.readouterr().err


def test_the_first_seed_is_that_of_the_first_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is begun in no time, so that the words alone are looked at."""
    words = ["lab", "--arms", "short", "--scaling", "pi", "--seeds", "2", "--budget", "0s"]
    assert run([*words, "--first-seed", "7", "--out", str(tmp_path / "lab")]) == 0
    assert "6 arms are not done" in capsys.readouterr().out
    assert run([*words, "--first-seed", "-1"]) == 2


def test_steps_are_the_same_under_every_scaling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[study.Study] = []

    def keep(wanted: study.Study, *_: object, **__: object) -> list[dict]:
        asked.append(wanted)
        return []

    monkeypatch.setattr(study, "run", keep)
    words = ["lab", "--arms", "short", "--seeds", "1", "--out", str(tmp_path / "lab")]
    assert run([*words, "--steps", "7"]) == 0
    trained = [arm.recipe for arm in asked[0].arms() if arm.recipe.trained]
    assert [recipe.amounts.steps for recipe in trained] == [7, 7]
    assert run(words) == 0
    trained = [arm.recipe for arm in asked[1].arms() if arm.recipe.trained]
    assert [recipe.amounts.steps for recipe in trained] == [1200, 300]


def test_times_are_read_as_people_write_them() -> None:
    assert [seconds(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
