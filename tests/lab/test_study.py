"""The laboratory end to end at toy size: in parallel, whole results, going on, one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from endprompt.compare.progress import State
from endprompt.errors import OutputError
from endprompt.lab import model as bases
from endprompt.lab import page
from endprompt.lab import study as studies
from endprompt.lab.study import Study


@pytest.fixture(scope="session")
def done(toy: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[State]]:
    out, cache = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("cache")
    told: list[State] = []
    studies.run(toy, out, cache, at_once=2, progress=told.append)
    return out, cache, told


def test_every_arm_of_every_base_leaves_one_file(
    toy: Study, done: tuple[Path, Path, list[State]]
) -> None:
    out, cache, told = done
    files = sorted(path for path in out.rglob("*") if path.is_file())
    assert files == sorted(toy.result(arm, out) for arm in toy.arms())
    assert len(files) == 2 * (1 + 1 + 3)
    assert sorted(state.done for state in told) == list(range(1, len(files) + 3))
    assert told[-1].total == len(files) + 2
    assert told[-1].seconds_left == 0
    assert len(list(cache.glob("base-*"))) == 2
    for file in files:
        computation = json.loads(file.read_text())["computation"]
        assert (computation["precision"], computation["attention"]) == ("float32", "sdpa")


def test_arms_of_a_base_are_asked_the_same(
    toy: Study, done: tuple[Path, Path, list[State]]
) -> None:
    results = toy.results(done[0])
    for seed in toy.seeds:
        depths = [
            {
                (length, kind): [depth for depth, _ in answers]
                for length, kinds in result["answers"].items()
                for kind, answers in kinds.items()
            }
            for result in results
            if result["seed"] == seed
        ]
        assert all(one == depths[0] for one in depths)
    tokens = {result["tokens"] for result in results if result["trained"]}
    assert tokens == {512}


def test_results_of_another_base_are_not_taken_for_those_of_the_one_that_is_kept(
    toy: Study, done: tuple[Path, Path, list[State]], tmp_path: Path
) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    shutil.copytree(done[0], out)
    shutil.copytree(done[1], cache)
    arms = list(toy.arms())
    assert all(toy.is_done(arm, out, cache) for arm in arms)
    base = bases.folder_of(toy.regime.base, 100, cache)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    assert {arm.seed for arm in arms if not toy.is_done(arm, out, cache)} == {100}
    with pytest.raises(OutputError, match=r"changed after it was made \(model.safetensors\)"):
        studies.run(toy, out, cache, at_once=1)


def test_a_study_goes_on_where_it_was(
    toy: Study, done: tuple[Path, Path, list[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, cache, _ = done
    lost = next(arm for arm in toy.arms() if arm.recipe.name == "recall-pose")
    path = toy.result(lost, out)
    before = json.loads(path.read_text())
    others = {p: p.stat().st_mtime_ns for p in out.rglob("*.json") if p != path}
    path.unlink()
    told: list[State] = []
    studies.run(toy, out, cache, at_once=1, progress=told.append)
    after = json.loads(path.read_text())
    assert [state.total for state in told] == [1]
    assert {p: p.stat().st_mtime_ns for p in others} == others
    for key in ("answers", "loss", "curve", "gradient", "recipe", "flops"):
        assert after[key] == before[key]


def test_a_budget_that_is_spent_begins_nothing(toy: Study, tmp_path: Path) -> None:
    assert studies.run(toy, tmp_path, tmp_path / "cache", at_once=1, budget_seconds=0) == []


def test_changed_settings_have_results_of_their_own(toy: Study, tmp_path: Path) -> None:
    import dataclasses

    other = dataclasses.replace(toy, regime=dataclasses.replace(toy.regime, steps={"pi": 4}))
    mine, theirs = ({one.result(arm, tmp_path) for arm in one.arms()} for one in (toy, other))
    assert len(mine - theirs) == 6  # all that is trained


def test_the_page_and_tables_are_written(
    toy: Study, done: tuple[Path, Path, list[State]], tmp_path: Path
) -> None:
    results = toy.results(done[0])
    results[2]["summary"] = "<script>alert(1)</script>"
    results[2]["recipe"]["summary"] = "<script>alert(1)</script>"
    written = page.write(results, tmp_path)
    assert all(path.is_file() for path in written)
    html = (tmp_path / "lab.html").read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert "warm start" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    names = {path.name for path in written}
    for table in ("accuracy", "kinds", "distance", "seeds", "loss", "signal", "cost"):
        assert {f"{table}-pi-s2.csv", f"{table}-pi-s2.md"} <= names
    (group,) = json.loads((tmp_path / "lab.json").read_text())["groups"]
    assert [arm["arm"] for arm in group["arms"]] == ["none", "pi", "short", "pose", "recall-pose"]
