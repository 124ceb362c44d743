"""Tasks that no row teaches: sized in tokens, asked by distance, scored as their authors do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks.babilong import common_utils as babilong
from lm_eval.tasks.graphwalks import utils as graphwalks
from tiny_lm import tiny_engine, tiny_tokenizer

from endprompt.cli.app import run
from endprompt.errors import EvaluationError
from endprompt.eval import untaught
from endprompt.eval.engine import Coder
from endprompt.eval.results import Question

SENTENCES = [f"Sentence number {n} of some text, which says little." for n in range(400)]


@pytest.fixture(scope="module")
def coder() -> Coder:
    return Coder(tiny_tokenizer())


@settings(max_examples=25, deadline=None)
@given(
    task=st.sampled_from(list(untaught.TASKS)),
    size=st.integers(untaught.LEAST, 120),
    asked=st.integers(4, 32),
    seed=st.integers(0, 5),
)
def test_an_answer_stands_in_the_part_that_its_question_names(
    task: str, size: int, asked: int, seed: int
) -> None:
    made = untaught.TASKS[task](size, asked, seed, SENTENCES)
    again = untaught.TASKS[task](size, asked, seed, SENTENCES)
    assert made == again
    assert 1 <= len(made.asks) <= asked
    for ask in made.asks:
        part = made.parts[ask.part]
        if task == "facts-2":  # the thing is taken there; where it goes is told further on
            thing = ask.question.split()[1]
            assert f"took the {thing}." in part
            person = part.split()[0]
            last = [one for one in made.parts if one.split()[:1] == [person]][-1]
            assert last.rstrip().endswith(f"the {ask.answer}.")
        else:
            assert ask.answer.strip().rstrip('"]') in part
        assert not ask.choices or ask.answer in ask.choices
    depths = [ask.part / len(made.parts) for ask in made.asks]
    if task in ("json-kv", "graphwalks", "facts-1"):
        assert depths == sorted(depths)


def test_an_asked_key_has_near_copies_elsewhere() -> None:
    made = untaught.json_kv(200, 16, 0, ())
    pairs = json.loads("{" + "".join(made.parts[1:-1]).rstrip(",\n") + "}")
    assert len(pairs) == 200  # no key stands twice
    for ask in made.asks:
        key = ask.question.split('"')[1]
        assert pairs[key] == ask.answer.rstrip('"')
        near = [k for k in pairs if sum(a != b for a, b in zip(k, key, strict=True)) == 1]
        assert len(near) >= untaught.NEAR_KEYS


def test_the_latest_of_two_places_counts() -> None:
    made = untaught.facts_1(100, 8, 3, SENTENCES)
    for ask in made.asks:
        person = ask.question.split(" of ")[1].split()[0]
        said = [part for part in made.parts if part.split()[:1] == [person]]
        assert len(said) == 2
        assert said[-1].rstrip(".\n ").endswith(ask.answer)
        assert not said[0].rstrip(".\n ").endswith(ask.answer)


def test_the_passage_asked_for_is_the_nth_of_its_kind_and_topic() -> None:
    made = untaught.mrcr(100, 16, 0, SENTENCES)
    for ask in made.asks:
        words = ask.question.split("Prepend ")[1].split()
        number, kind, topic = words[3], words[4], words[7].rstrip(".")
        same = [p for p in made.parts if f"Write a {kind} about the {topic}." in p]
        assert made.parts[ask.part] == same[int(number[0]) - 1]
        assert len(same) == untaught.COPIES


def test_a_node_asked_for_has_one_parent() -> None:
    made = untaught.graphwalks(150, 16, 0, ())
    edges = [line.strip().split(" -> ") for line in made.parts[1:]]
    for ask in made.asks:
        node = ask.question.split("node ")[1].split(".")[0]
        assert [one for one, other in edges if other == node] == [ask.answer.rstrip("]")]


@pytest.mark.parametrize("task", list(untaught.TASKS))
@pytest.mark.parametrize("length", [2048, 4096])
def test_a_context_fills_its_length_and_leaves_room_for_the_question(
    coder: Coder, task: str, length: int
) -> None:
    made = untaught.context_of(coder, task, length, asked=8, seed=0, sentences=SENTENCES)
    used = sum(map(len, untaught.pieces_of(coder, made)))
    longest = max(len(coder.encode(ask.question + ask.answer)) for ask in made.asks)
    assert 0.7 * length < used + longest <= length


def test_a_length_without_room_is_refused_in_numbers(coder: Coder) -> None:
    with pytest.raises(EvaluationError, match="cannot hold a prompt of"):
        untaught.context_of(coder, "mrcr", 300, asked=8, seed=0, sentences=SENTENCES)
    with pytest.raises(EvaluationError, match="did you mean 'json-kv'"):
        untaught.context_of(coder, "jsonkv", 2048, asked=8, seed=0, sentences=SENTENCES)


def test_one_prefill_gives_what_single_questions_give() -> None:
    engine = tiny_engine()
    made = untaught.context_of(engine, "facts-1", 2000, asked=6, seed=0, sentences=SENTENCES)
    found = untaught.ask_by_likelihood(engine, "facts-1", 2000, made)
    ids = [*engine.start_ids, *(t for piece in untaught.pieces_of(engine, made) for t in piece)]
    for ask, answer in zip(made.asks, found, strict=True):
        nats = {}
        for place in ask.choices:
            question, words = untaught.split_answer(engine, ask.question, f" {place}")
            (scores,) = engine.loglikelihoods([([*ids, *question], words)])
            nats[place] = scores.total
            if place == ask.answer:
                assert answer.nll == pytest.approx(scores.mean, abs=1e-4)
        assert answer.right == float(min(nats, key=nats.__getitem__) == ask.answer)
        assert 0 < answer.depth < 1


def asked_about(task: str, answer: str) -> Question:
    return Question(id="1", task=task, length=10, prompt="p", max_new_tokens=8,
                    references=(answer,))  # fmt: skip


@pytest.mark.parametrize(
    "said", ["aa, bb]", "bb]", "aa, bb, cc]\nand more", "]", "cc]", "'aa', \"bb\"]"]
)
def test_graph_answers_are_scored_as_lm_eval_does(said: str) -> None:
    theirs = graphwalks.process_results(
        {"answer_nodes": ["aa", "bb"]}, [f"Final Answer: [{said.splitlines()[0]}"]
    )
    ours = untaught.score(asked_about("graphwalks", "aa, bb]"), said)
    assert ours["f1"] == pytest.approx(theirs["f1"])


@pytest.mark.parametrize("said", [" Kitchen.", " garden", " in the kitchen now", ""])
def test_facts_are_scored_as_lm_eval_does(said: str) -> None:
    theirs = babilong.process_results({"target": "kitchen"}, [said])
    assert untaught.score(asked_about("facts-1", "kitchen"), said)["hit"] == theirs["acc"]


def test_a_passage_is_scored_by_the_ratio_of_its_matching_part() -> None:
    whole = asked_about("mrcr", " one two three four")
    assert untaught.score(whole, " one two three four five six")["ratio"] == 1.0
    assert 0.2 < untaught.score(whole, "one two six seven")["ratio"] < 0.9


def test_the_command_writes_every_answer_by_distance(
    tiny: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "untaught.json", tmp_path / "data"
    words = ["prepare", str(text), "-t", str(tiny), "--out", str(data), "--holdout", "30%"]
    assert run(words) == 0
    words = ["eval", "untaught", str(tiny), "--data", str(data), "--lengths", "2k",
             "--asked", "8", "--tasks", "json-kv,graphwalks", "--json", str(out)]  # fmt: skip
    assert run(words) == 0
    found = json.loads(out.read_text())
    assert {one["task"] for one in found["answers"]} == {"json-kv", "graphwalks"}
    assert np.isfinite([one["nll"] for one in found["answers"]]).all()
    assert "right by quarter, farthest first" in capsys.readouterr().out
    assert run([*words[:-4], "--tasks", "jsonkv"]) == 1
    assert "did you mean 'json-kv'" in capsys.readouterr().err


def test_the_same_tasks_are_answered_in_words(tiny: Path, tmp_path: Path) -> None:
    words = ["eval", "run", str(tiny), "--tasks", "json-kv,graphwalks", "--lengths", "2k",
             "--depths", "4", "--out", str(tmp_path / "out")]  # fmt: skip
    assert run(words) == 0
    for task, metric in (("json-kv", "hit"), ("graphwalks", "f1")):
        lines = (tmp_path / "out" / task / "samples.jsonl").read_text().splitlines()
        assert [metric] * 4 == [key for line in lines for key in json.loads(line)["scores"]]
