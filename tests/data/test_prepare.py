"""Prepared data: the same bytes however often the run was cut, and every fault noticed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from child import Light
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from endprompt.data import manifest as manifests
from endprompt.data import prepare as preparing
from endprompt.data.mixture import Weighted, load_mixture
from endprompt.data.prepare import Options, Progress, prepare
from endprompt.data.prepared import open_documents
from endprompt.data.sources import open_source
from endprompt.errors import DataError, OutputError, TextError

OPTIONS = Options(holdout=0.2, part_tokens=400)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch) -> None:
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 600)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Sixty documents in three files, with seven faulty rows among them."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = ["the", "quick", "fox", "jumps", "over", "für", "dog"]

    def text() -> str:
        return " ".join(rng.choice(words, size=int(rng.integers(3, 60))))

    rows = [json.dumps({"text": text()}) for _ in range(40)]
    rows[5], rows[9], rows[30] = '{"text": ""}', "no json", '{"text": "a\\u0000b"}'
    (folder / "a.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "b.txt").write_text(text())
    more = [json.dumps({"text": text()}) for _ in range(23)]
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(more).encode(), mtime=0))
    return folder


def run(folder: Path, *specs: object, tokenizer, options: Options = OPTIONS, **others):
    weighted = [Weighted(open_source(str(spec))) for spec in specs]
    return prepare(weighted, tokenizer, folder, options=options, **others)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_documents_come_out_as_they_went_in(tmp_path: Path, corpus: Path, tokenizer) -> None:
    out = tmp_path / "out"
    manifest = run(out, corpus, tokenizer=tokenizer)
    train, held = open_documents(out), open_documents(out, split="holdout")
    expected = {}
    for document in open_source(corpus).documents(Counter()):
        expected[document.name] = tokenizer(document.text)["input_ids"] + [tokenizer.eos_token_id]
    found = {docs.name(i): docs[i].tolist() for docs in (train, held) for i in range(len(docs))}
    assert found == expected
    assert set(train.names).isdisjoint(held.names)
    assert 0 < len(held) < len(train)
    assert manifest["documents"] == len(train) + len(held) == 61
    assert manifest["tokens"] == train.tokens + held.tokens
    assert manifest["dropped"] == {"empty": 1, "invalid JSON": 1, "NUL byte": 1}
    assert manifests.verify(out) == []
    assert len(manifest["splits"]["train"]["parts"]) > 3
    assert train[0].dtype == np.uint16
    assert (train.eos, train.bos, train.vocabulary) == (
        tokenizer.eos_token_id,
        None,
        len(tokenizer),
    )


def test_datasets_loads_the_folder(tmp_path: Path, corpus: Path, tokenizer) -> None:
    out = tmp_path / "out"
    run(out, corpus, tokenizer=tokenizer)
    loaded = datasets.load_from_disk(str(out))
    docs = open_documents(out)
    assert set(loaded) == {"train", "holdout"}
    assert loaded["train"]["name"][:] == docs.names
    assert loaded["train"][7]["input_ids"] == docs[7].tolist()
    assert loaded["train"].features["input_ids"].feature.dtype == "uint16"
    parts = [str(path) for path in sorted((out / "train").glob("*.arrow"))]
    assert datasets.load_dataset("arrow", data_files=parts, split="train").num_rows == len(docs)


def test_documents_cross_processes_by_name(tmp_path: Path, corpus: Path, tokenizer) -> None:
    import pickle

    run(tmp_path / "out", corpus, tokenizer=tokenizer)
    docs = open_documents(tmp_path / "out")
    data = pickle.dumps(docs)
    assert len(data) < 500
    assert pickle.loads(data)[3].tolist() == docs[3].tolist()
    assert pickle.loads(data).fingerprint == docs.fingerprint


class Stop(Exception):
    pass


def stop_after(reports: int) -> Callable[[Progress], None]:
    left = [reports]

    def report(_: Progress) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    return report


def test_a_run_that_is_cut_anywhere_ends_with_the_same_bytes(
    tmp_path: Path, corpus: Path, tokenizer
) -> None:
    whole = tmp_path / "whole"
    run(whole, corpus, tokenizer=tokenizer)
    for reports in range(12):
        out = tmp_path / f"cut{reports}"
        for attempt in range(100):
            try:
                run(out, corpus, tokenizer=tokenizer, report=stop_after(reports + attempt))
            except Stop:
                assert not (out / "manifest.json").exists()
                with pytest.raises(DataError, match=r"not complete: run the same|no prepared data"):
                    open_documents(out)
                continue
            break
        assert contents(out) == contents(whole)


@pytest.mark.parametrize("moment", range(14))
def test_a_full_disk_is_one_line_and_what_was_written_stays(
    tmp_path: Path, corpus: Path, tokenizer, moment: int, monkeypatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(whole, corpus, tokenizer=tokenizer)
    left = [moment]
    replace = Path.replace

    def fills_up(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fills_up)
    with pytest.raises(OutputError, match="no space left on the disk"):
        run(out, corpus, tokenizer=tokenizer)
    assert not list(out.rglob("*.partial"))
    monkeypatch.setattr(Path, "replace", replace)
    run(out, corpus, tokenizer=tokenizer)
    assert contents(out) == contents(whole)


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("child.py")), *map(str, arguments)]


def test_killed_and_started_again_it_ends_with_the_same_bytes(
    tmp_path: Path, corpus: Path, tokenizer_folder: str
) -> None:
    tokenizer_file = f"{tokenizer_folder}/tokenizer.json"
    out, whole = tmp_path / "out", tmp_path / "whole"
    for batches in (1, 4, 6):
        words = command(corpus, tokenizer_file, out, 400, 600)
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(batches):
                process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
    assert (out / manifests.JOURNAL).exists()
    (out / ".data-00000.arrow.endprompt-1.partial").write_bytes(b"left by the kill")
    run(out, corpus, tokenizer=Light(tokenizer_file))
    run(whole, corpus, tokenizer=Light(tokenizer_file))
    assert contents(out) == contents(whole)


def test_two_processes_cannot_write_one_folder(tmp_path: Path, corpus: Path, tokenizer) -> None:
    out = tmp_path / "out"
    holder = textwrap.dedent(
        """
        import fcntl, os, sys, time
        os.makedirs(sys.argv[1], exist_ok=True)
        handle = os.open(sys.argv[1], os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        print("held", flush=True)
        time.sleep(60)
        """
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(out)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(OutputError, match="another process is writing"):
        run(out, corpus, tokenizer=tokenizer)
    other.kill()
    other.wait()
    other.stdout.close()
    run(out, corpus, tokenizer=tokenizer)


def test_finished_data_is_reused_only_for_the_same_settings(
    tmp_path: Path, corpus: Path, tokenizer, bos_tokenizer
) -> None:
    out = tmp_path / "out"
    first = run(out, corpus, tokenizer=tokenizer)
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert manifests.load(out) == run(out, corpus, tokenizer=tokenizer)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    with pytest.raises(DataError, match="another tokenizer"):
        run(out, corpus, tokenizer=bos_tokenizer)
    with pytest.raises(DataError, match=r"holdout 0\.2, not 0\.0"):
        run(out, corpus, tokenizer=tokenizer, options=Options(part_tokens=400))
    with pytest.raises(DataError, match="other sources"):
        run(out, corpus / "a.jsonl", tokenizer=tokenizer)
    (corpus / "b.txt").write_text("something else")
    with pytest.raises(DataError, match="are not those that"):
        run(out, corpus, tokenizer=tokenizer)
    assert contents(out) == before
    (out / "split.json").write_text("{}")
    (out / "notes.md").write_text("the user's own")
    (out / "train" / "data-00099.arrow").write_text("of an older run")
    second = run(out, corpus, tokenizer=tokenizer, force=True)
    assert second["tokens"] != first["tokens"]
    assert (out / "notes.md").exists()
    assert not (out / "split.json").exists()  # it speaks of documents that are gone
    assert not (out / "train" / "data-00099.arrow").exists()
    with pytest.raises(DataError, match="made with another tokenizer"):
        open_documents(out, tokenizer=bos_tokenizer)
    assert len(open_documents(out, tokenizer=tokenizer))


def cut_short(out: Path, corpus: Path, tokenizer) -> None:
    with pytest.raises(Stop):
        run(out, corpus, tokenizer=tokenizer, report=stop_after(5))


def test_going_on_with_other_settings_or_text_is_refused(
    tmp_path: Path, corpus: Path, tokenizer, bos_tokenizer
) -> None:
    out = tmp_path / "out"
    cut_short(out, corpus, tokenizer)
    with pytest.raises(DataError, match="another tokenizer"):
        run(out, corpus, tokenizer=bos_tokenizer)
    lines = (corpus / "a.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"text": "changed"})
    (corpus / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="changed in what was read of it before"):
        run(out, corpus, tokenizer=tokenizer)
    run(out, corpus, tokenizer=tokenizer, force=True)
    assert manifests.verify(out) == []


def test_a_text_that_lost_its_beginning_is_refused(tmp_path: Path, corpus: Path, tokenizer) -> None:
    out = tmp_path / "out"
    cut_short(out, corpus, tokenizer)
    for name in ("a.jsonl", "c.jsonl.gz"):
        (corpus / name).unlink()
    with pytest.raises(DataError, match="changed in what was read"):
        run(out, corpus, tokenizer=tokenizer)


def test_a_broken_file_stops_the_run_and_once_repaired_it_goes_on(
    tmp_path: Path, corpus: Path, tokenizer
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    good = (corpus / "c.jsonl.gz").read_bytes()
    status = (corpus / "c.jsonl.gz").stat()
    run(whole, corpus, tokenizer=tokenizer)
    (corpus / "c.jsonl.gz").write_bytes(good[:-20])
    with pytest.raises(TextError, match=r"c\.jsonl\.gz"):
        run(out, corpus, tokenizer=tokenizer)
    assert list(out.glob("train/*.arrow"))
    (corpus / "c.jsonl.gz").write_bytes(good)
    os.utime(corpus / "c.jsonl.gz", ns=(status.st_atime_ns, status.st_mtime_ns))
    run(out, corpus, tokenizer=tokenizer)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("harm", ["flip", "lose"])
def test_a_part_that_changed_is_not_gone_on_with(
    tmp_path: Path, corpus: Path, tokenizer, harm: str
) -> None:
    out = tmp_path / "out"
    cut_short(out, corpus, tokenizer)
    part = out / "train" / "data-00000.arrow"
    if harm == "lose":
        part.unlink()
    else:
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    with pytest.raises(DataError, match="was changed or lost: use --force"):
        run(out, corpus, tokenizer=tokenizer)


@pytest.mark.parametrize("text", ["", "[]", '{"tally": 1}', '{"checksum": "x"}', "[" * 100_000])
def test_a_broken_journal_is_one_line(tmp_path: Path, corpus: Path, tokenizer, text: str) -> None:
    out = tmp_path / "out"
    cut_short(out, corpus, tokenizer)
    (out / manifests.JOURNAL).write_text(text)
    with pytest.raises(DataError, match="is broken: use --force"):
        run(out, corpus, tokenizer=tokenizer)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_flipped_bit_is_found(prepared: Path, data) -> None:
    files = sorted(path for path in prepared.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    harmed = bytearray(whole)
    harmed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(harmed)
    try:
        try:
            faults = manifests.verify(prepared)
        except DataError as error:
            faults = [str(error)]
        try:
            open_documents(prepared)
        except DataError as error:
            faults.append(str(error))
    finally:
        path.write_bytes(whole)
    assert faults
    assert all("\n" not in fault for fault in faults)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "a.jsonl").write_text("".join(f'{{"text": "fox {n}"}}\n' for n in range(200)))
    run(folder / "out", folder / "a.jsonl", tokenizer=tokenizer)
    return folder / "out"


def test_lost_files_are_found(tmp_path: Path, corpus: Path, tokenizer) -> None:
    out = tmp_path / "out"
    run(out, corpus, tokenizer=tokenizer)
    part = out / "train" / "data-00001.arrow"
    whole = part.read_bytes()
    part.write_bytes(whole[:-8])
    with pytest.raises(DataError, match="missing or cut short"):
        open_documents(out)
    part.unlink()
    assert any("cannot be read: No such file" in fault for fault in manifests.verify(out))
    with pytest.raises(DataError, match="no split 'dev', only holdout, train"):
        open_documents(out, split="dev")
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds no prepared data"):
        manifests.verify(out)


def rewrite(out: Path, change: Callable[[dict], None]) -> None:
    manifest = manifests.load(out)
    change(manifest)
    (out / "manifest.json").write_text(json.dumps(manifests.seal(manifest)))


def test_a_manifest_that_counts_wrongly_is_found(tmp_path: Path, corpus: Path, tokenizer) -> None:
    out = tmp_path / "out"
    run(out, corpus, tokenizer=tokenizer)
    rewrite(out, lambda m: m["splits"]["train"]["parts"][0].update(tokens=1))
    assert any("other numbers of documents or tokens" in fault for fault in manifests.verify(out))
    rewrite(out, lambda m: m["tokenizer"].update(vocabulary=3))
    assert any(">= 3" in fault for fault in manifests.verify(out))
    rewrite(out, lambda m: m.update(format_version=99))
    with pytest.raises(DataError, match="later endprompt"):
        open_documents(out)
    rewritten = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**rewritten, "format_version": 1}))
    with pytest.raises(DataError, match="was changed after it was written"):
        open_documents(out)


def test_folders_that_were_prepared_among_the_sources_are_no_source(
    tmp_path: Path, tokenizer
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("In the beginning. " * 50)
    (texts / "claims").mkdir()
    (texts / "claims" / "claim.json").write_text('{"theirs": 1}')
    (texts / "claims" / "b.txt").write_text("Their claim. " * 50)
    for _ in range(2):  # killed, or finished, and given again
        prepare([Weighted(open_source(str(texts)))], tokenizer, texts / "first")
    prepare([Weighted(open_source(str(texts)))], tokenizer, texts / "second")
    assert len(open_documents(texts / "first")) == len(open_documents(texts / "second")) == 2


def test_a_foreign_folder_is_left_alone(tmp_path: Path, corpus: Path, tokenizer) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError, match=r"holds other files \(thesis\.txt\)"):
            run(out, corpus, tokenizer=tokenizer, force=force)
    with pytest.raises(OutputError, match="cannot use folder"):
        run(out / "thesis.txt", corpus, tokenizer=tokenizer)
    assert contents(out) == {"thesis.txt": b"mine"}


def test_limits_drop_and_stop_where_they_say(tmp_path: Path, corpus: Path, tokenizer) -> None:
    all_ = run(tmp_path / "all", corpus, tokenizer=tokenizer)
    docs = open_documents(tmp_path / "all")
    manifest = run(
        tmp_path / "few", corpus, tokenizer=tokenizer, options=Options(min_document_tokens=30)
    )
    few = open_documents(tmp_path / "few")
    assert few.lengths.min() >= 30
    assert manifest["dropped"]["fewer than 30 tokens"] == all_["documents"] - len(few)
    manifest = run(
        tmp_path / "stopped", corpus, tokenizer=tokenizer, options=Options(max_tokens=1000)
    )
    stopped = open_documents(tmp_path / "stopped")
    assert stopped.tokens >= 1000 > stopped.tokens - stopped.lengths[-1]
    assert set(stopped.names) <= {
        *docs.names,
        *open_documents(tmp_path / "all", split="holdout").names,
    }


def test_a_run_that_was_full_when_it_was_cut_is_finished(
    tmp_path: Path, corpus: Path, tokenizer, monkeypatch
) -> None:
    options = Options(max_tokens=1000)
    run(tmp_path / "whole", corpus, tokenizer=tokenizer, options=options)

    def fail(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "write_datasets_files", fail)
        with pytest.raises(Stop):
            run(tmp_path / "out", corpus, tokenizer=tokenizer, options=options)
    run(tmp_path / "out", corpus, tokenizer=tokenizer, options=options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_equal_documents_are_held_out_together(tmp_path: Path, tokenizer) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        rows = [json.dumps({"text": f"fox number {n}"}) for n in range(200)]
        (tmp_path / name).write_text("\n".join(rows))
    out = tmp_path / "out"
    run(out, tmp_path / "a.jsonl", tmp_path / "b.jsonl", tokenizer=tokenizer)
    held = open_documents(out, split="holdout")
    texts = [tuple(held[i].tolist()) for i in range(len(held))]
    assert len(held) == 2 * len(set(texts))
    assert 20 < len(set(texts)) < 60


def test_nothing_left_is_an_error_that_counts_why(tmp_path: Path, corpus: Path, tokenizer) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        TextError, match=r"no document left to train on: .*61 fewer than 999 tokens"
    ):
        run(out, corpus, tokenizer=tokenizer, options=Options(min_document_tokens=999))
    assert contents(out) == {}
    run(out, corpus, tokenizer=tokenizer)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(TextError, match="the sources are empty"):
        run(tmp_path / "none", tmp_path / "empty.jsonl", tokenizer=tokenizer)


def mixture(folder: Path, weights: dict[str, float]) -> list[Weighted]:
    lines = ["sources:"]
    for name, weight in weights.items():
        lines.append(f"  - {{source: {folder / name}, weight: {weight}}}")
    (folder / "mixture.yaml").write_text("\n".join(lines))
    return load_mixture(folder / "mixture.yaml")


@pytest.fixture
def two_sources(tmp_path: Path) -> Path:
    """Long and short documents, in words of different lengths."""
    rng = np.random.default_rng(1)
    for name, word, size in (("a.jsonl", "fox ", 50), ("b.jsonl", "zwölfzehn ", 9)):
        rows = [json.dumps({"text": word * int(rng.integers(1, size))}) for _ in range(600)]
        (tmp_path / name).write_text("\n".join(rows))
    return tmp_path


def test_a_mixture_keeps_its_shares_from_beginning_to_end(two_sources: Path, tokenizer) -> None:
    sources = mixture(two_sources, {"a.jsonl": 3, "b.jsonl": 1})
    out = two_sources / "out"
    manifest = prepare(sources, tokenizer, out, options=Options(part_tokens=500, max_tokens=8000))
    tokens = [entry["tokens"] for entry in manifest["sources"]]
    assert sum(tokens) == manifest["tokens"]
    assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.03)
    docs = open_documents(out)
    half = len(docs) // 2
    first = sum(docs.lengths[i] for i in range(half) if docs.name(i).startswith("a"))
    assert first / docs.lengths[:half].sum() == pytest.approx(0.75, abs=0.05)


def test_a_mixture_ends_when_one_source_runs_dry(two_sources: Path, tokenizer) -> None:
    sources = mixture(two_sources, {"a.jsonl": 1, "b.jsonl": 3})
    manifest = prepare(sources, tokenizer, two_sources / "out")
    assert [entry["ran_dry"] for entry in manifest["sources"]] == [False, True]
    tokens = [entry["tokens"] for entry in manifest["sources"]]
    assert tokens[1] / sum(tokens) == pytest.approx(0.75, abs=0.03)


def test_a_mixture_that_is_cut_ends_with_the_same_bytes(two_sources: Path, tokenizer) -> None:
    options = Options(part_tokens=500)
    sources = mixture(two_sources, {"a.jsonl": 2, "b.jsonl": 1})
    prepare(sources, tokenizer, two_sources / "whole", options=options)
    out = two_sources / "out"
    for reports in (3, 7, 11):
        with pytest.raises(Stop):
            prepare(sources, tokenizer, out, options=options, report=stop_after(reports))
    prepare(sources, tokenizer, out, options=options)
    assert contents(out) == contents(two_sources / "whole")


def test_a_mixture_of_token_ids_counts_them_as_they_are(tmp_path: Path, tokenizer) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        rows = [json.dumps({"input_ids": [1, 2, 3, 4]}) for _ in range(50)]
        (tmp_path / name).write_text("\n".join(rows))
    sources = mixture(tmp_path, {"a.jsonl": 1, "b.jsonl": 1})
    manifest = prepare(sources, tokenizer, tmp_path / "out")
    assert [entry["tokens"] for entry in manifest["sources"]] == [200, 200]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: []", "sources: List should have at least 1 item"),
        ("sources:\n  - {source: a, wieght: 1}", r"sources\.0\.wieght: Extra inputs"),
        ("sources:\n  - {source: a, weight: 0}", r"weight: Input should be greater than 0"),
        ("sources:\n  - {source: a, weight: .inf}", r"weight: Input should be a finite number"),
        ("sources: [", "cannot read mixture"),
        ("3", "the file: Input should be"),
        ("sources:\n  - {source: '-'}", "standard input has no weight"),
        ("sources:\n  - {source: ./none.txt}", "no such file"),
        (None, "cannot read mixture .*: No such file"),
    ],
)
def test_a_wrong_mixture_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "m.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TextError, match=message) as error:
        load_mixture(path)
    assert "\n" not in str(error.value)


def test_progress_is_told_with_the_share_that_is_done(
    tmp_path: Path, corpus: Path, tokenizer
) -> None:
    told: list[Progress] = []
    run(tmp_path / "out", corpus, tokenizer=tokenizer, report=told.append)
    shares = [progress.share for progress in told]
    assert None not in shares
    assert sorted(shares) == shares  # type: ignore[type-var]
    assert shares[-1] == 1.0
    assert told[-1].documents == 61
    told.clear()
    options = Options(max_tokens=10**9)
    run(tmp_path / "out2", corpus, tokenizer=tokenizer, report=told.append, options=options)
    assert told[-1].share == 1.0


def test_ids_above_the_vocabulary_stop_the_run(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text('{"input_ids": [1, 2]}\n{"input_ids": [1, 99999]}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2 holds token id 99999, above the vocabulary"):
        run(tmp_path / "out", tmp_path / "a.jsonl", tokenizer=tokenizer)


def test_memory_does_not_grow_with_the_input(tmp_path: Path, tokenizer_folder: str) -> None:
    """Ten times the text, the same peak: measured in processes of their own."""
    peaks = []
    for name, rows in (("small", 300), ("large", 3000)):
        source = tmp_path / f"{name}.jsonl"
        chosen = np.random.default_rng(0).choice(["the", "quick", "brown", "fox"], (rows, 200))
        source.write_text("".join(f'{{"text": "{" ".join(row)}"}}\n' for row in chosen))
        words = command(
            source, f"{tokenizer_folder}/tokenizer.json", tmp_path / name, 100_000, 100_000
        )
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 20_000  # KiB


def test_time_goes_with_the_input(tmp_path: Path, tokenizer) -> None:
    """Nothing quadratic: thousands of tiny documents in a moment."""
    (tmp_path / "a.jsonl").write_text('{"text": "fox"}\n' * 20_000)
    began = time.process_time()
    run(tmp_path / "out", tmp_path / "a.jsonl", tokenizer=tokenizer, options=Options())
    assert time.process_time() - began < 15
