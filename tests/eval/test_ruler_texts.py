"""Words, sentences, and the texts that RULER's tasks are made of."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize.punkt import PunktSentenceTokenizer

from endprompt.errors import DependencyError, EvaluationError
from endprompt.eval.ruler import Data, standin, templates
from endprompt.eval.ruler import data as data_module
from endprompt.eval.ruler.sentences import Beginnings
from endprompt.eval.ruler.words import Compounds, all_words, compounds, word_list
from endprompt.io.files import sha256_of

PARTS = st.lists(st.sampled_from(("a", "b", "a-b", "a-b-c", "ab", "B", "b c")), max_size=6)


@given(adjectives=PARTS, nouns=PARTS)
def test_compounds_are_the_sorted_set_of_all(adjectives: list[str], nouns: list[str]) -> None:
    full = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    found = Compounds(adjectives, nouns)
    assert [found[at] for at in range(len(found))] == full


def test_compounds_of_all_words_are_sorted_where_sampled() -> None:
    found = compounds()
    sampled = [found[at] for at in range(0, len(found), 997)]
    assert sampled == sorted(set(sampled))
    assert len(found) == len(set(word_list("adjective"))) * len(set(word_list("noun")))
    with pytest.raises(IndexError):
        found[len(found)]


def test_words_are_sorted_and_unique() -> None:
    assert list(all_words()) == sorted(set(all_words()))


PROSE = st.lists(
    st.sampled_from(
        ("One", "two", "end.", 'said."', "Dr.", "p.m.", "Yes!", "(No.)", "etc.", "...", "A.", "x")
    ),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@given(words=PROSE, counts=st.lists(st.integers(1, 150), min_size=1, max_size=8))
def test_sentences_of_a_beginning_are_those_of_its_text(
    words: list[str], counts: list[int]
) -> None:
    splitter = PunktSentenceTokenizer()
    beginnings = Beginnings(words, splitter)
    for count in counts:
        repeated = (words * (count // len(words) + 1))[:count]
        assert beginnings.first(count) == splitter.tokenize(" ".join(repeated).strip())


def test_stand_in_is_the_same_on_every_machine() -> None:
    made = {
        "essays": sha256_of(standin.essays()),
        "squad": sha256_of(standin.squad()),
        "hotpotqa": sha256_of(standin.hotpotqa()),
        "english_words": sha256_of(standin.english_words()),
    }
    assert {name: digest[:12] for name, digest in made.items()} == STAND_IN


STAND_IN = {
    "essays": "9f0ab49aa699",
    "squad": "65e20fe3eb74",
    "hotpotqa": "89f4d6c27ab0",
    "english_words": "a28ad6127534",
}


def test_stand_in_questions_are_answered_by_their_documents() -> None:
    articles = standin.squad()["data"]
    for paragraph in chain.from_iterable(article["paragraphs"] for article in articles):
        for qa in paragraph["qas"]:
            assert all(answer["text"] in paragraph["context"] for answer in qa["answers"])
    for item in standin.hotpotqa():
        assert any(item["answer"] in "".join(sentences) for _, sentences in item["context"])


def test_files_are_read_in_their_original_formats(tmp_path: Path) -> None:
    for what in ("squad", "hotpotqa"):
        (tmp_path / what).write_text(json.dumps(getattr(standin, what)()))
    (tmp_path / "essays.txt").write_text("A b.  C\n\nd. ")
    given = Data(
        essays=tmp_path / "essays.txt", squad=tmp_path / "squad", hotpotqa=tmp_path / "hotpotqa"
    )
    assert given.essays().text(4) == "A b. C d."
    assert given.source("essays").published
    made_up = Data(hub=False)
    for what in ("squad", "hotpotqa"):
        assert given.collection(what) == made_up.collection(what)
        assert not made_up.source(what).published
        assert given.source(what).origin == what


@pytest.mark.parametrize(
    ("what", "content", "message"),
    [
        ("essays", "{", "is not JSON"),
        ("essays", "version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("essays", '{"text": "  "}', "holds nothing"),
        ("essays", '{"words": ""}', "not in the original format of essays"),
        ("squad", '{"data": [{"paragraphs": [{}]}]}', "not in the original format of squad"),
        ("squad", '{"data": []}', "holds nothing"),
        ("hotpotqa", "[]", "holds nothing"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, what: str, content: str, message: str) -> None:
    path = tmp_path / "given.json"
    path.write_text(content)
    files: dict[str, Any] = {what: path}
    data = Data(**files, hub=False)
    with pytest.raises(EvaluationError, match=message):
        data.essays() if what == "essays" else data.collection(what)


def test_a_missing_file_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no file .*squad"):
        Data(squad=tmp_path / "squad.json")


def test_rows_of_the_hub_become_the_original_format() -> None:
    squad = standin.squad(titles=3, paragraphs=4)
    rows = [
        {
            "title": article["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {"text": [answer["text"] for answer in qa["answers"]]},
        }
        for article in squad["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    assert data_module._squad_of_rows(rows)["data"] == squad["data"]
    hotpotqa = standin.hotpotqa(3)
    rows = [
        {
            "question": item["question"],
            "answer": item["answer"],
            "context": {
                "title": [title for title, _ in item["context"]],
                "sentences": [sentences for _, sentences in item["context"]],
            },
        }
        for item in hotpotqa
    ]
    assert data_module._hotpotqa_of_rows(rows) == hotpotqa


def test_a_hub_out_of_reach_gives_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(data_module, "reachable", lambda address: False)
    data = Data()
    data.collection("squad")
    assert data.source("squad").origin == standin.NAME


def test_reach_of_a_server_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert not data_module.reachable("http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    assert data_module.reachable("http://127.0.0.1:9")


def test_wording_of_another_lm_eval_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "PUBLISHED", "0")
    templates.templates.cache_clear()
    with pytest.raises(DependencyError, match=r"words RULER's prompts otherwise.*lm-eval=="):
        templates.templates()
    monkeypatch.undo()
    assert re.search(r"assigned the value", templates.templates().vt.answer_prefix)
