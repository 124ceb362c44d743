"""Copies of held-out text: found wherever they stand, whatever was edited, in bounded memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endprompt.data import copies, holdout
from endprompt.data import manifest as manifests
from endprompt.data import prepare as preparing
from endprompt.data.copies import Fingerprints
from endprompt.data.mixture import Weighted
from endprompt.data.prepare import Options, prepare
from endprompt.data.prepared import open_documents
from endprompt.data.sources import open_source
from endprompt.data.tokens import TokenDocuments, tokenise
from endprompt.data.words import Words
from endprompt.errors import TextError

SHARED = copies.GRAM + copies.WINDOW - 1


def random_ids(count: int, seed: int, vocabulary: int = 50_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, count).astype(np.uint16)


def covered(found: list[tuple[int, int]], start: int, stop: int) -> int:
    return sum(max(0, min(b, stop) - max(a, start)) for a, b in found)


@given(
    st.integers(100, 900), st.integers(0, 500), st.integers(0, 900), st.integers(0, 900), st.data()
)
def test_a_copied_stretch_is_found_wherever_it_stands(
    length: int, start: int, before: int, after: int, data
) -> None:
    held = random_ids(1400, seed=data.draw(st.integers(0, 99)))
    stretch = held[start : start + length]
    text = np.concatenate([random_ids(before, 200), stretch, random_ids(after, 201)])
    found = Fingerprints.of([held]).copies(text)
    assert covered(found, before, before + length) >= length - SHARED
    margin = copies.COPY + SHARED  # a rest smaller than a copy goes with it
    assert covered(found, 0, len(text)) <= length + 2 * margin
    rest = np.concatenate([np.arange(a, b) for a, b in copies.rests(found, len(text))] or [[]])
    assert len(rest) + covered(found, 0, len(text)) == len(text)


@pytest.mark.parametrize("kind", ["words replaced", "words left out", "one word in forty"])
def test_edits_do_not_hide_a_copy(kind: str) -> None:
    held = random_ids(5000, seed=0)
    edited = held.copy()
    hit = np.random.default_rng(1).random(5000) < 0.02
    if kind == "words replaced":
        edited[hit] = 7
    elif kind == "words left out":
        edited = held[~hit]
    else:
        edited[::40] = 7
    found = Fingerprints.of([held]).copies(edited)
    assert covered(found, 0, len(edited)) > 0.95 * len(edited)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=300))
def test_an_equal_document_is_a_copy_whatever_it_holds(ids: list[int]) -> None:
    """The shortest, and text that repeats itself, too."""
    assert Fingerprints.of([np.array(ids)]).copies(np.array(ids)) == [(0, len(ids))]


@given(st.integers(0, 99), st.integers(1, copies.GRAM))
def test_other_text_and_set_phrases_are_no_copies(seed: int, phrase: int) -> None:
    held, text = random_ids(3000, seed), random_ids(3000, seed + 1000)
    text[1000 : 1000 + phrase] = held[500 : 500 + phrase]
    assert Fingerprints.of([held]).copies(text) == []


@pytest.mark.parametrize("family", ["tokenizer", "prefix_tokenizer", "bos_tokenizer"])
def test_other_line_breaks_case_and_punctuation_hide_no_copy(
    family: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(family)
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnop"))
    drawn = ["".join(rng.choice(letters, rng.integers(1, 9))) for _ in range(600)]
    lines = [" ".join(drawn[n : n + 9]) + "," for n in range(0, 600, 9)]
    if family != "prefix_tokenizer":  # it knows few capitals
        lines = [line.capitalize() for line in lines]
    documents = tokenise([" ".join(drawn), "\n".join(lines)], tokenizer)
    marks = Fingerprints.of([documents[0]], Words(tokenizer))
    assert marks.copies(documents[1]) == [(0, len(documents[1]))]
    other = tokenise([" ".join(reversed(drawn))], tokenizer)
    assert marks.copies(other[0]) == []


@given(st.lists(st.text(max_size=40), min_size=1, max_size=8))
def test_every_token_of_a_word_belongs_to_it(texts: list[str]) -> None:
    """However a text is cut into tokens, its words are the same."""
    vocabulary = sorted({*"".join(texts), *texts, " "} - {""})

    class Cut:
        """A tokenizer whose tokens are whole texts, and single characters."""

        def __len__(self) -> int:
            return len(vocabulary)

        def decode(self, ids: list[int]) -> str:
            return "".join(vocabulary[number] for number in ids)

    words = Words(Cut())
    fine = [vocabulary.index(letter) for text in texts for letter in text]
    coarse = [vocabulary.index(text) for text in texts if text]
    plain = all(letter < "\u2e80" for text in texts for letter in text)
    one_word = all(text.isalnum() for text in texts if text)
    if fine and plain and one_word:
        assert words(np.array(fine))[0].tolist() == words(np.array(coarse))[0].tolist()


def test_a_long_document_is_read_in_stretches_as_in_one(monkeypatch) -> None:
    held = random_ids(9000, seed=0)
    text = np.concatenate([random_ids(2500, 1), held, random_ids(2500, 2)])
    monkeypatch.setattr(copies, "SEGMENT_TOKENS", 1000)
    found = Fingerprints.of([held]).copies(text)
    assert covered(found, 2500, 11_500) >= 9000 - 2 * SHARED
    assert covered(found, 0, len(text)) <= 9000 + 2 * (copies.COPY + SHARED)
    assert Fingerprints.of([held]).copies(held) == [(0, 9000)]


def test_memory_has_a_bound_and_long_copies_are_found_all_the_same(monkeypatch) -> None:
    monkeypatch.setattr(copies, "LARGEST", 2000)
    held = [random_ids(20_000, seed) for seed in range(4)]
    marks = Fingerprints.of(held)
    assert len(marks.grams) <= 2000
    assert marks.thinned == 3
    for ids in held:
        assert covered(marks.copies(ids), 0, len(ids)) > 0.9 * len(ids)
    assert marks.copies(random_ids(20_000, 99)) == []


def test_texts_of_many_chunks_are_read_like_short_ones() -> None:
    held = random_ids(3000, seed=0)
    text = random_ids(3 * copies._CHUNK, seed=1)
    for border in (copies._CHUNK, 2 * copies._CHUNK):
        text[border - 100 : border + 100] = held[200:400]
    (a, b), (c, d) = Fingerprints.of([held]).copies(text)
    for start, stop, border in ((a, b, copies._CHUNK), (c, d, 2 * copies._CHUNK)):
        assert abs(start - (border - 100)) < SHARED
        assert abs(stop - (border + 100)) < SHARED


def test_a_text_twice_under_two_names_is_not_trained_on_when_it_is_held_out() -> None:
    texts = [random_ids(600, seed) for seed in range(6)]
    names = [f"{kind}{n}" for kind in ("book", "copy") for n in range(6)]
    found = TokenDocuments.from_arrays([*texts, *texts], names)
    split = holdout.split(found, tokens=500, count=2, row_tokens=64)
    held = {piece.document % 6 for pieces in split.held_out for piece in pieces}
    assert not held & {piece.document % 6 for piece in split.train}
    assert len(split.train) == 12 - 2 * len(held)
    assert (split.copied_documents, split.copied_tokens) == (len(held), 600 * len(held))


def test_a_file_of_all_texts_gives_up_the_held_out_ones_alone() -> None:
    texts = [random_ids(600, seed) for seed in range(6)]
    found = TokenDocuments.from_arrays([*texts, np.concatenate(texts)])
    split = holdout.split(found, tokens=500, count=2, row_tokens=64)
    held = {piece.document for pieces in split.held_out for piece in pieces}
    assert held
    assert 6 not in held
    inside = [piece for piece in split.train if piece.document == 6]
    trained = sum(piece.stop - piece.start for piece in inside)
    assert trained == pytest.approx(3600 - 600 * len(split.held_out), abs=2 * SHARED)


def test_text_of_copies_alone_is_refused_with_the_numbers() -> None:
    found = TokenDocuments.from_arrays([random_ids(600, 0)] * 3)
    with pytest.raises(TextError, match=r"0 tokens are left to train on, .* 1200 tokens are cop"):
        holdout.split(found, tokens=500, count=1, row_tokens=64)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Forty texts; each stands in two files, the second time with a changed first sentence."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "corpus"
    folder.mkdir()
    letters = np.array(list("abcdefghijklmnop"))
    texts = [" ".join("".join(rng.choice(letters, 4)) for _ in range(150)) for _ in range(40)]
    for name, first in (("a", "One."), ("b", "Another beginning of it.")):
        rows = [json.dumps({"text": f"{first} {text}"}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return folder


def run(corpus: Path, out: Path, tokenizer) -> dict:
    options = Options(holdout=0.2, part_tokens=4000)
    return prepare([Weighted(open_source(corpus))], tokenizer, out, options=options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_prepare_leaves_copies_of_held_out_text_out_and_counts_them(
    tmp_path: Path, corpus: Path, tokenizer, monkeypatch
) -> None:
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 2000)
    manifest = run(corpus, tmp_path / "out", tokenizer)
    train = open_documents(tmp_path / "out")
    held = open_documents(tmp_path / "out", split="holdout")
    numbers = {name.rsplit(":")[-1] for name in held.names}
    assert numbers
    assert not numbers & {name.rsplit(":")[-1] for name in train.names}
    assert manifest["copied"]["documents"] > 0
    assert manifest["copied"]["documents"] == 80 - len(train) - len(held)
    assert manifest["tokens"] == train.tokens + held.tokens
    before = sum(entry["tokens"] for entry in manifest["sources"])
    assert before == manifest["tokens"] + manifest["copied"]["tokens"]
    assert manifests.verify(tmp_path / "out") == []


def test_what_stands_beside_a_copy_is_kept_as_documents(tmp_path: Path, bos_tokenizer) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnop"))
    texts = [" ".join("".join(rng.choice(letters, 4)) for _ in range(150)) for _ in range(20)]
    for number, text in enumerate(texts):
        (corpus / f"{number}.txt").write_text(text)
    (corpus / "all.txt").write_text("\n".join(texts))
    manifest = run(corpus, tmp_path / "out", bos_tokenizer)
    train = open_documents(tmp_path / "out")
    whole = train[train.names.index("all.txt")]
    held = manifest["splits"]["holdout"]["documents"]
    assert held
    assert manifest["copied"]["documents"] == 0
    assert manifest["copied"]["tokens"] > 200 * held
    cuts = int((whole[1:] == train.bos).sum())
    assert 0 < cuts <= held
    assert (whole[:-1] == train.eos).sum() == cuts
    assert whole[0] == train.bos
    assert whole[-1] == train.eos


@pytest.mark.parametrize("stop", ["before the journal", "behind the journal"])
def test_killed_while_copies_are_left_out_gives_the_same_bytes(
    tmp_path: Path, corpus: Path, tokenizer, monkeypatch, stop: str
) -> None:
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 2000)
    run(corpus, tmp_path / "whole", tokenizer)
    assert any(name.endswith(preparing.CLEAN) for name in contents(tmp_path / "whole"))
    write, journal = preparing._Run._write_part, preparing._Run._write_journal
    cleaned: list[str] = []

    def part(self, name, documents):
        found = write(self, name, documents)
        if name.endswith(preparing.CLEAN):
            cleaned.append(name)
            if len(cleaned) == 2 and stop.startswith("before"):
                raise KeyboardInterrupt
        return found

    def named(self, tally) -> None:
        journal(self, tally)
        if len(cleaned) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparing._Run, "_write_part", part)
        patch.setattr(preparing._Run, "_write_journal", named)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "cut", tokenizer)
    run(corpus, tmp_path / "cut", tokenizer)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
