"""lm-eval on our engine gives lm-eval's own numbers; RULER's tasks load by --include_path."""

from __future__ import annotations

import json

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from test_window import TEXT
from tiny_lm import tiny_engine, tiny_tokenizer

from endprompt.errors import EvaluationError
from endprompt.eval.harness import EngineLM, run_tasks, tasks_path

CHOICE = """task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["night", "river", "stones"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
metadata:
  version: 1.0
"""


@pytest.fixture
def ours():
    return EngineLM(tiny_engine(chunk=64), max_length=128)


@pytest.fixture
def theirs():
    return HFLM(
        pretrained=tiny_engine().model, tokenizer=tiny_tokenizer(), max_length=128, batch_size=1
    )


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=given, idx=n)
        for n, given in enumerate(arguments)
    ]


def test_loglikelihoods_equal_those_of_lm_eval_s_own_model(ours, theirs):
    pairs = [("the old house", " stands"), ("", "a river"), (TEXT * 4, " night"), ("people ", "x")]
    got = ours.loglikelihood(instances("loglikelihood", pairs))
    want = theirs.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    for (ours_nll, ours_greedy), (theirs_nll, theirs_greedy) in zip(got, want, strict=True):
        assert ours_nll == pytest.approx(theirs_nll, abs=1e-3)
        assert ours_greedy == theirs_greedy


def test_answers_equal_those_of_lm_eval_s_own_model(ours, theirs):
    options = {"until": ["q"], "max_gen_toks": 12, "do_sample": False}
    asked = [("the old house", options), (TEXT * 5, options)]
    got = ours.generate_until(instances("generate_until", asked))
    want = theirs.generate_until(instances("generate_until", asked), disable_tqdm=True)
    assert got == want


def test_rolling_covers_a_text_longer_than_the_window(ours):
    text = TEXT * 5
    (total,) = ours.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]))
    ids = ours.engine.encode(text)
    assert len(ids) > 128
    first, *_ = ours.loglikelihood_rolling(instances("loglikelihood_rolling", [(text[:200],)]))
    assert total < first < 0


def test_sampling_is_refused(ours):
    options = {"do_sample": True, "temperature": 0.8, "max_gen_toks": 3}
    with pytest.raises(EvaluationError, match="decodes greedily only"):
        ours.generate_until(instances("generate_until", [("x", options)]))


def test_a_local_task_runs_and_gives_a_sample_a_document(ours, tmp_path):
    data = tmp_path / "d.jsonl"
    rows = [{"question": f"people walk {n}", "answer": n % 3} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "choice.yaml").write_text(CHOICE.format(path=data))
    samples, cells = run_tasks(ours, ["local_choice"], include=tmp_path)
    assert len(samples) == 6
    assert len({sample.id for sample in samples}) == 6
    (accuracy,) = [cell for cell in cells if cell.metric == "acc"]
    assert accuracy.mean == pytest.approx(sum(s.scores["acc"] for s in samples) / 6)
    assert accuracy.samples == 6
    again, _cells = run_tasks(ours, ["local_choice"], include=tmp_path)
    assert again == samples


def test_an_unknown_task_is_named(ours, monkeypatch):
    from lm_eval import tasks

    whole = tasks.TaskManager
    # Without lm-eval's own tasks, whose index takes seconds.
    monkeypatch.setattr(
        tasks, "TaskManager", lambda **given: whole(**{**given, "include_defaults": False})
    )
    with pytest.raises(EvaluationError, match="lm-eval has no task no_such_task"):
        run_tasks(ours, ["no_such_task"])


def test_ruler_s_tasks_are_found_by_their_folder(ours, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "t")
    ours = EngineLM(ours.engine, max_length=4096)
    samples, cells = run_tasks(
        ours,
        ["endprompt_vt"],
        metadata={
            "tokenizer": str(tmp_path / "t"),
            "max_seq_lengths": [2048, 2500],
            "num_samples": 1,
        },
    )
    assert len(samples) == 2
    assert {cell.metric for cell in cells} == {"score", "2048"}


def test_every_ruler_task_has_its_file():
    from endprompt.eval import ruler

    files = {path.stem for path in tasks_path().glob("*.yaml")} - {"_ruler", "ruler"}
    assert files == set(ruler.TASKS)
    for name, task in ruler.TASKS.items():
        text = (tasks_path() / f"{name}.yaml").read_text()
        assert f"max_gen_toks: {task.tokens_to_generate}\n" in text
        assert f"!function ruler_tasks.{name}\n" in text
