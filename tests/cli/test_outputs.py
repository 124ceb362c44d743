"""Every command that writes a folder takes it by one mechanism: held, claimed, never another's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from endprompt.cli.app import app
from endprompt.cli.app import run as command
from endprompt.cli.groups import DIRECT
from tiny_checkpoint import save_run

TARGET = 256
FOLDERS: dict[str, list[str]] = {
    f"prepare {DIRECT}": ["prepare", "{text}", "-t", "{tiny}", "--out", "{out}"],
    "train": ["train", "pose", "--model", "{tiny}", "--data", "{data}", "--to", "256",
              "--set", "rows.tokens=64", "--set", "training.tokens=256", "--out", "{out}"],
    "rows": ["rows", "pose", "--model", "{tiny}", "--data", "{data}", "--to", "256",
             "--set", "rows.tokens=64", "--count", "4", "--out", "{out}"],
    "sft": ["sft", "{tiny}", "--data", "{chats}", "--set", "steps=1", "--out", "{out}"],
    "extend": ["extend", "{tiny}", "--to", "256", "--text", "{text}", "--out", "{out}"],
    "tune-scaling": ["tune-scaling", "{tiny}", "--to", "256", "--text", "{text}",
                     "--out", "{out}"],
    "eval run": ["eval", "run", "{tiny}", "--tasks", "passkey", "--lengths", "100",
                 "--depths", "1", "--out", "{out}"],
    "eval data ruler": ["eval", "data", "ruler", "--task", "vt,fwe", "--length", "1k",
                        "--num-samples", "1", "--tokenizer", "{tiny}", "--out", "{out}"],
    f"export {DIRECT}": ["export", "{run}", "--out", "{out}"],
    "inspect": ["inspect", "pose", "--to", "16k", "--out", "{out}"],
    "report": ["report", "{finished}", "--out", "{page}", "--assets"],
    "lab": ["lab", "--quick", "--steps", "1", "--out", "{out}"],
    "study": ["study", "ruler", "--seeds", "1", "--out", "{above}"],
}  # fmt: skip
"""Words of each command that writes a folder; {out} is that folder."""
REFUSED: dict[str, list[str]] = {
    f"prepare {DIRECT}": ["--min-document-tokens", "100000"],
    "train": ["--set", "rows.tokens=100000"],
    "rows": ["--set", "rows.tokens=100000"],
    "sft": ["--set", "max_tokens=4"],
    "extend": ["--lengths", "512"],
    "tune-scaling": ["--scaling", "none"],
    "eval run": ["--lengths", "2"],
    "eval data ruler": ["--length", "2,3"],
    f"export {DIRECT}": ["--for", "vllm,llama.cpp"],
    "inspect": ["--to", "4k"],
    "report": ["--theme"],
    "lab": ["--factor", "1"],
    "study": ["--budget", "soon"],
}
"""What makes each of them refuse its work."""
FILES = {
    "doctor", "plan", "eval compare", "eval data longbench", "eval needle", "eval perplexity",
    "eval score longbench", "eval score ruler", "eval untaught", "eval window", "report",
}  # fmt: skip
"""Commands that write one file under a name that the user gives."""
FORCED = (f"prepare {DIRECT}", "eval data ruler", f"export {DIRECT}", "inspect", "report")


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by the words that it is called with."""

    def below(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, one in group.commands.items():
            if hasattr(one, "commands"):
                yield from below(one, (*words, name))
            else:
                yield " ".join((*words, name)), one

    yield from below(get_command(app), ())


def options_of(one: Any) -> set[str]:
    return {name for parameter in one.params for name in parameter.opts}


def test_no_command_that_writes_is_forgotten() -> None:
    writes = {name for name, one in commands() if options_of(one) & {"--out", "--json", "--assets"}}
    assert writes == {*FOLDERS, *FILES}
    forced = {name for name, one in commands() if "--force" in options_of(one)}
    assert forced & FOLDERS.keys() == set(FORCED)
    assert REFUSED.keys() == FOLDERS.keys()


@pytest.fixture(scope="module")
def given(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the commands read."""
    folder = tmp_path_factory.mktemp("given")
    chats = folder / "chats.jsonl"
    chats.write_text('{"prompt": "One?", "completion": "1"}\n' * 4)
    assert command(["prepare", str(text), "-t", str(tiny), "--out", str(folder / "data")]) == 0
    run = save_run(folder / "run", tiny, "dynamic", TARGET)
    return {"tiny": tiny, "text": text, "data": folder / "data", "chats": chats, "run": run}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `extend`, as far as a report reads it."""
    sys.path.append(str(Path(__file__).parents[1] / "report"))
    from run_sample import sample

    folder = tmp_path_factory.mktemp("finished") / "run"
    folder.mkdir()
    record = sample()
    for part in ("coverage", "example_row"):  # drawing takes the time here
        del record[part]
    for arm in record["arms"]:
        del arm["evaluation"]
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def words(name: str, out: Path, given: dict[str, Path], *more: str) -> list[str]:
    """A command line that writes into `out`."""
    places = given | {
        "out": out,
        "above": out.parent,
        "page": out.with_name(f"{out.name.removesuffix('-files')}.html"),
    }
    return [*(word.format(**places) for word in FOLDERS[name]), *more]


def place_of(name: str, folder: Path) -> Path:
    """The folder that a command takes: `study` and `report` name theirs themselves."""
    return folder / {"study": "lab", "report": "page-files"}.get(name, "out")


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refused(words: list[str], capsys: pytest.CaptureFixture[str], match: str, folder: Path) -> None:
    """Run a command that has to end with one line, and leave a folder as it is."""
    import re

    before = contents(folder)
    capsys.readouterr()
    assert command(words) == 1, words
    told = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in told if line.startswith("endprompt: ")]) == 1, told
    assert re.search(match, told[-1]), told
    assert contents(folder) == before


@pytest.mark.parametrize("name", FOLDERS)
def test_a_strangers_folder_stays_as_it_is(
    name: str, given: dict[str, Path], finished: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = given | {"finished": finished}
    out = place_of(name, tmp_path)
    for file in ("model/config.json", "checkpoints/mine.bin", "train/data-00000.arrow",
                 "manifest.json", "run.json", "thesis.txt"):  # fmt: skip
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text("mine")
    for more in [(), ("--force",)] if name in FORCED else [()]:
        refused(
            words(name, out, given, *more), capsys, "holds other files .*choose another", tmp_path
        )


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_another_process_holds_is_refused(
    name: str, given: dict[str, Path], finished: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = place_of(name, tmp_path)
    out.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c",
         "import fcntl, os, sys, time\n"
         "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
         "print('held', flush=True)\ntime.sleep(100)", str(out)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        given = given | {"finished": finished}
        refused(words(name, out, given), capsys, "another process is writing", tmp_path)
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_refused_command_leaves_no_claim(
    name: str, given: dict[str, Path], finished: Path, tmp_path: Path,
) -> None:  # fmt: skip
    out = place_of(name, tmp_path)
    given = given | {"finished": finished}
    assert command(words(name, out, given, *REFUSED[name])) in (1, 2)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", FOLDERS)
def test_nothing_that_is_read_is_written_over(
    name: str, given: dict[str, Path], finished: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The folder holds what is read: here, all of it."""
    if name in ("study", "lab", "inspect", "report"):
        pytest.skip("reads no folder of the user's that its own could hold")
    out = place_of(name, tmp_path)
    for what, path in given.items():
        copy = shutil.copytree if path.is_dir() else shutil.copy
        out.mkdir(exist_ok=True)
        copy(path, out / what)
    inside = {what: out / what for what in given}
    for more in [(), ("--force",)] if name in FORCED else [()]:
        refused(words(name, out, inside, *more), capsys, "holds what is read", tmp_path)
    link = tmp_path / "link"
    link.symlink_to(out)
    refused(words(name, link, inside), capsys, "holds what is read", tmp_path)
