"""Conversations to rows of tokens in which only what the assistant says is learnt.

A line of jsonl, or a row of parquet or of a hub data set, holds `messages`

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}

or `prompt` and `completion`, texts or lists of messages. The tokenizer's own chat template writes
them; without one, prompt and completion are joined and the end-of-sequence token is added.

Where the template marks answers ({% generation %}) up to their end of turn, the marks say what is
learnt. Else an answer is what the template adds to the conversation before it, and a template
that writes earlier turns otherwise later on (Qwen3 drops their thoughts) gives a row an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from endprompt.errors import DataError, TextError, nearest
from endprompt.io import records
from endprompt.io.secrets import redact

IGNORED = -100
"""Label of a token that is read and not learnt."""
JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """One row: token ids int32[T], and labels int32[T], the same ids or IGNORED."""

    tokens_T: np.ndarray
    labels_T: np.ndarray


@dataclass
class Examples:
    """Rows that can be trained, and how many were too long for it."""

    rows: list[Example] = field(default_factory=list)
    too_long: int = 0
    longest: int = 0
    """Tokens of the longest row met, trained or not."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.tokens_T) for row in self.rows)

    @property
    def learnt(self) -> int:
        """Tokens of answers in all rows."""
        return sum(int((row.labels_T != IGNORED).sum()) for row in self.rows)

    def fingerprint(self) -> str:
        """Hex digest of every token and label, in order."""
        digest = hashlib.sha256()
        for row in self.rows:
            for array in (row.tokens_T, row.labels_T):
                digest.update(len(array).to_bytes(8, "little"))
                digest.update(array.tobytes())
        return digest.hexdigest()


def read(specs: Sequence[str], tokenizer: Any, *, max_tokens: int, split: str) -> Examples:
    """Rows of all sources, one after the other; those above `max_tokens` are counted only.

    specs  jsonl (also gz, zst) or parquet files, URLs of such, hub data sets
    split  of hub data sets

    Raises DataError for a row that is no conversation, with its place, and when none is left.
    """
    examples = Examples()
    template = _Template(tokenizer)
    for spec in specs:
        for where, row in _rows(spec, split):
            for example in template.examples(conversation(row, where, template.chat), where):
                examples.longest = max(examples.longest, len(example.tokens_T))
                if len(example.tokens_T) > max_tokens:
                    examples.too_long += 1
                else:
                    examples.rows.append(example)
    if not examples.rows:
        sources = ", ".join(specs)
        if examples.too_long:
            raise DataError(
                f"all {examples.too_long} rows of {sources} are longer than {max_tokens:,} tokens: "
                f"shorten them, or raise max_tokens up to the model's window"
            )
        raise DataError(f"no row in {sources}: give conversations, one a line")
    return examples


def conversation(row: dict[str, Any], where: str, chat: bool) -> list[Message]:
    """Messages of a row, the last of them an answer. Raises DataError that says what is wrong.

    where  named in errors: file and line
    chat   whether the tokenizer has a template; without one only two texts will do
    """
    sides = (row.get("prompt"), row.get("completion"))
    if not chat and not all(isinstance(side, str) for side in sides):
        raise DataError(
            f"{where}: the tokenizer has no chat template: give prompt and completion as texts, "
            f"or a model with a template"
        )
    if row.get("messages") is not None:
        messages = _messages(row["messages"], "messages", where)
    elif all(side is not None for side in sides):
        messages = [
            *_side(row["prompt"], "user", "prompt", where),
            *_side(row["completion"], "assistant", "completion", where),
        ]
    else:
        held = ", ".join(row) or "nothing"
        raise DataError(f"{where} holds {held}: messages, or prompt and completion, are needed")
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise DataError(f"{where}: no message of the role assistant, so nothing to learn")
    if not all(message["content"].strip() for message in answers):
        raise DataError(f"{where}: an empty answer")
    return messages


def _side(value: Any, role: str, key: str, where: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _messages(value, key, where)


def _messages(value: Any, key: str, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {key} is not a list of messages")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise DataError(f"{where}: message {number} of {key} is not an object")
        for part in ("role", "content"):
            if not isinstance(message.get(part), str):
                raise DataError(f"{where}: message {number} of {key} has no {part} in text")
    return [{"role": message["role"], "content": message["content"]} for message in value]


class _Template:
    """How a tokenizer writes conversations, and which tokens of them are answers."""

    def __init__(self, tokenizer: Any) -> None:
        from trl.chat_template_utils import (
            has_generation_markers,
            is_chat_template_stop_token_trained,
        )

        self._tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None) or ""
        self.chat = bool(template)
        self._marked = (
            self.chat
            and has_generation_markers(template)
            and is_chat_template_stop_token_trained(tokenizer)
        )

    def examples(self, messages: list[Message], where: str) -> Iterator[Example]:
        """The rows of a conversation: one, or one an answer where the template asks for it."""
        if not self.chat:
            yield self._plain(messages)
            return
        from jinja2 import TemplateError

        try:
            if self._marked:
                yield self._by_marks(messages, where)
            else:
                yield from self._by_growth(messages, where)
        except TemplateError as error:
            raise DataError(f"{where}: the chat template refuses it: {error}") from error

    def _write(self, messages: list[Message], **options: Any) -> list[int]:
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _plain(self, messages: list[Message]) -> Example:
        prompt = "".join(m["content"] for m in messages if m["role"] != "assistant")
        answer = "".join(m["content"] for m in messages if m["role"] == "assistant")
        before = self._tokenizer(prompt, verbose=False)["input_ids"]
        end = self._tokenizer.eos_token or ""
        whole = self._tokenizer(prompt + answer + end, verbose=False)["input_ids"]
        return _example(whole, [(_common(before, whole), len(whole))])

    def _by_marks(self, messages: list[Message], where: str) -> Example:
        written = self._tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        tokens_T, marks_T = np.array(written["input_ids"]), np.array(written["assistant_masks"])
        if not marks_T.any():
            raise DataError(f"{where}: the chat template marks no answer in it")
        return _example(tokens_T, _runs(marks_T))

    def _by_growth(self, messages: list[Message], where: str) -> Iterator[Example]:
        whole = self._write(messages)
        spans, apart = [], []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._write(messages[:number], add_generation_prompt=True) if number else []
            until = self._write(messages[: number + 1])
            start = _common(before, until)
            if start == len(until):
                raise DataError(f"{where}: the chat template writes nothing of answer {number + 1}")
            apart.append(_example(until, [(start, len(until))]))
            if start == len(before) and whole[: len(until)] == until:
                spans.append((start, len(until)))
        if len(spans) == len(apart):
            yield _example(whole, spans)
        else:
            yield from apart


def _example(tokens: Sequence[int] | np.ndarray, spans: list[tuple[int, int]]) -> Example:
    tokens_T = np.asarray(tokens, dtype=np.int32)
    labels_T = np.full(len(tokens_T), IGNORED, dtype=np.int32)
    for start, end in spans:
        labels_T[start:end] = tokens_T[start:end]
    labels_T[:1] = IGNORED  # nothing stands before the first token to predict it from
    return Example(tokens_T, labels_T)


def _runs(marks_T: np.ndarray) -> list[tuple[int, int]]:
    """Starts and ends of the stretches of ones.

    >>> _runs(np.array([0, 1, 1, 0, 1]))
    [(1, 3), (4, 5)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks_T, [0]])))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _common(first: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens that both begin with."""
    shorter = min(len(first), len(other))
    differ = np.flatnonzero(np.array(first[:shorter]) != np.array(other[:shorter]))
    return int(differ[0]) if len(differ) else shorter


def _rows(spec: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a source, each with its place in words."""
    path = Path(spec).expanduser()
    name = spec.lower().partition("?")[0]
    kind = "jsonl" if name.endswith(JSONL) else "parquet" if name.endswith(".parquet") else None
    remote = "://" in spec
    if not remote and (kind or path.exists() or spec.startswith(("/", ".", "~"))):
        if not path.is_file():
            beside = path.parent.iterdir() if path.parent.is_dir() else ()
            what = "a folder" if path.is_dir() else "no such file"
            hint = "" if path.is_dir() else nearest(path.name, (entry.name for entry in beside))
            raise DataError(f"{spec}: {what}{hint}: give jsonl or parquet files, or a hub name")
        if kind is None:
            raise DataError(f"{spec}: neither jsonl nor parquet: convert it first")
        spec = str(path)
    if kind == "jsonl":
        yield from _jsonl(spec)
    else:
        yield from _loaded(spec, kind, split)


def _jsonl(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from endprompt.data import bounds, json_rows
    from endprompt.data.sources import lines_of, shown

    label = shown(file.partition("?")[0] if "://" in file else file).rpartition("/")[2]
    number, lines = 0, lines_of(file)
    while True:
        try:
            line = next(lines, None)
        except TextError as error:
            raise DataError(str(error)) from error
        if line is None:
            return
        number += 1
        where = f"{label} line {number}"
        if isinstance(line, json_rows.TooLarge):
            raise DataError(f"{where} is longer than {bounds.ROW_BYTES >> 20} MiB: leave it out")
        if not line.strip():
            continue
        try:
            row = records.parse(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8 (byte {error.start + 1}): convert it") from None
        except ValueError as error:
            raise DataError(f"{where} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{where} is not a JSON object")
        yield where, row


def _loaded(spec: str, kind: str | None, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    name, _, config = spec.partition(":")
    label = spec.rpartition("/")[2] if kind else spec
    try:
        if kind:
            rows = datasets.load_dataset(kind, data_files=spec, split="train", streaming=True)
        else:
            rows = datasets.load_dataset(name, config or None, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{label} row {number}", dict(row)
    except (OSError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:300]
        raise DataError(redact(f"cannot read {spec!r}: {detail}")) from error
