"""Where RULER's texts come from: a given file, the hub, or the made-up stand-in, and which it was.

Given files are in the formats of NVIDIA's downloads: PaulGrahamEssays.json (or plain text),
SQuAD's dev-v2.0.json, HotpotQA's hotpot_dev_distractor_v1.json, english_words.json.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from endprompt.errors import DependencyError, EvaluationError
from endprompt.eval.ruler import standin
from endprompt.eval.ruler.sentences import Beginnings, Splitter, punkt
from endprompt.io import records
from endprompt.io.files import sha256_file, sha256_of

NOT_COMPARABLE = "not comparable with published RULER"


@dataclass(frozen=True)
class Source:
    """One text that went into a task.

    what        essays, squad, hotpotqa, english_words or sentences (the splitter of essays)
    origin      a file's name, a data set of the hub, or the name of the stand-in
    published   False for a stand-in: the task is not comparable with published RULER
    sha256      of the content, None for the splitter
    """

    what: str
    origin: str
    published: bool
    sha256: str | None = None


@dataclass(frozen=True)
class Question:
    """A question, its references, and the numbers of its own and of related documents."""

    text: str
    answers: tuple[str, ...]
    context: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class Collection:
    """Questions and the sorted documents that they are asked of."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


class Data:
    """RULER's texts, each read when a task first asks for it.

    essays, squad, hotpotqa, english_words   files in the original formats; None: the hub
    hub        whether the hub may be asked; where it is not reached, the stand-in is used
    splitter   splits essays into sentences; None: NLTK's Punkt with its English data

    `source(what)` says what was used. Raises EvaluationError for a file that is missing or not
    in its format.
    """

    def __init__(
        self,
        *,
        essays: Path | str | None = None,
        squad: Path | str | None = None,
        hotpotqa: Path | str | None = None,
        english_words: Path | str | None = None,
        hub: bool = True,
        splitter: Splitter | None = None,
    ) -> None:
        given = {
            "essays": essays,
            "squad": squad,
            "hotpotqa": hotpotqa,
            "english_words": english_words,
        }
        self._files = {what: Path(path) for what, path in given.items() if path is not None}
        for what, path in self._files.items():
            if not path.is_file():
                raise EvaluationError(f"no file {path} for {what}: give its path")
        self._hub = hub
        self._splitter = splitter
        self._sources: dict[str, Source] = {}
        self._read: dict[str, Any] = {}

    def essays(self) -> Beginnings:
        """The essays as words, with their sentences."""
        return self._once("essays", self._essays)

    def collection(self, what: str) -> Collection:
        """The questions and documents of `squad` or `hotpotqa`."""
        parse = {"squad": _squad, "hotpotqa": _hotpotqa}[what]
        return self._once(what, lambda: self._parsed(what, parse))

    def english_words(self) -> tuple[str, ...]:
        """Words for lists longer than wonderwords' 8,166 (`cwe` beyond some 100K tokens)."""
        return self._once("english_words", lambda: self._parsed("english_words", _words))

    def source(self, what: str) -> Source:
        """What was used; `what` must have been asked for before."""
        return self._sources[what]

    def _once(self, what: str, read: Callable[[], Any]) -> Any:
        if what not in self._read:
            self._read[what] = read()
        return self._read[what]

    def _essays(self) -> Beginnings:
        words = re.sub(r"\s+", " ", self._parsed("essays", _text)).split(" ")
        splitter = self._splitter
        if splitter is None:
            splitter, published = _without_output(punkt)
            origin = "NLTK punkt_tab" if published else "NLTK Punkt without its English data"
            self._sources["sentences"] = Source("sentences", origin, published)
        else:
            self._sources["sentences"] = Source("sentences", type(splitter).__name__, False)
        return Beginnings(words, splitter)

    def _parsed(self, what: str, parse: Callable[[Any], Any]) -> Any:
        content, origin, published = self._content(what)
        path = self._files.get(what)
        try:
            parsed = parse(content)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise EvaluationError(
                f"{origin} is not in the original format of {what}: {error!r}"
            ) from error
        if not parsed:
            raise EvaluationError(f"{origin} holds nothing: give the original file of {what}")
        digest = sha256_file(path) if path else sha256_of(content)
        self._sources[what] = Source(what, origin, published, digest)
        return parsed

    def _content(self, what: str) -> tuple[Any, str, bool]:
        if what in self._files:
            path = self._files[what]
            return _load(path), path.name, True
        if self._hub and what in _HUB:
            content = _from_hub(what)
            if content is not None:
                return content, f"hub: {_HUB[what][0]}", True
        return getattr(standin, what)(), standin.NAME, False


def _load(path: Path) -> Any:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix.lower() in {".txt", ".md"}:
        return {"text": text}
    try:
        return records.parse(text)
    except ValueError as error:
        if text.startswith("version https://git-lfs"):
            raise EvaluationError(f"{path} is a Git LFS pointer: fetch it with git lfs") from error
        raise EvaluationError(f"{path} is not JSON: {error}") from error


# -- the original formats --------------------------------------------------------------------


def _text(content: dict[str, Any]) -> str:
    return content["text"] if content["text"].strip() else ""


def _words(content: dict[str, str]) -> tuple[str, ...]:
    return tuple(content.values())


def _squad(content: dict[str, Any]) -> Collection | None:
    articles = content["data"]
    documents = tuple(sorted({p["context"] for a in articles for p in a["paragraphs"]}))
    number = {document: at for at, document in enumerate(documents)}
    questions = []
    for article in articles:
        own = [number[paragraph["context"]] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            at = number[paragraph["context"]]
            related = tuple(other for other in own if other != at)
            questions += [
                Question(qa["question"], tuple(a["text"] for a in qa["answers"]), (at,), related)
                for qa in paragraph["qas"]
                if not qa["is_impossible"]
            ]
    return Collection(tuple(questions), documents) if questions else None


def _hotpotqa(content: list[dict[str, Any]]) -> Collection | None:
    def document(title: str, sentences: list[str]) -> str:
        return f"{title}\n{''.join(sentences)}"

    documents = tuple(sorted({document(*pair) for item in content for pair in item["context"]}))
    number = {text: at for at, text in enumerate(documents)}
    questions = tuple(
        Question(
            item["question"],
            (item["answer"],),
            tuple(number[document(*pair)] for pair in item["context"]),
        )
        for item in content
    )
    return Collection(questions, documents) if questions else None


# -- the hub ---------------------------------------------------------------------------------

_HUB: dict[str, tuple[str, str | None, str]] = {
    "essays": ("baber/paul_graham_essays", None, "train"),
    "squad": ("rajpurkar/squad_v2", None, "validation"),
    "hotpotqa": ("hotpotqa/hotpot_qa", "distractor", "validation"),
}
"""Data set, configuration and split; the essays are those of lm-eval."""


def _from_hub(what: str) -> Any | None:
    """A data set in the original format, or None when the hub is out of reach."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not reachable(constants.ENDPOINT):
        return None
    import datasets

    name, config, split = _HUB[what]
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError):
        return None
    return _ORIGINAL[what](rows)


def reachable(address: str, seconds: float = 3.0) -> bool:
    """Whether a server answers at all; behind a proxy it is taken to."""
    parts = urllib.parse.urlsplit(address)
    if {"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} & os.environ.keys():
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
    except OSError:
        return False
    return True


def _essays_of_rows(rows: Any) -> dict[str, str]:
    return {"text": " ".join(rows["text"])}


def _squad_of_rows(rows: Any) -> dict[str, Any]:
    """Rows of questions back to articles with paragraphs; neighbours share title and context."""

    def paragraphs(of_title: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for context, of_context in groupby(of_title, key=lambda row: row["context"]):
            yield {"context": context, "qas": [_qa(row) for row in of_context]}

    return {
        "data": [
            {"title": title, "paragraphs": list(paragraphs(of_title))}
            for title, of_title in groupby(rows, key=lambda row: row["title"])
        ]
    }


def _qa(row: dict[str, Any]) -> dict[str, Any]:
    texts = row["answers"]["text"]
    return {
        "question": row["question"],
        "answers": [{"text": text} for text in texts],
        "is_impossible": not texts,
    }


def _hotpotqa_of_rows(rows: Any) -> list[dict[str, Any]]:
    return [
        {
            "question": row["question"],
            "answer": row["answer"],
            "context": list(zip(row["context"]["title"], row["context"]["sentences"], strict=True)),
        }
        for row in rows
    ]


_ORIGINAL: dict[str, Callable[[Any], Any]] = {
    "essays": _essays_of_rows,
    "squad": _squad_of_rows,
    "hotpotqa": _hotpotqa_of_rows,
}


def _without_output(make: Callable[[], tuple[Splitter, bool]]) -> tuple[Splitter, bool]:
    """Make the splitter; NLTK's complaints about the network are no news to the user."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return make()
    except ModuleNotFoundError as error:
        raise DependencyError(
            "RULER's essays are split into sentences by NLTK: pip install 'endprompt[eval]'"
        ) from error
