"""`EvalConfig`: one configuration from Python, the command line's options and a YAML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_lm import tiny_engine
from typer.main import get_command

import endprompt as ep
from endprompt import units
from endprompt.cli.app import app, run
from endprompt.errors import EndPromptError
from endprompt.eval import longbench, ruler
from endprompt.eval.config import EvalConfig, load

NEEDED = {"model": "m", "tasks": ["passkey"]}


def options() -> dict[str, Any]:
    """Parameters of `endprompt eval run` that decide about an evaluation, and their defaults."""
    root: Any = get_command(app)
    command = root.commands["eval"].commands["run"]
    return {
        p.name: p.default
        for p in command.params
        if p.name not in ("config", "out", "help", "progress")
    }


def test_every_option_is_a_key_with_the_same_default() -> None:
    given = options()
    assert set(given) == set(EvalConfig.model_fields)
    defaults = {name: value for name, value in given.items() if name not in NEEDED}
    assert load(None, {**NEEDED, **defaults}) == EvalConfig.model_validate(NEEDED)


def test_texts_of_options_and_values_of_python_are_the_same() -> None:
    words = {
        "tasks": "ruler, needle", "lengths": "8k,4k", "depths": "1,0", "ruler_tasks": "vt,cwe",
        "datasets": "e", "short": "mmlu",
    }  # fmt: skip
    values = EvalConfig(
        model="m",
        tasks=("ruler", "needle"),
        lengths=(4096, 8192),
        depths=(0.0, 1.0),
        ruler_tasks=("vt", "cwe"),
        datasets=tuple(f"{name}_e" for name in longbench.EXTENDED),
        short=("mmlu",),
    )
    assert load(None, {"model": "m", **words}) == values
    assert EvalConfig(model="m", tasks=("ruler",)).ruler_tasks == tuple(ruler.TASKS)
    assert load(None, {**NEEDED, "depths": 4}).depths == tuple(units.depths("4"))
    assert load(None, {**NEEDED, "depths": [1]}).depths == (1.0,)


def test_options_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.yaml"
    file.write_text("model: m\ntasks: passkey\nlengths: [1k, 512]\nsamples: 7\nseed: 3\n")
    found = load(file, {"samples": 9})
    assert (found.model, found.lengths, found.samples, found.seed) == ("m", (512, 1024), 9, 3)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sampels": 3}, "unknown key 'sampels' (did you mean 'samples'?)"),
        ({"tasks": "rulr"}, "no task 'rulr' (did you mean 'ruler'?)"),
        ({"tasks": ""}, "tasks: value should have at least 1 item"),
        ({"model": None}, "model: input should be a valid string"),
        ({"lengths": "4q"}, "'4q' is no number of tokens"),
        ({"depths": "0,2"}, "depths from 0 to 1"),
        ({"template": "caht"}, "template: input should be 'base' or 'chat'"),
        ({"ruler_tasks": "vtt"}, "vtt"),
        ({"datasets": "qaser"}, "qaser"),
        ({"samples": 0}, "samples: input should be greater than 0"),
    ],
)
def test_what_cannot_be_is_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(EndPromptError) as error:
        load(None, {**NEEDED, **values})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_asked_for() -> None:
    with pytest.raises(EndPromptError, match=r"model is missing: give MODEL; tasks is missing"):
        load(None, {})


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1.5", "0,nan,1"])
def test_depths_are_a_number_of_them_or_lie_in_the_text(text: str) -> None:
    with pytest.raises(EndPromptError, match="write a number of depths"):
        units.depths(text)


def test_python_and_a_file_give_the_results_of_the_options(tmp_path: Path) -> None:
    engine = tiny_engine()
    engine.model.save_pretrained(tmp_path / "model")
    engine.tokenizer.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    words = ["eval", "run", model, "--tasks", "passkey", "--lengths", "300", "--depths", "2"]
    assert run([*words, "--dtype", "float32", "--out", str(tmp_path / "options")]) == 0

    file = tmp_path / "evaluation.yaml"
    values = {"model": model, "tasks": "passkey", "lengths": 300, "depths": 9, "dtype": "float32"}
    file.write_text(json.dumps(values))
    from_file = ["eval", "run", "--config", str(file), "--depths", "2"]
    assert run([*from_file, "--out", str(tmp_path / "file")]) == 0

    config = ep.EvalConfig.model_validate({**values, "depths": 2})
    seen: list[float] = []
    done = ep.evaluate(config, tmp_path / "python", show=lambda _, cells, __: seen.extend(
        cell.mean for cell in cells))  # fmt: skip
    assert [cell.mean for cell in done.cells["passkey"]] == seen
    assert (done.failed, done.troubles) == (0, {})
    for name in ("samples.jsonl", "summary.json", "claim.json"):
        first, *others = (tmp_path / by / "passkey" / name for by in ("options", "file", "python"))
        if name == "claim.json":  # names the command
            settings = [json.loads(path.read_text())["settings"] for path in (first, *others)]
            assert settings[0] == settings[1] == settings[2]
        else:
            assert all(other.read_bytes() == first.read_bytes() for other in others)
