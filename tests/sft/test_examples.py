"""Conversations become rows in which answers, up to their end, are learnt and nothing else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from endprompt.data import bounds
from endprompt.errors import DataError
from endprompt.sft import examples

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
END_UNMARKED = MARKED.replace(
    "{{ m['content'] }}<|im_end|>{% endgeneration %}",
    "{{ m['content'] }}{% endgeneration %}<|im_end|>",
)
FORGETS = (  # as Qwen3: what was thought is dropped from all answers but the last
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'] if loop.last else m['content'].split('/think ')[-1] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REFUSES = "{{ raise_exception('roles must alternate') }}"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "22"},
]


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    found = AutoTokenizer.from_pretrained(tiny)
    found.chat_template = CHATML
    return found


def jsonl(folder: Path, *rows: Any) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read(file: str, tokenizer: Any, max_tokens: int = 1000) -> examples.Examples:
    return examples.read([file], tokenizer, max_tokens=max_tokens, split="train")


def learnt(tokenizer: Any, row: examples.Example) -> list[str]:
    """Texts of the stretches that are learnt."""
    found: list[list[int]] = []
    before = examples.IGNORED
    for label in row.labels_T.tolist():
        if label != examples.IGNORED:
            if before == examples.IGNORED:
                found.append([])
            found[-1].append(label)
        before = label
    return [tokenizer.decode(ids) for ids in found]


@pytest.mark.parametrize("template", [CHATML, MARKED, END_UNMARKED])
def test_every_answer_of_a_talk_is_learnt_up_to_its_end_and_nothing_else(
    template: str, tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.chat_template = template
    (row,) = read(jsonl(tmp_path, {"messages": TALK}), tokenizer).rows
    assert learnt(tokenizer, row) == ["1<|im_end|>", "22<|im_end|>"]
    assert tokenizer.decode(row.tokens_T) == tokenizer.apply_chat_template(TALK, tokenize=False)


def test_marks_say_what_is_learnt(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = MARKED.replace("{% generation %}", "{% generation %}!")
    (row,) = read(jsonl(tmp_path, {"messages": TALK}), tokenizer).rows
    assert learnt(tokenizer, row) == ["!1<|im_end|>", "!22<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_gives_a_row_an_answer(
    tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.chat_template = FORGETS
    talk = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "hm /think 1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "so /think 2"},
    ]
    rows = read(jsonl(tmp_path, {"messages": talk}), tokenizer).rows
    assert [learnt(tokenizer, row) for row in rows] == [
        ["hm /think 1<|im_end|>"],
        ["so /think 2<|im_end|>"],
    ]
    assert "hm" not in tokenizer.decode(rows[1].tokens_T)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "One?", "completion": "1"},
        {"prompt": [{"role": "user", "content": "One?"}],
         "completion": [{"role": "assistant", "content": "1"}]},
        {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]},
    ],
)  # fmt: skip
def test_prompt_and_completion_are_written_by_the_chat_template(
    row: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    (found,) = read(jsonl(tmp_path, row), tokenizer).rows
    assert tokenizer.decode(found.tokens_T) == "<|user|>One?<|im_end|><|assistant|>1<|im_end|>"
    assert learnt(tokenizer, found) == ["1<|im_end|>"]


def test_without_a_template_texts_are_joined_and_end(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = None
    (row,) = read(jsonl(tmp_path, {"prompt": "2 + 2 =", "completion": " 4"}), tokenizer).rows
    assert tokenizer.decode(row.tokens_T) == "2 + 2 = 4<|im_end|>"
    assert learnt(tokenizer, row) == [" 4<|im_end|>"]
    with pytest.raises(DataError, match=r"rows.jsonl line 1: the tokenizer has no chat template"):
        read(jsonl(tmp_path, {"messages": TALK}), tokenizer)


def test_rows_that_are_too_long_are_counted_and_never_cut(tokenizer: Any, tmp_path: Path) -> None:
    short, long = {"prompt": "a", "completion": "b"}, {"prompt": "a" * 90, "completion": "b"}
    found = read(jsonl(tmp_path, short, long, short), tokenizer, max_tokens=60)
    assert (len(found.rows), found.too_long) == (2, 1)
    assert found.longest > 60
    with pytest.raises(DataError, match=r"all 1 rows of .* are longer than 60 tokens"):
        read(jsonl(tmp_path, long), tokenizer, max_tokens=60)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"text": "a"}', "line 2 holds text: messages, or prompt and completion, are needed"),
        ('{"messages": []}', "line 2: messages is not a list of messages"),
        ('{"messages": "a"}', "line 2: messages is not a list of messages"),
        ('{"messages": ["a"]}', "line 2: message 1 of messages is not an object"),
        ('{"messages": [{"role": "user"}]}', "line 2: message 1 of messages has no content"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "message 1 of messages has no cont"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2: no message of the role ass"),
        ('{"prompt": "a", "completion": " "}', "line 2: an empty answer"),
        ('{"prompt": 3, "completion": "b"}', "line 2: prompt is not a list of messages"),
    ],
)
def test_a_bad_line_is_named(line: str, says: str, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read(str(file), tokenizer)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_template_refuses_is_named(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = REFUSES
    with pytest.raises(DataError, match=r"line 1: the chat template refuses it: roles must alt"):
        read(jsonl(tmp_path, {"messages": TALK}), tokenizer)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("row.jsonl", r"no such file \(did you mean 'rows.jsonl'\?\)"),
        ("rows.txt", "neither jsonl nor parquet"),
        (".", "a folder"),
        ("cut.jsonl.gz", "cannot read"),
        ("latin.jsonl", r"line 1 is not UTF-8 \(byte 13\)"),
        ("long.jsonl.gz", r"line 2 is longer than 0 MiB: leave it out"),
        ("empty.jsonl", "no row in"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    name: str, says: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "ROW_BYTES", 1000)
    jsonl(tmp_path, {"prompt": "a", "completion": "b"})
    long = b'{"prompt": "a", "completion": "b"}\n' + b"x" * 2000 + b"\n"
    (tmp_path / "long.jsonl.gz").write_bytes(gzip.compress(long))
    (tmp_path / "rows.txt").write_text("text")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 99)[:-20])
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=says):
        read(str(tmp_path / name), tokenizer)


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet"])
def test_kinds_of_files_hold_the_same_rows(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    rows = [{"messages": TALK}, {"messages": TALK[1:3]}]
    plain = jsonl(tmp_path, *rows)
    other = tmp_path / f"other.{kind}"
    data = Path(plain).read_bytes()
    if kind == "jsonl.gz":
        other.write_bytes(gzip.compress(data))
    elif kind == "jsonl.zst":
        other.write_bytes(zstandard.compress(data))
    else:
        pq.write_table(pa.Table.from_pylist(rows), other)
    found = read(str(other), tokenizer)
    assert found.fingerprint() == read(plain, tokenizer).fingerprint()
    assert found.learnt == read(plain, tokenizer).learnt > 0


def test_a_fingerprint_knows_what_is_learnt(tokenizer: Any, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "1"}]
    one = read(jsonl(tmp_path, {"messages": talk}), tokenizer)
    other = read(jsonl(tmp_path, {"messages": talk}), tokenizer)
    assert one.fingerprint() == other.fingerprint()
    other.rows[0].labels_T[0] = 5
    assert one.fingerprint() != other.fingerprint()
