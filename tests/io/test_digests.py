"""Digests of what is read: of every byte, computed once, and never a stale one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from endprompt.io import digests, files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own; files count as settled at once."""
    monkeypatch.setenv("ENDPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 0.0)
    return tmp_path / "cache"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes are read from here on."""
    read: list[str] = []
    of_bytes = digests._of_bytes
    monkeypatch.setattr(digests, "_of_bytes", lambda path: read.append(path.name) or of_bytes(path))
    return read


def test_every_byte_counts(tmp_path: Path) -> None:
    data = bytearray(10 * 2**20)
    (tmp_path / "a").write_bytes(data)
    first = digests.of_file(tmp_path / "a")
    for place in (0, 5 * 2**20 + 1, len(data) - 1):
        changed = bytearray(data)
        changed[place] = 1
        (tmp_path / "a").write_bytes(changed)
        assert digests.of_file(tmp_path / "a") != first
    (tmp_path / "a").write_bytes(data)
    assert digests.of_file(tmp_path / "a") == first


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    time.sleep(0.02)
    read = counted(monkeypatch)
    assert digests.of_file(tmp_path / "a") == digests.of_file(tmp_path / "link")
    assert read == ["a"]


def test_bytes_changed_behind_equal_size_and_time_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("a" * 100)
    at = path.stat()
    time.sleep(0.02)
    first = digests.of_file(path)
    path.write_text("b" * 100)
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert path.stat().st_mtime_ns == at.st_mtime_ns
    assert digests.of_file(path) != first


def test_a_file_just_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 60.0)
    (tmp_path / "a").write_text("a")
    digests.of_file(tmp_path / "a")
    read = counted(monkeypatch)
    digests.of_file(tmp_path / "a")
    assert read == ["a"]


@pytest.mark.parametrize("kept", ["", "[]", "[" * 100_000, '{"/x": 3, "/y": [1, 2]}', "\0"])
def test_a_damaged_or_unwritable_cache_costs_time_alone(
    tmp_path: Path, cache: Path, kept: str
) -> None:
    (tmp_path / "a").write_text("a")
    first = digests.of_file(tmp_path / "a")
    cache.mkdir(exist_ok=True)
    (cache / "digests.json").write_text(kept)
    assert digests.of_file(tmp_path / "a") == first
    (cache / "digests.json").unlink()
    cache.rmdir()
    cache.write_text("a file")
    assert digests.of_file(tmp_path / "a") == first


def test_the_cache_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MOST_KEPT", 3)
    for name in "abcdef":
        (tmp_path / name).write_text(name)
    time.sleep(0.02)
    digests.of_files(tmp_path / name for name in "abcdef")
    read = counted(monkeypatch)
    digests.of_files(tmp_path / name for name in "defabc")
    assert read == ["a", "b", "c"]


def test_a_models_digests_follow_weights_tokenizer_and_config(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    named = {"model.safetensors": "weights", "tokenizer.json": "tokenizer", "config.json": "config"}
    for name in named:
        (folder / name).write_text(name)
    before = digests.of_model(str(folder))
    assert sorted(before) == ["config_digest", "tokenizer_digest", "weights_digest"]
    for name, group in named.items():
        (folder / name).write_text("other")
        now = digests.of_model(str(folder))
        assert [key for key in now if now[key] != before[key]] == [f"{group}_digest"]
        before = now
    (folder / "notes.txt").write_text("nothing")
    assert digests.of_model(str(folder)) == before
    assert files.cache_folder() == tmp_path / "cache"
