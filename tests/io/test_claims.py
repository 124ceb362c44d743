"""Folders that commands write: held by one process, claimed after the checks, nobody else's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from endprompt.errors import OutputError
from endprompt.io import claims, files

HOLDER = """
import sys, time
from pathlib import Path
from endprompt.io import claims
with claims.output(Path(sys.argv[1]), "train") as held:
    held.claim({"model": "m"})
    print("held", flush=True)
    time.sleep(60)
"""
BUILDER = """
import sys, time
from pathlib import Path
from endprompt.io import claims
with claims.product(Path(sys.argv[1]), "export", force=True) as partial:
    (partial / "model.safetensors").write_text("half")
    print("building", flush=True)
    time.sleep(60)
"""


def start(program: str, folder: Path) -> subprocess.Popen[str]:
    """A process that has printed its first line."""
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline()
    return child


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.communicate()


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_second_process_is_refused_by_name_until_the_first_ends(tmp_path: Path) -> None:
    child = start(HOLDER, tmp_path / "run")
    try:
        with (
            pytest.raises(OutputError, match=r"another process is writing .*run: wait for it"),
            claims.output(tmp_path / "run", "train"),
        ):
            pass
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "run")
        with (
            pytest.raises(OutputError, match="another process is writing"),
            claims.output(link, "train"),
        ):
            pass
    finally:
        kill(child)
    with claims.output(tmp_path / "run", "train") as held:
        assert held.claimed == {"model": "m"}


def test_a_refused_block_leaves_neither_claim_nor_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="checks"),
        claims.output(tmp_path / "new" / "run", "train"),
    ):
        raise OutputError("checks")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="checks"), claims.output(tmp_path / "there", "train"):
        raise OutputError("checks")
    assert contents(tmp_path) == {"there": None}
    with claims.output(tmp_path / "there", "train") as held:
        held.claim({})
        (tmp_path / "there" / "empty").mkdir()
    assert contents(tmp_path) == {"there": None}


def test_strangers_files_are_never_taken(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.bin").write_text("mine")
    before = contents(tmp_path)
    with (
        pytest.raises(OutputError, match=r"holds other files \(checkpoints\): choose another"),
        claims.output(tmp_path, "train"),
    ):
        pass
    for force in (False, True):
        with (
            pytest.raises(OutputError, match="holds other files"),
            claims.product(tmp_path, "export", force=force),
        ):
            pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "claim",
    ["", "[]", "{}", '{"endprompt": "train", "settings": 3}', "[" * 100_000,
     '{"endprompt": "train", "schema_version": 99, "settings": {}}',
     '{"endprompt": "sft", "settings": {}}'],
)  # fmt: skip
def test_a_claim_that_is_not_this_commands_is_refused(tmp_path: Path, claim: str) -> None:
    (tmp_path / "claim.json").write_text(claim)
    with (
        pytest.raises(OutputError, match=r"choose another --out|update endprompt"),
        claims.output(tmp_path, "train"),
    ):
        pass
    with (
        pytest.raises(OutputError, match=r"choose another --out|update endprompt"),
        claims.product(tmp_path, "train", force=True) as partial,
    ):
        (partial / "a").write_text("a")
    assert contents(tmp_path) == {"claim.json": claim.encode()}


def test_other_settings_are_named(tmp_path: Path) -> None:
    with claims.output(tmp_path / "run", "train") as held:
        held.claim({"model": "m", "target": 4})
        (tmp_path / "run" / "checkpoints").touch()
    with claims.output(tmp_path / "run", "train") as held:
        held.require({"model": "m", "target": 4})
        with pytest.raises(OutputError, match="holds a run with another model, target: choose"):
            held.require({"model": "n", "target": 8})


@pytest.mark.parametrize("make", [claims.output, claims.product])
def test_nothing_that_is_read_is_written_over(tmp_path: Path, make) -> None:
    model = tmp_path / "work" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "work")
    (tmp_path / "to-model").symlink_to(model)
    before = contents(tmp_path)
    for out, source in [
        (model, model),
        (tmp_path / "work", model),
        (tmp_path, model),
        (tmp_path / "link", model),
        (tmp_path / "to-model", model),
        (tmp_path / "work", tmp_path / "to-model"),
        (tmp_path / "work" / "model" / "..", model / "config.json"),
    ]:
        with pytest.raises(OutputError, match="what is read"), make(out, "k", reads=[source]):
            pass
    assert contents(tmp_path) == before
    with make(model / "inside", "k", reads=[model, "some/hub-name", None]):
        pass


def test_a_claim_half_written_by_a_killed_process_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "deep" / ".x.endprompt-2.partial").write_text("{")
    (tmp_path / "run" / ".claim.json.endprompt-1.partial").write_text("{")
    with (
        pytest.raises(OutputError, match=r"other files \(deep\)"),
        claims.output(tmp_path / "run", "train"),
    ):
        pass
    (tmp_path / "run" / "deep" / ".x.endprompt-2.partial").unlink()
    (tmp_path / "run" / "deep").rmdir()
    with claims.output(tmp_path / "run", "train") as held:
        held.claim({})
        assert sorted(contents(tmp_path / "run")) == ["claim.json"]


def test_the_copy_of_a_killed_build_is_cleared_and_a_living_ones_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = start(BUILDER, out)
    hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(hidden) == 1
    with (
        pytest.raises(OutputError, match="another process is writing"),
        claims.product(out, "export"),
    ):
        pass
    files.clear_unfinished(out)
    assert (tmp_path / hidden[0] / "model.safetensors").is_file()
    kill(child)
    (tmp_path / ".out.partial").write_text("a user's own")
    with claims.product(out, "export") as partial:
        (partial / "model.safetensors").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "out"]
    assert (out / "model.safetensors").read_text() == "whole"


def test_only_a_whole_product_of_ours_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def build(text: str, *, force: bool) -> None:
        with claims.product(out, "export", force=force) as partial:
            (partial / "model").write_text(text)

    build("one", force=False)
    with pytest.raises(OutputError, match=r"is there already: choose .* or give --force"):
        build("two", force=False)
    build("two", force=True)
    assert (out / "model").read_text() == "two"
    (out / "notes.txt").write_text("a user's own")
    with pytest.raises(OutputError, match=r"added or changed \(notes.txt\): move them away"):
        build("three", force=True)
    (out / "notes.txt").unlink()
    (out / "model").write_text("changed by hand")
    with pytest.raises(OutputError, match=r"added or changed \(model\)"):
        build("three", force=True)
    assert (out / "model").read_text() == "changed by hand"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_build_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claims.product(out, "export") as partial:
        (partial / "model").write_text("one")
    before = contents(tmp_path)
    with pytest.raises(ZeroDivisionError), claims.product(out, "export", force=True) as partial:
        (partial / str(1 / 0)).touch()
    assert contents(tmp_path) == before
    # killed between the two renames of replacing it
    out.rename(tmp_path / f".out.before.endprompt-{os.getpid()}.partial")
    with pytest.raises(OutputError, match="already"), claims.product(out, "export"):
        pass
    assert contents(tmp_path) == before


def test_a_reserved_folder_takes_any_settings_of_its_command(tmp_path: Path) -> None:
    with claims.output(tmp_path, "extend") as held:
        held.reserve()
        (tmp_path / "data").touch()
    with pytest.raises(OutputError, match="belongs to"), claims.output(tmp_path, "train"):
        pass
    with claims.output(tmp_path, "extend") as held:
        held.claim({"rows": 256})
    with (
        claims.output(tmp_path, "extend") as held,
        pytest.raises(OutputError, match="another rows"),
    ):
        held.require({"rows": 128})


def test_a_cached_folder_is_built_once_and_one_that_was_changed_is_said(tmp_path: Path) -> None:
    folder, built = tmp_path / "cache" / "model", []

    def build(partial: Path) -> None:
        built.append(partial)
        (partial / "weights").write_text("w")

    with pytest.raises(ZeroDivisionError):
        claims.cached(folder, lambda _: print(1 / 0))
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        assert claims.cached(folder, build) == folder
    assert len(built) == 1
    assert contents(folder) == {"weights": b"w"}
    for harm in ("weights", "more"):
        before = contents(folder)
        (folder / harm).write_text("x")
        with pytest.raises(OutputError, match=rf"changed after it was made \({harm}\): remove it"):
            claims.cached(folder, build)
        (folder / harm).unlink()
        (folder / "weights").write_bytes(before["weights"] or b"")
    (folder.parent / ".model.claim.json").write_text("{")
    with pytest.raises(OutputError, match=r"remove it and \.model\.claim\.json"):
        claims.cached(folder, build)
    (folder.parent / ".model.claim.json").unlink()
    assert claims.cached(folder, build) == folder, "of before there were claims"


CACHER = """
import sys, time
from pathlib import Path
from endprompt.io import claims
def build(folder):
    print("building", flush=True)
    time.sleep(1)
    (folder / "weights").write_text("w")
claims.cached(Path(sys.argv[1]), build)
"""


def test_a_second_process_waits_for_the_cached_folder(tmp_path: Path) -> None:
    child = start(CACHER, tmp_path / "model")
    claims.cached(tmp_path / "model", lambda _: pytest.fail("built twice"))
    assert contents(tmp_path / "model") == {"weights": b"w"}
    child.communicate()


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with claims.output(tmp_path / "run", "train") as held:
        held.claim({"a": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_holder_keeps_its_folder_through_children(tmp_path: Path) -> None:
    with claims.output(tmp_path / "run", "train") as held:
        held.claim({})
        (tmp_path / "run" / "log").touch()
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[held.lock]
        )
    try:
        with (
            pytest.raises(OutputError, match="another process"),
            claims.output(tmp_path / "run", "train"),
        ):
            pass
    finally:
        child.kill()
        child.wait()
    time.sleep(0.05)
    with claims.output(tmp_path / "run", "train"):
        pass
    assert json.loads((tmp_path / "run" / "claim.json").read_text())["endprompt"] == "train"
