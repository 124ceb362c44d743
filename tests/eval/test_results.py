"""A run writes a line a sample, survives a kill, repeats itself, and never hides a failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from endprompt.errors import DataError, EvaluationError, OutputError
from endprompt.eval.compare import compare
from endprompt.eval.results import Question, answer_all, read_samples

SETTINGS = {"task": "toy", "seed": 0}


def questions(count: int = 12) -> list[Question]:
    return [
        Question(
            id=f"q{n}",
            task="even" if n % 2 == 0 else "odd",
            length=64,
            prompt=f"say {n}",
            max_new_tokens=4,
            references=(str(n),),
        )
        for n in range(count)
    ]


def score(question: Question, prediction: str) -> dict[str, float]:
    return {"hit": float(question.references[0] == prediction)}


class Parrot:
    """Says what it is told to, fails where asked to, and counts."""

    def __init__(self, fails: tuple[str, ...] = (), wrong: tuple[str, ...] = ()) -> None:
        self.fails, self.wrong, self.asked = fails, wrong, []

    def answer(self, prompt, max_new_tokens, stop=()):
        del max_new_tokens, stop
        self.asked.append(prompt)
        if prompt in self.fails:
            raise EvaluationError("no answer")
        return "?" if prompt in self.wrong else prompt.removeprefix("say ")


def run(folder: Path, parrot: Parrot, **more):
    more = {"survives": EvaluationError, **more}
    return answer_all(folder, SETTINGS, questions(), parrot, score, **more)


@pytest.mark.parametrize("workers", [1, 5])
def test_the_same_run_gives_the_same_file(tmp_path, workers):
    first = run(tmp_path / "a", Parrot(), workers=1)
    second = run(tmp_path / "b", Parrot(), workers=workers)
    for name in ("samples.jsonl", "summary.json", "claim.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert first == second
    assert {(cell.task, cell.mean) for cell in first.cells} == {("even", 1.0), ("odd", 1.0)}


def test_failures_are_counted_apart_and_asked_again(tmp_path):
    broken = Parrot(fails=("say 1", "say 3"), wrong=("say 5",))
    summary = run(tmp_path / "r", broken)
    odd = next(cell for cell in summary.cells if cell.task == "odd")
    assert (summary.asked, summary.answered, summary.failed) == (12, 10, 2)
    assert (odd.samples, odd.failed, odd.mean) == (4, 2, 0.75)
    lost = [s for s in read_samples(tmp_path / "r" / "samples.jsonl") if s.error]
    assert [(s.id, s.prediction, s.scores) for s in lost] == [("q1", None, {}), ("q3", None, {})]
    again = Parrot()
    summary = run(tmp_path / "r", again)
    assert sorted(again.asked) == ["say 1", "say 3"]
    assert summary.failed == 0
    assert len(read_samples(tmp_path / "r" / "samples.jsonl")) == 12


def test_an_error_that_is_no_sample_s_fault_stops_the_run(tmp_path):
    with pytest.raises(EvaluationError, match="no answer"):
        run(tmp_path / "r", Parrot(fails=("say 4",)), survives=())
    again = Parrot()
    run(tmp_path / "r", again)
    assert 0 < len(again.asked) < 12


def test_another_run_s_folder_is_refused(tmp_path):
    run(tmp_path / "r", Parrot())
    with pytest.raises(OutputError, match="holds a run with another seed: choose another --out"):
        answer_all(tmp_path / "r", {**SETTINGS, "seed": 1}, questions(), Parrot(), score)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds other files \(thesis\.txt\): choose another"):
        run(tmp_path / "full", Parrot())
    (tmp_path / "full" / "claim.json").write_text("[]")
    with pytest.raises(OutputError, match=r"claim.json has a wrong value .*choose another --out"):
        run(tmp_path / "full", Parrot())


def test_a_changed_prompt_is_asked_again(tmp_path):
    run(tmp_path / "r", Parrot())
    changed = [question.model_copy(update={"prompt": question.prompt}) for question in questions()]
    changed[2] = changed[2].model_copy(update={"prompt": "say 222"})
    parrot = Parrot()
    answer_all(tmp_path / "r", SETTINGS, changed, parrot, score)
    assert parrot.asked == ["say 222"]


def test_a_line_cut_by_a_kill_is_dropped_and_a_broken_one_is_named(tmp_path):
    run(tmp_path / "r", Parrot())
    path = tmp_path / "r" / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    parrot = Parrot()
    run(tmp_path / "r", parrot)
    assert parrot.asked == ["say 11"]
    assert path.read_bytes() == whole
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(DataError, match=r"samples.jsonl:1 is no sample"):
        run(tmp_path / "r", Parrot())


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_results as t
class Slow(t.Parrot):
    def answer(self, *given):
        time.sleep(0.15)
        return super().answer(*given)
t.run(Path(sys.argv[1]), Slow())
"""


def test_a_killed_run_is_resumed_without_asking_twice(tmp_path):
    run(tmp_path / "whole", Parrot())
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent)]
    )
    path = folder / "samples.jsonl"
    for _ in range(600):
        if path.exists() and path.read_bytes().count(b"\n") >= 4:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = path.read_bytes().count(b"\n")
    assert 4 <= kept < 12
    parrot = Parrot()
    run(folder, parrot)
    assert len(parrot.asked) == 12 - kept
    for name in ("samples.jsonl", "summary.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_compare_pairs_samples_and_leaves_out_the_unpaired(tmp_path):
    run(tmp_path / "a", Parrot(wrong=("say 1", "say 3", "say 5")))
    run(tmp_path / "b", Parrot(fails=("say 1",), wrong=("say 7",)))
    odd = next(row for row in compare(tmp_path / "a", tmp_path / "b") if row.task == "odd")
    assert (odd.pairs, odd.unpaired, odd.wins, odd.losses) == (5, 1, 2, 1)
    assert odd.difference == pytest.approx(1 / 5)
    assert odd.low <= odd.difference <= odd.high
    back = next(row for row in compare(tmp_path / "b", tmp_path / "a") if row.task == "odd")
    assert back.difference == pytest.approx(-1 / 5)


def test_compare_refuses_what_has_nothing_in_common(tmp_path):
    run(tmp_path / "a", Parrot())
    other = [q.model_copy(update={"id": f"x{q.id}"}) for q in questions()]
    answer_all(tmp_path / "b", SETTINGS, other, Parrot(), score)
    with pytest.raises(DataError, match="share no sample"):
        compare(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(DataError, match="lacks lengths: evaluate again"):
        compare(tmp_path / "a", tmp_path / "c.json")
    with pytest.raises(DataError, match="no results at"):
        compare(tmp_path / "a", tmp_path / "absent")


def test_compare_of_window_checks_pairs_needles_by_text_and_key(tmp_path):
    from test_window import document
    from tiny_lm import tiny_engine, tiny_model

    from endprompt.eval.window import window_check

    for name, seed in (("one", 0), ("two", 1)):
        engine = tiny_engine(model=tiny_model(seed=seed), name=name)
        check = window_check(engine, [document(0)], lengths=[500, 900], needles=2, last=50)
        (tmp_path / f"{name}.json").write_text(check.model_dump_json())
    rows = compare(tmp_path / "one.json", tmp_path / "two.json")
    assert {(row.task, row.length) for row in rows} == {
        (task, length) for task in ("losses", "needles", "quotes") for length in (500, 900)
    }
    assert all(row.unpaired == 0 for row in rows)
