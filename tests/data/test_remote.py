"""Prepared data at a URL is fetched once, whole and checked."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from endprompt.data import manifest as manifests
from endprompt.data.mixture import Weighted
from endprompt.data.prepare import Options, prepare
from endprompt.data.prepared import open_documents
from endprompt.data.remote import local
from endprompt.data.sources import open_source
from endprompt.errors import DataError, DependencyError

URL = "memory://bucket/data"


@pytest.fixture
def bucket(tmp_path: Path, tokenizer, monkeypatch):
    monkeypatch.setenv("ENDPROMPT_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "a.jsonl"
    source.write_text("".join(f'{{"text": "fox {n}"}}\n' for n in range(100)))
    options = Options(holdout=0.2, part_tokens=100)
    prepare([Weighted(open_source(source))], tokenizer, tmp_path / "out", options=options)
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(tmp_path / "out"), "/bucket/data", recursive=True)
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


def test_it_is_what_was_put_there_and_is_fetched_once(bucket, tmp_path: Path, monkeypatch) -> None:
    before, docs = open_documents(tmp_path / "out"), open_documents(URL)
    assert docs.fingerprint == before.fingerprint
    assert [docs[i].tolist() for i in range(len(docs))] == [
        d.tolist() for d in map(before.__getitem__, range(len(before)))
    ]
    monkeypatch.setattr(type(bucket), "open", lambda *_: pytest.fail("fetched twice"))
    assert local(URL + "/") == local(URL)
    assert manifests.verify(local(URL)) == []


def test_a_fetch_that_was_cut_goes_on(bucket, monkeypatch) -> None:
    opened: list[str] = []
    real = type(bucket).open

    def until(limit: int):
        def open_(self, path: str, mode: str = "rb"):
            if len(opened) == limit:
                raise ConnectionError("gone")
            opened.append(path)
            return real(self, path, mode)

        return open_

    monkeypatch.setattr(type(bucket), "open", until(3))
    with pytest.raises(DataError, match="gone"):
        local(URL)
    monkeypatch.setattr(type(bucket), "open", until(10**6))
    local(URL)
    assert len(opened) == len(set(opened))


def test_what_differs_from_its_checksum_is_refused(bucket) -> None:
    path = "/bucket/data/train/data-00000.arrow"
    data = bytearray(bucket.cat_file(path))
    data[len(data) // 2] ^= 1
    bucket.pipe_file(path, bytes(data))
    with pytest.raises(DataError, match=r"train/data-00000\.arrow differs from its checksum"):
        local(URL)
    bucket.rm(path)
    with pytest.raises(
        DataError, match=r"cannot read memory://bucket/data/train/data-00000\.arrow"
    ):
        local(URL)


def test_a_manifest_cannot_name_files_outside_its_folder(bucket, tmp_path: Path) -> None:
    manifest = manifests.load(tmp_path / "out")
    for name in ("../evil", "/etc/evil"):
        manifest["files"] = {name: "0"}
        bucket.pipe_file(
            "/bucket/data/manifest.json", json.dumps(manifests.seal(manifest)).encode()
        )
        with pytest.raises(DataError, match="outside of its folder"):
            local(URL)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}"])
def test_where_nothing_was_prepared_is_one_line(bucket, content: bytes | None) -> None:
    bucket.rm("/bucket/data/manifest.json")
    if content is not None:
        bucket.pipe_file("/bucket/data/manifest.json", content)
    with pytest.raises(DataError, match="no prepared data at memory://bucket/data"):
        local(URL)


def test_a_kind_of_url_without_its_package_says_which(monkeypatch) -> None:
    def no_s3fs(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", no_s3fs)
    with pytest.raises(DependencyError, match="Install s3fs"):
        local("s3://bucket/data")
