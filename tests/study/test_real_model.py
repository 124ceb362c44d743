"""Studies on a real model: run once for all studies, kept as one small file, resumed, compared."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.core import TyperGroup as Group
from typer.main import get_command

from endprompt.cli.app import app
from endprompt.errors import RecipeError
from endprompt.io import jobs
from endprompt.study import compare, definition
from endprompt.study.definition import Arm, Study
from endprompt.study.real_model import Model

SHARED = {"training.tokens": 512, "training.tokens_per_step": 256, "rows.tokens": 256,
          "rope.scaling": "yarn"}  # fmt: skip


def small(text: Path, **real_model: Any) -> Study:
    """Two arms: the base, and PoSE from 1,024 to 2,048 tokens."""
    return Study.model_validate(
        {
            "name": "mine", "title": "Mine", "source": "nowhere", "claim": "none", "main": "pose",
            "absent": {"lab": "another model", "paper": "another model"},
            "real_model": {"texts": [str(text)], "needles": 2, "dtype": "float32",
                           "set": SHARED, **real_model},
            "arms": {
                "base": {"recipe": "none", "target": 8, "set": {"rope.scaling": "none"}},
                "pose": {"recipe": "pose", "target": 8},
            },
            "measures": [
                {"name": "loss", "table": "t", "benchmark": "loss", "unit": "nats"},
                {"name": "far", "table": "t", "benchmark": "needles", "quarter": "farthest"},
                {"name": "facts", "table": "t", "benchmark": "untaught-loss", "unit": "nats",
                 "tasks": ["json-kv"], "at": [1]},
                {"name": "time", "table": "t", "benchmark": "seconds"},
            ],
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """One text that is long enough for a target of 2,048 tokens."""
    folder = tmp_path_factory.mktemp("book")
    whole = " ".join(path.read_text() for path in sorted(text.glob("*.txt")))
    words = whole.split()
    for number in range(4):
        rng = np.random.default_rng(number)
        (folder / f"{number}.txt").write_text(" ".join(rng.permutation(words)))
    return folder


def run(model: Model, **options: Any) -> list[str]:
    """Run what is to be done and return the names of the jobs that ran."""
    seen: list[str] = []

    def watch(job: jobs.Job, told: dict[str, Any] | None) -> None:
        if told is None:
            seen.append(job.name)

    lock = os.open("/", os.O_RDONLY)
    try:
        model.run(say=lambda *_: None, watch=watch, lock=lock, **options)
    finally:
        os.close(lock)
    return seen


@pytest.fixture(scope="module")
def wide(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a window of 1,024 tokens, which questions about a text need."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    return folder


@pytest.fixture(scope="module")
def finished(wide: Path, book: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    out = tmp_path_factory.mktemp("study")
    model = Model([small(book)], str(wide), out, out / "results")
    assert len(run(model)) == 6
    return model


def test_every_arm_leaves_one_small_file_and_no_weights(finished: Model) -> None:
    assert finished.todo() == []
    paths = [finished.result(unit) for unit in finished.units()]
    assert len(paths) == 2
    for path in paths:
        found = json.loads(path.read_text())
        assert {"training", "window", "untaught", "recipe", "provenance"} <= found.keys()
        assert path.stat().st_size < 100_000
        assert f"{path.parent.parent}" not in path.read_text(), "it may be committed"
    folder = paths[0].parent.parent
    assert not list(folder.glob("runs/*"))
    assert not list(folder.rglob("*.safetensors"))


def test_what_is_there_is_not_run_again_in_any_folder(
    finished: Model, wide: Path, book: Path, tmp_path: Path
) -> None:
    results = finished.result(finished.units()[0]).parent
    elsewhere = Model([small(book)], str(wide), tmp_path, results)
    assert elsewhere.todo() == []
    assert run(elsewhere) == []
    more = Model([small(book, seeds=2)], str(wide), tmp_path, results)
    assert [(unit.name, unit.seed) for unit in more.todo()] == [("pose", 1)]
    assert len(Model([small(book, needles=3)], str(wide), tmp_path, results).todo()) == 2


def test_a_budget_that_is_spent_begins_nothing(wide: Path, book: Path, tmp_path: Path) -> None:
    model = Model([small(book)], str(wide), tmp_path, tmp_path / "results")
    assert run(model, budget_seconds=0.0) == []
    assert len(model.todo()) == 2


def test_values_are_paired_by_question_and_read_by_quarter(finished: Model, book: Path) -> None:
    study = small(book)
    loss, far, facts, time = study.measures
    base, pose = study.arms["base"], study.arms["pose"]
    assert finished.one_model
    for measure in (loss, far, facts):
        (place,) = measure.at
        one = finished.values(study, pose, measure)[place].bases[0]
        other = finished.values(study, base, measure)[place].bases[0]
        assert [len(group) for group in one] == [len(group) for group in other]
        assert all(np.isfinite(group).all() for group in one)
    assert "target" in finished.values(study, pose, time)
    assert finished.values(study, base, time) == {}
    record = compare.record_of(study, "smollm2", finished)
    assert {one["measure"] for one in record["comparisons"]} == {"loss", "far", "facts"}
    assert [len(arm["runs"]) for arm in record["arms"]] == [1, 1]


def test_the_proof_has_its_arms_on_both_texts_and_seeds(wide: Path, tmp_path: Path) -> None:
    study = definition.load("proof")
    model = Model([study], str(wide), tmp_path, tmp_path / "results")
    units = model.units()
    trained = [name for name, arm in study.arms.items() if arm.built().trained]
    untrained = [name for name in study.arms if name not in trained]
    once = [name for name in trained if study.arms[name].seeds == 1]
    twice = {"fact-anchors", "recall-anchors", "recall-anchors-no-jump", "pose", "short"}
    assert twice <= {*trained} - {*once}
    assert len(units) == 2 * len(untrained) + 2 * len(once) + 4 * (len(trained) - len(once))
    assert len({model.result(unit) for unit in units}) == len(units)
    first = [unit.text for unit in units[: len(study.arms)]]
    assert set(first) == {study.real_model.texts[0]}  # a whole table before the second text
    for unit in units:
        recipe = model.recipe(study, unit.arm, unit.seed)
        if recipe.trained:
            assert recipe.training.tokens >= 262_144
            assert recipe.rope.scaling == "yarn"
    bare = model.recipe(study, study.arms["recall-anchors-no-jump"], 0)
    assert not bare.jumps
    assert model.recipe(study, study.arms["base"]).rope.scaling == "none"


def test_a_model_is_asked_the_loss_of_the_texts_that_it_was_not_trained_on(
    wide: Path, book: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(4):
        digits = np.random.default_rng(number).integers(10, size=9000)
        (other / f"{number}.txt").write_text(" ".join(map(str, digits)))
    study = small(book)
    kept = study.measures[0].model_copy(update={"benchmark": "other-loss", "at": (1,)})
    study = study.model_copy(
        update={
            "main": "base",
            "arms": {"base": study.arms["base"]},
            "measures": (study.measures[0], kept),
            "real_model": study.real_model.model_copy(update={"texts": (str(book), str(other))}),
        }
    )
    model = Model([study], str(wide), tmp_path / "out", tmp_path / "results")
    assert len([name for name in run(model) if name.startswith("other-0-")]) == 2
    base = study.arms["base"]
    (asked,) = model.values(study, base, kept).values()
    assert set(asked.bases) == {0, 1}
    inside = kept.model_copy(update={"benchmark": "text-loss"})
    read = model.values(study, base, inside)[1].bases
    for here, there in ((0, 1), (1, 0)):  # other needles stand in the same text
        near, far = (np.abs(asked.bases[here][0] - read[base][0]).max() for base in (there, here))
        assert near < far / 3


def test_an_arm_may_have_fewer_seeds_than_its_study(wide: Path, book: Path, tmp_path: Path) -> None:
    study = small(book, seeds=2)
    pose = study.arms["pose"].model_copy(update={"seeds": 1})
    study = study.model_copy(update={"arms": study.arms | {"once": pose}})
    model = Model([study], str(wide), tmp_path, tmp_path / "results")
    seeds = [(unit.name, unit.seed) for unit in model.units()]
    assert seeds == [("base", None), ("pose", 0), ("pose", 1)]
    study = study.model_copy(update={"arms": {"once": pose}, "main": "once"})
    model = Model([study], str(wide), tmp_path, tmp_path / "results")
    assert [unit.seed for unit in model.units()] == [0]


def test_a_text_that_is_not_there_is_named(wide: Path, tmp_path: Path) -> None:
    study = small(Path("bible"))
    model = Model([study], str(wide), tmp_path, tmp_path / "results")
    with pytest.raises(RecipeError, match="no text 'bible'"):
        run(model)


def test_rows_of_the_target_s_length_make_a_step_of_at_least_one_row(
    wide: Path, book: Path, tmp_path: Path
) -> None:
    study = small(book)
    arm = Arm(recipe="full", target=8)
    recipe = Model([study], str(wide), tmp_path, tmp_path).recipe(study, arm)
    assert recipe.resolve(window=1024, target=2048, gpu=False).amounts.rows_per_step == 1


@pytest.mark.parametrize("name", definition.names())
def test_every_job_is_a_command_that_takes_its_words(name: str, wide: Path, tmp_path: Path) -> None:
    study = definition.load(name)
    model = Model([study], str(wide), tmp_path, tmp_path / "results")
    for unit in model.units():
        for job in model.commands(unit):
            command, words = get_command(app), list(job.arguments)
            while isinstance(command, Group):
                command = command.commands[words.pop(0)]
            asked = [*words, "--progress", "x"] if job.tells else words
            command.make_context(job.name, asked)


def test_a_study_of_key_tokens_has_the_model_find_them(
    wide: Path, book: Path, tmp_path: Path
) -> None:
    plain = small(book)
    measure = plain.measures[0].model_copy(update={"benchmark": "key-loss"})
    study = plain.model_copy(update={"measures": (measure,)})
    one, other = (Model([each], str(wide), tmp_path, tmp_path) for each in (plain, study))
    (job,) = [job for job in other.commands(other.units()[0]) if job.name.startswith("window")]
    assert job.arguments[-2:] == ["--evaluator", str(wide)]
    assert not {one.result(unit) for unit in one.units()} & {
        other.result(unit) for unit in other.units()
    }


def test_texts_of_one_name_in_two_folders_are_two_runs(wide: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    one, other = (
        Model([small(tmp_path / folder / "book")], str(wide), tmp_path, results) for folder in "ab"
    )
    names = [{model.result(unit) for unit in model.units()} for model in (one, other)]
    assert not names[0] & names[1]
