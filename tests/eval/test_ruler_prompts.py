"""Prompts equal those of NVIDIA's generator, and hold what a sample must hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from nltk.tokenize.punkt import PunktSentenceTokenizer
from ruler_tokenizer import write_tokenizer

from endprompt.errors import EvaluationError
from endprompt.eval.ruler import (
    TASKS,
    Cell,
    Data,
    Sample,
    TokenCounter,
    find_task,
    samples,
    wrap_of,
)
from endprompt.eval.ruler.build import TrackingBuilder, Unlucky, Wrap
from endprompt.eval.ruler.tasks import Tracking, texts_of
from endprompt.models.tokenizer import load_tokenizer

REFERENCE = json.loads(
    (Path(__file__).parents[1] / "reference" / "ruler_prompts.json").read_text(encoding="utf-8")
)
CELLS = REFERENCE["rules tokenizer"]


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> TokenCounter:
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return TokenCounter(load_tokenizer(folder))


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(hub=False, splitter=PunktSentenceTokenizer())


def digest(rows: list[Sample]) -> str:
    """Hash of prompts, references and lengths, as the reference was made."""
    seen = [
        [row.input, row.answer_prefix, list(row.outputs), row.length, row.token_position_answer]
        for row in rows
    ]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


@pytest.mark.parametrize("cell", CELLS)
def test_prompts_equal_nvidia(cell: str, counter: TokenCounter, data: Data) -> None:
    task, length = cell.split("@")
    rows = list(samples(task, int(length), REFERENCE["samples"], 42, counter, data))
    assert digest(rows) == CELLS[cell]
    assert counter.words_apart, "counted by words"


def test_reference_covers_all_tasks_at_three_lengths() -> None:
    for kind in ("rules tokenizer", "smollm2"):
        for task in TASKS:
            assert sum(cell.startswith(f"{task}@") for cell in REFERENCE[kind]) >= 3


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_holds_its_answers_and_fits(task: str, counter: TokenCounter, data: Data) -> None:
    rows = list(samples(task, 3072, 3, 7, counter, data))
    assert [row.index for row in rows] == [0, 1, 2]
    for row in rows:
        assert row.prompt == row.input + row.answer_prefix
        assert row.outputs
        assert all(answer in row.input for answer in row.outputs if task != "fwe")
        assert row.length == counter.whole(row.prompt) + TASKS[task].tokens_to_generate <= 3072
        if row.token_position_answer is not None:
            before = row.input[: row.input.index(row.outputs[0])]
            assert row.token_position_answer == counter.whole(before)
        assert ("token_position_answer" in row.row()) == task.startswith("niah")


def test_the_same_seed_gives_the_same_and_another_seed_others(
    counter: TokenCounter, data: Data
) -> None:
    once, again, other = (
        list(samples("niah_multikey_1", 3072, 2, seed, counter, data)) for seed in (1, 1, 2)
    )
    assert once == again
    assert once != other


@pytest.mark.parametrize("task", ["niah_multiquery", "cwe", "fwe"])
def test_a_tokenizer_that_joins_words_is_tokenised_whole(
    task: str, tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TokenCounter(load_tokenizer(write_tokenizer(tmp_path, joined=True)))
    assert not honest.words_apart
    expected = list(samples(task, 2048, 2, 42, honest, data))
    monkeypatch.setattr(TokenCounter, "_keeps_words_apart", lambda self, vocabulary: True)
    misled = TokenCounter(load_tokenizer(tmp_path))
    assert misled.words_apart
    rows = list(samples(task, 2048, 2, 42, misled, data))
    if not misled.words_apart:
        assert rows == expected, "found out on the first prompt, and drawn again"
    for row in rows[:1]:
        assert row.length == honest.whole(row.prompt) + TASKS[task].tokens_to_generate


def test_a_wrong_count_is_found_out(
    counter: TokenCounter, data: Data, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = list(samples("vt", 2048, 2, 42, counter, data))
    broken = TokenCounter(load_tokenizer(write_tokenizer(tmp_path)))
    monkeypatch.setattr(broken, "_by_words", lambda text: len(text) // 4)
    assert list(samples("vt", 2048, 2, 42, broken, data)) == expected
    assert not broken.words_apart


@pytest.mark.parametrize("task", TASKS)
def test_too_short_names_the_shortest_length_that_works(
    task: str, counter: TokenCounter, data: Data
) -> None:
    with pytest.raises(
        EvaluationError, match=rf"^{task} at length 60 .* at least \d+ tokens"
    ) as error:
        list(samples(task, 60, 2, 42, counter, data))
    needed = int(str(error.value).split("at least ")[1].split()[0])
    assert all(row.length <= needed for row in samples(task, needed, 2, 42, counter, data))


def test_below_the_published_steps_smaller_sizes_are_used(
    counter: TokenCounter, data: Data
) -> None:
    for task in ("niah_single_1", "niah_single_2", "qa_1"):
        rows = list(samples(task, 700, 3, 42, counter, data))
        assert len(rows) == 3
        assert all(row.length <= 700 for row in rows)


def test_more_samples_than_questions_is_an_error(counter: TokenCounter, data: Data) -> None:
    with pytest.raises(EvaluationError, match="qa_2 has 600 questions, 601 samples"):
        list(samples("qa_2", 4096, 601, 42, counter, data))


def test_unknown_task_suggests_the_nearest(counter: TokenCounter) -> None:
    with pytest.raises(EvaluationError, match="did you mean 'niah_single_1'"):
        samples("niah_singel_1", 4096, 1, 42, counter)
    with pytest.raises(EvaluationError, match="needs a tokenizer"):
        samples("vt", 4096, 1)


def test_sources_say_what_a_task_is_made_of(counter: TokenCounter, data: Data) -> None:
    for name in ("niah_single_2", "qa_1", "qa_2", "vt", "cwe", "fwe"):
        cell = Cell(find_task(name), 4096, 1, 42, counter, data, Wrap())
        list(cell)
        assert {source.what for source in cell.sources} == set(texts_of(cell.task))
        assert not any(source.published for source in cell.sources)


def test_long_lists_of_words_use_and_name_the_english_words(
    counter: TokenCounter, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("endprompt.eval.ruler.build.all_words", lambda: ("few", "words"))
    cell = Cell(find_task("cwe"), 3072, 1, 42, counter, data, Wrap())
    list(cell)
    assert [source.what for source in cell.sources] == ["english_words"]


def test_chat_template_wraps_the_question_not_the_answer_prefix(
    tmp_path: Path, counter: TokenCounter, data: Data
) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    with pytest.raises(EvaluationError, match="has no chat template"):
        samples("vt", 2048, 1, 42, tokenizer, data, template="chat")
    tokenizer.chat_template = (
        "{% for m in messages %}<s>user {are}\n{{ m['content'] }}</s>\n{% endfor %}"
        "{{ '<s>reply\\n' }}"
    )
    assert wrap_of("chat", tokenizer) == Wrap("<s>user {are}\n", "</s>\n<s>reply\n")
    assert next(samples("fwe", 2048, 1, 42, tokenizer, data, "chat")).input.startswith("<s>user")
    wrap = wrap_of("chat", tokenizer)
    for task in ("niah_multiquery", "vt", "cwe", "fwe", "qa_1"):
        (row,) = Cell(find_task(task), 4096, 1, 42, counter, data, wrap)
        assert row.input.startswith("<s>user {are}\n")
        assert row.input.endswith("</s>\n<s>reply\n")
        assert row.length == counter.whole(row.prompt) + TASKS[task].tokens_to_generate <= 4096
    with pytest.raises(EvaluationError, match="no template 'llama'"):
        wrap_of("llama", tokenizer)


def test_variables_of_one_name_are_drawn_again(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = TrackingBuilder(Tracking(), 4096, 0, Wrap(), data)
    names: Any = iter(["AAA", "AAA", "BBB", "CCC", "DDD", "EEE"])
    monkeypatch.setattr(builder, "_name", lambda letters: next(names))
    with pytest.raises(Unlucky):
        builder.measured(10)


class Growing:
    """A counter for which draws are longer than the search met: as rare long words make them."""

    words_apart = False
    calls = 0

    def count(self, text: str) -> int:
        self.calls += 1
        asked = text.count(". ") - 190  # the demonstration has 190 entries
        return 100 if asked <= (328 if self.calls < 7 else 280) else 10**6

    whole = count

    def distrust(self) -> None:
        raise AssertionError("counted by whole texts")


def test_a_list_that_is_too_long_loses_ten_words_even_below_ten(data: Data) -> None:
    """NVIDIA's generator subtracts ten from any size above ten: 19 words become 9."""
    cell = Cell(find_task("cwe"), 4096, 1, 42, Growing(), data, Wrap())  # type: ignore[arg-type]
    (sample,) = cell
    assert 0 < len(sample.outputs) < 10
    assert len(set(sample.outputs)) == len(sample.outputs)
