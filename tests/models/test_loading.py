"""No verb runs on weights that are not the model's: one loader refuses them by name."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.main import get_command

import endprompt
from endprompt.cli.app import app
from endprompt.cli.app import run as command
from endprompt.data import holdout
from endprompt.data.mixture import Weighted
from endprompt.data.prepare import prepare
from endprompt.data.prepared import open_documents
from endprompt.data.sources import open_source
from endprompt.export.checkpoint import export
from endprompt.export.reference import FILE
from endprompt.models.tokenizer import load_tokenizer
from finished_run import TARGET, make_run
from tiny_checkpoint import WINDOW

WEIGHTS = "model.safetensors"
Damage = Callable[[Path], None]
Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Places:
    """What the verbs need beside a model."""

    data: Path
    tokens: Path
    chats: Path
    run: Path
    exported: Path
    text: Path


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    """Damage that rewrites the weights."""

    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def settings(file: str, **changes: Any) -> Damage:
    """Damage that changes keys of a JSON file."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(found | changes))

    return damage


def written(file: str, text: str) -> Damage:
    """Damage that replaces a file."""
    return lambda folder: (folder / file).write_text(text) and None


def without(part: str) -> Damage:
    """Damage that leaves out the tensors with `part` in their name."""

    def change(found: dict[str, torch.Tensor]) -> None:
        for name in [name for name in found if part in name]:
            del found[name]

    return tensors(change)


def value(name: str, number: float) -> Damage:
    """Damage that puts one value into a tensor."""

    def change(found: dict[str, torch.Tensor]) -> None:
        found[name].view(-1)[7] = number

    return tensors(change)


def pickled(folder: Path) -> None:
    """Weights as a pickle and nothing else."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def more_tokens(folder: Path) -> None:
    """A tokenizer with more tokens than the embedding has rows."""
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<extra>", "<more>"])
    tokenizer.save_pretrained(folder)


def part_of_shards(folder: Path) -> None:
    """An index that names two files of which one is there."""
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (folder / WEIGHTS).rename(folder / names[0])
    index = {"metadata": {}, "weight_map": {"a": names[0], "b": names[1]}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


DEEP = '{"a":' * 5000 + "1" + "}" * 5000
BIAS = "model.layers.0.self_attn.q_proj.bias"
UP = "model.layers.0.mlp.up_proj.weight"
FAULTS: dict[str, tuple[Damage, str]] = {
    "a layer is missing": (without("layers.1."), r"missing: model.layers.1.input_layernorm.weight"),
    "all layers are missing": (without("layers."), r"missing: .* and 15 more"),
    "the head is missing": (without("lm_head"), r"missing: lm_head.weight"),
    "an unexpected tensor": (
        tensors(lambda found: found.update({BIAS: torch.zeros(32)})),
        rf"unexpected: {BIAS}",
    ),
    "a wrong shape": (
        tensors(lambda found: found.update({"model.norm.weight": torch.ones(16)})),
        r"of another shape: model.norm.weight \[16\] instead of \[32\]",
    ),
    "NaN": (value(UP, float("nan")), rf"1 of 2,048 values of {UP} are NaN or infinite"),
    "inf": (value(UP, float("-inf")), rf"1 of 2,048 values of {UP} are NaN or infinite"),
    "a pickle alone": (pickled, r"pickle \(pytorch_model.bin\)"),
    "weights cut short": (
        lambda folder: (
            (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-40]) and None
        ),
        r"cannot load model.safetensors of",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"no weights in"),
    "a shard is missing": (part_of_shards, r"no file model-00002-of-00002.safetensors"),
    "an adapter": (written("adapter_config.json", "{}"), r"holds an adapter"),
    "two heads": (settings("config.json", tie_word_embeddings=True), r"ties lm_head.weight"),
    "more tokens than rows": (
        more_tokens,
        r"2 of its tokens, as '<extra>' \(id 257\), are beyond the 257 rows of the embedding",
    ),
    "a newer tokenizer": (
        settings("tokenizer.json", version="2.0", model={"type": "Words"}),
        r"cannot load the tokenizer of",
    ),
    "a tokenizer nested deep": (written("tokenizer.json", DEEP), r"cannot load the tokenizer of"),
    "a number in words": (settings("config.json", num_hidden_layers="two"), r"num_hidden_layers"),
    "layers without end": (
        settings("config.json", num_hidden_layers=10**9),
        r"num_hidden_layers of .* is 1,000,000,000: at most 10,000",
    ),
    "more layers than tensors": (
        settings("config.json", num_hidden_layers=9_000),
        r"9,000 layers, and 21 tensors",
    ),
    "a giant vocabulary": (
        settings("config.json", vocab_size=10**11),
        r"of another shape: lm_head.weight \[257, 32\] instead of \[100000000000, 32\]",
    ),
    "no heads": (settings("config.json", num_attention_heads=0), r"cannot load"),
    "a list for a config": (written("config.json", "[1]"), r"cannot load"),
    "a config nested deep": (written("config.json", DEEP), r"cannot load"),
    "an escape sequence": (
        settings("config.json", model_type="\x1b[2Jmine"),
        r"cannot load .*mine",
    ),
    "theta in words": (
        settings("config.json", rope_parameters={"rope_type": "default", "rope_theta": "much"}),
        r"rope_theta of .* is no number: much",
    ),
    "a rule that is no name": (
        settings("config.json", rope_parameters={"rope_type": [1], "rope_theta": 1e4}),
        r"rope_type of .* is no name: \[1\]",
    ),
    "a length that is no number": (
        settings("tokenizer_config.json", model_max_length=float("nan")),
        r"has model_max_length nan",
    ),
    "an end that is no token": (
        written("generation_config.json", '{"eos_token_id": ["end"]}'),
        r"eos_token_id of .* is no token: end",
    ),
    "code of its own": (
        settings("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        r"needs code of its own",
    ),
}


def damaged(tiny: Path, folder: Path, fault: str) -> Path:
    """A copy of the tiny model with a fault."""
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    FAULTS[fault][0](folder)
    return folder


@pytest.fixture(scope="module")
def places(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Inputs beside the model that the verbs need, made with the whole model."""
    tmp = tmp_path_factory.mktemp("places")
    prepare([Weighted(open_source(str(text)))], load_tokenizer(tiny), tmp / "data")
    documents = open_documents(tmp / "data")
    holdout.save(tmp / "data", holdout.split(documents, tokens=600, count=1, row_tokens=64))
    np.save(tmp / "tokens.npy", np.arange(200) % 250)
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(4)]
    (tmp / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_run(tiny, tmp / "run")
    export(tmp / "run", tmp / "exported")
    return Places(
        data=tmp / "data", tokens=tmp / "tokens.npy", chats=tmp / "chats.jsonl",
        run=tmp / "run", exported=tmp / "exported", text=text,
    )  # fmt: skip


def wide(model: Path) -> Path:
    """The model with a window that holds some needles."""
    config = json.loads((model / "config.json").read_text())
    if config["max_position_embeddings"] == WINDOW:
        settings("config.json", max_position_embeddings=1024)(model)
    return model


def run_of(model: Path, tmp: Path, places: Places) -> Path:
    """A run whose base and trained checkpoint are the model."""
    run = shutil.copytree(places.run, tmp / "run")
    shutil.copytree(places.data, run / "data")
    record = json.loads((run / "run.json").read_text())
    shutil.rmtree(run / "arms")
    for arm in ("untrained", record["recipe"]["name"]):
        shutil.copytree(model, run / "arms" / arm / "model")
    record["checkpoint"] = str(run / "arms" / record["recipe"]["name"] / "model")
    record["model"]["path"] = str(model)
    record["arms"][0]["curve"] = [{"step": 1, "terminal_loss": 4.0, "prefix_loss": 4.0}]
    (run / "run.json").write_text(json.dumps(record))
    return run


def exported(model: Path, tmp: Path, places: Places) -> Path:
    """The model in the place of an exported one."""
    folder = shutil.copytree(model, tmp / "exported")
    shutil.copyfile(places.exported / FILE, folder / FILE)
    return folder


SHORT = ["--set", "rows.tokens=64", "--set", "training.tokens=128"]
VERBS: dict[str, Callable[[Path, Path, Places], list[object]]] = {
    "doctor": lambda model, tmp, places: ["doctor", model, "--to", TARGET],
    "train": lambda model, tmp, places: [
        "train", "endprompt", "--model", model, "--data", places.data, "--to", TARGET,
        "--out", tmp / "out", *SHORT,
    ],
    "extend": lambda model, tmp, places: [
        "extend", model, "--to", TARGET, "--text", places.text, "--out", tmp / "out", *SHORT,
        "--needles", 1, "--lengths", 512, "--method", "endprompt",
    ],
    "tune-scaling": lambda model, tmp, places: [
        "tune-scaling", wide(model), "--to", 2048, "--text", places.text, "--out", tmp / "out",
        "--scaling", "yarn", "--rows", 4, "--needles", 4, "--verify", 1,
    ],
    "inspect": lambda model, tmp, places: [
        "inspect", model, "--to", TARGET, "--tokens", 64, "--text", places.text / "one.txt",
    ],
    "inspect RUN": lambda model, tmp, places: [
        "inspect", run_of(model, tmp, places), "--tokens", 128, "--text", places.text / "one.txt",
    ],
    "export": lambda model, tmp, places: [
        "export", run_of(model, tmp, places), "--out", tmp / "out",
    ],
    "export verify": lambda model, tmp, places: [
        "export", "verify", exported(model, tmp, places),
    ],
    "chat": lambda model, tmp, places: ["chat", model],
    "sft": lambda model, tmp, places: [
        "sft", model, "--data", places.chats, "--out", tmp / "out", "--set", "steps=1",
    ],
    "eval window": lambda model, tmp, places: [
        "eval", "window", model, "--data", places.data, "--lengths", 600, "--needles", 2,
    ],
    "eval untaught": lambda model, tmp, places: [
        "eval", "untaught", model, "--data", places.data, "--lengths", 2000, "--asked", 4,
        "--tasks", "json-kv",
    ],
    "eval perplexity": lambda model, tmp, places: [
        "eval", "perplexity", model, "--tokens", places.tokens, "--window", 64,
    ],
    "eval needle": lambda model, tmp, places: [
        "eval", "needle", model, "--lengths", 300, "--depths", 2,
        "--text", places.text / "one.txt",
    ],
    "eval run": lambda model, tmp, places: [
        "eval", "run", model, "--tasks", "needle", "--lengths", 300, "--depths", 2,
        "--out", tmp / "out",
        "--text", places.text / "one.txt",
    ],
}  # fmt: skip
"""Every verb that loads a model, with the least that it needs beside it."""

LOAD_NONE = {
    "rows",  # reads config and tokenizer alone
    "accelerate", "prepare", "prepare verify", "prepare show", "report", "lab", "study",
    "plan", "methods", "eval compare", "eval tasks-path", "eval data ruler",
    "eval data longbench", "eval score ruler", "eval score longbench",
}  # fmt: skip
"""Verbs that load no model of the user's; `plan` and `methods` read its config alone."""


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Names of all commands below one."""
    inner = getattr(command, "commands", None)
    if inner is None and command.callback.__module__.startswith("endprompt."):  # no test's own
        yield " ".join(words)
    for name, one in (inner or {}).items():
        yield from commands(one, (*words, name))


def test_every_verb_that_loads_a_model_is_tried() -> None:
    known = {name.removesuffix(" RUN") for name in VERBS} | LOAD_NONE
    found = {name.removesuffix(" \0") for name in commands(get_command(app))}  # direct commands
    assert found == known


def test_models_are_loaded_in_one_room() -> None:
    source = Path(endprompt.__file__).parent
    loaders = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
    }
    assert {name.split("/")[0] for name in loaders} == {"models"}


KINDS = (
    "a layer is missing", "an unexpected tensor", "a wrong shape", "NaN", "a pickle alone",
    "more tokens than rows", "a newer tokenizer", "a number in words",
)  # fmt: skip
"""Faults that every verb is tried with, one of each kind; two verbs are tried with all."""
TRIED = [
    (verb, fault)
    for verb in VERBS
    for fault in FAULTS
    if fault in KINDS or verb in ("doctor", "eval perplexity")
]


@pytest.mark.parametrize(("verb", "fault"), TRIED)
def test_a_fault_of_the_model_is_one_line_from_every_verb(
    verb: str, fault: str, tiny: Path, places: Places, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = damaged(tiny, tmp_path / "model", fault)
    capfd.readouterr()
    code = command([str(word) for word in VERBS[verb](model, tmp_path, places)])
    said = capfd.readouterr().err.strip()
    assert code == 1, said
    assert said.isprintable()
    assert re.fullmatch(rf"endprompt: .*{FAULTS[fault][1]}.*", said), said
    assert str(model) in said or str(tmp_path) in said


@pytest.mark.parametrize(
    "verb",
    [pytest.param(verb, marks=pytest.mark.slow) if verb == "extend" else verb for verb in VERBS],
)
def test_the_whole_model_passes(
    verb: str, tiny: Path, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    if verb == "export verify":
        model = places.exported
    else:
        model = shutil.copytree(tiny, tmp_path / "model")
    assert command([str(word) for word in VERBS[verb](model, tmp_path, places)]) == 0


@pytest.mark.parametrize("fault", [None, "a layer is missing", "more tokens than rows"])
def test_a_hub_name_is_held_to_the_same(
    fault: str | None, tiny: Path, endprompt: Run, tmp_path: Path
) -> None:
    cached = tmp_path / "models--org--tiny"
    model = cached / "snapshots" / ("0" * 40)
    shutil.copytree(tiny, model)
    if fault:
        FAULTS[fault][0](model)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    hub = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
    done = endprompt("doctor", "org/tiny", "--to", TARGET, env=hub)
    if fault is None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    assert re.fullmatch(rf"endprompt: .*org/tiny.*{FAULTS[fault][1]}.*", done.stderr.strip())


MEASURE = """
import sys
from pathlib import Path
import transformers.models.llama.modeling_llama
from endprompt.models import checkpoint

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

folder = sys.argv[1]
config = checkpoint.load_config(folder)
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
checkpoint.check(folder, config)
checked = resident("VmHWM") - before
checkpoint.load(folder, config, dtype="auto")
print(checked, resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts peaks")
def test_shards_are_checked_without_their_weights_and_loaded_one_by_one(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=512, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8,
        num_attention_heads=16, num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    weights = 2 * model.num_parameters()
    model.save_pretrained(tmp_path, max_shard_size="20MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 5
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    checked, loaded = map(int, done.stdout.split())
    assert checked < 0.2 * weights
    assert weights < loaded < 1.3 * weights
