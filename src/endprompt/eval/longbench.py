"""LongBench (Bai et al., 2024): prompts and metrics of lm-eval, cut and scored as in the original.

Templates and answer lengths are read from the installed lm-eval; its prompts differ from the
original's in white space for triviaqa, samsum, passage_count, passage_retrieval_en, lcc and
repobench-p. A prompt that is too long loses its middle, and the answer of a few-shot task is cut
to its first line, both as in the original's scripts.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from endprompt import yaml_text
from endprompt.errors import DataError, DependencyError, EvaluationError, nearest
from endprompt.io import records
from endprompt.record import Exact

Category = Literal[
    "single-document QA",
    "multi-document QA",
    "summarization",
    "few-shot learning",
    "synthetic",
    "code",
]


class Dataset(NamedTuple):
    """One data set: its name, category, metric of lm-eval, and whether it is Chinese or in -E."""

    name: str
    category: Category
    metric: str
    chinese: bool = False
    extended: bool = False


_ROWS: tuple[tuple[Category, str], ...] = (
    ("single-document QA", "narrativeqa:qa_f1 qasper:qa_f1:e multifieldqa_en:qa_f1:e"),
    ("single-document QA", "multifieldqa_zh:qa_f1_zh:zh"),
    ("multi-document QA", "hotpotqa:qa_f1:e 2wikimqa:qa_f1:e musique:qa_f1 dureader:rouge_zh:zh"),
    ("summarization", "gov_report:rouge:e qmsum:rouge multi_news:rouge:e vcsum:rouge_zh:zh"),
    ("few-shot learning", "trec:classification:e triviaqa:qa_f1:e samsum:rouge:e"),
    ("few-shot learning", "lsht:classification:zh"),
    ("synthetic", "passage_count:count:e passage_retrieval_en:retrieval:e"),
    ("synthetic", "passage_retrieval_zh:retrieval_zh:zh"),
    ("code", "lcc:code_sim:e repobench-p:code_sim:e"),
)
DATASETS: dict[str, Dataset] = {
    name: Dataset(name, category, metric, "zh" in marks, "e" in marks)
    for category, words in _ROWS
    for word in words.split()
    for name, metric, *marks in [word.split(":")]
}
ENGLISH = tuple(name for name, dataset in DATASETS.items() if not dataset.chinese)
EXTENDED = tuple(name for name, dataset in DATASETS.items() if dataset.extended)
FIRST_LINE = frozenset({"trec", "triviaqa", "samsum", "lsht"})
NO_CHAT = FIRST_LINE | {"lcc", "repobench-p"}
"""Prompts that the original never wraps in a chat template."""

BUCKETS = (("0-4k", 0, 4000), ("4-8k", 4000, 8000), ("8k+", 8000, 10**12))
"""LongBench-E's, by the field `length` (words)."""

HUB = "Xnhyacinth/LongBench"


class DatasetScore(Exact):
    """One data set: 0 to 100, as the original rounds; by_length for LongBench-E alone."""

    dataset: str
    category: str
    score: float
    samples: int
    by_length: dict[str, float | None] | None = None


class Averages(Exact):
    """Two averages that differ: published tables use one or the other, so both are named.

    over_datasets     mean of the data sets' scores
    over_categories   mean of the categories' means
    """

    over_datasets: float
    over_categories: float
    categories: dict[str, float]
    missing: list[str]
    """English data sets that were not scored: the averages are over the others."""


def find_dataset(name: str) -> Dataset:
    """A data set by name, or by its name in LongBench-E (`qasper_e`). Raises EvaluationError."""
    plain = name.removesuffix("_e")
    if plain in DATASETS and (plain == name or DATASETS[plain].extended):
        return DATASETS[plain]
    known = [*DATASETS, *(f"{known}_e" for known in EXTENDED)]
    raise EvaluationError(
        f"LongBench has no {name!r}{nearest(name, known)}: one of {', '.join(known)}"
    )


@cache
def _task(name: str) -> tuple[str, int]:
    """Template and tokens to generate, from lm-eval's file of that data set."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads lm-eval's `!function` tags as their text."""

    Loader.add_constructor("!function", lambda _loader, node: node.value)
    path = _lm_eval_folder() / f"{find_dataset(name).name}.yaml"
    task = yaml_text.load(path.read_text(encoding="utf-8"), Loader)
    return task["doc_to_text"], int(task["generation_kwargs"]["max_gen_toks"])


def tokens_to_generate(name: str) -> int:
    """Room for the answer, tokens."""
    return _task(name)[1]


def prompt(name: str, row: Mapping[str, Any]) -> str:
    """The prompt of one row (fields `context` and `input`), not cut. Raises DataError."""
    from jinja2 import StrictUndefined, Template, UndefinedError

    question = row.get("input", row.get("question", ""))
    template = Template(_task(name)[0], undefined=StrictUndefined, keep_trailing_newline=False)
    try:
        return template.render(**{**row, "question": question})
    except UndefinedError as error:
        raise DataError(f"a row of {name} lacks a field of its prompt: {error.message}") from error


def cut_middle(text: str, tokenizer: Any, max_length: int) -> str:
    """A text of at most max_length tokens: its two ends, when it is longer.

    The halves are decoded and joined as text, as in the original, so that the count of the joined
    text may differ by a few tokens.
    """
    ids = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) <= max_length:
        return text
    half = max_length // 2
    if half < 1:
        raise EvaluationError(f"max length {max_length} tokens: give at least 2")
    return tokenizer.decode(ids[:half], skip_special_tokens=True) + tokenizer.decode(
        ids[-half:], skip_special_tokens=True
    )


def read_rows(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file. Raises DataError with the line's number."""
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not any(line.strip() for line in lines):
        raise DataError(f"{path} is empty: give one JSON object a line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = records.parse(line)
        except ValueError as error:
            raise DataError(f"{path}:{number} is not JSON: {error}") from error
        absent = [field for field in fields if not isinstance(row, dict) or field not in row]
        if absent:
            raise DataError(f"{path}:{number} lacks {', '.join(map(repr, absent))}")
        yield row


def load_rows(name: str, folder: Path | None) -> list[dict[str, Any]]:
    """Rows of a data set from a folder (`NAME.jsonl`, or `data/NAME.jsonl`), else from the hub.

    Raises DataError when neither has it.
    """
    find_dataset(name)
    if folder is not None:
        for path in (folder / f"{name}.jsonl", folder / "data" / f"{name}.jsonl"):
            if path.is_file():
                return list(read_rows(path, ("context", "answers")))
        raise DataError(f"no {name}.jsonl in {folder}: unpack LongBench's data.zip there")
    from datasets import load_dataset

    try:
        return [dict(row) for row in load_dataset(HUB, name, split="test")]
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DataError(
            f"LongBench's {name} is not on this machine and the hub was not reached ({reason}): "
            "give a folder with the data"
        ) from error


def score(
    name: str, prediction: str, answers: Iterable[str], all_classes: Sequence[str] | None = None
) -> float:
    """Score of one answer, 0 to 1: the best over the references, as the original's scorer."""
    dataset = find_dataset(name)
    if dataset.name in FIRST_LINE:
        prediction = prediction.lstrip("\n").split("\n")[0]
    if dataset.metric == "code_sim":
        metric: Any = _code_similarity
    else:
        metric = getattr(
            _metrics(chinese=dataset.metric.endswith("_zh")), f"{dataset.metric}_score"
        )
    if dataset.metric == "classification" and all_classes is None:
        raise DataError(f"{name} is scored among classes: each row needs 'all_classes'")
    return max(
        (float(metric(prediction, answer, all_classes=all_classes)) for answer in answers),
        default=0.0,
    )


def score_rows(name: str, rows: Iterable[Mapping[str, Any]]) -> DatasetScore:
    """Score predictions: fields `pred`, `answers`, `all_classes`, and `length` for LongBench-E."""
    dataset = find_dataset(name)
    scores: list[float] = []
    lengths: list[int] = []
    for row in rows:
        scores.append(score(name, row["pred"], row["answers"], row.get("all_classes")))
        lengths.append(int(row.get("length", -1)))
    if not scores:
        raise DataError(f"no predictions of {name}: nothing to score")
    by_length = None
    if name.endswith("_e"):
        if min(lengths) < 0:
            raise DataError(f"{name} is scored by length: each row needs 'length'")
        by_length = {
            label: round(100 * float(np.mean(bucket)), 2) if bucket else None
            for label, low, high in BUCKETS
            for bucket in [[s for s, n in zip(scores, lengths, strict=True) if low <= n < high]]
        }
    return DatasetScore(
        dataset=name,
        category=dataset.category,
        score=round(100 * sum(scores) / len(scores), 2),
        samples=len(scores),
        by_length=by_length,
    )


def averages(scores: Sequence[DatasetScore]) -> Averages:
    """Both averages over the English data sets among the scores.

    Raises EvaluationError when there is none.
    """
    english = {s.dataset: s for s in scores if s.dataset.removesuffix("_e") in ENGLISH}
    if not english:
        raise EvaluationError("no English data set was scored: there is nothing to average")
    categories: dict[str, list[float]] = {}
    for dataset in english.values():
        categories.setdefault(dataset.category, []).append(dataset.score)
    means = {category: float(np.mean(values)) for category, values in categories.items()}
    suffix = "_e" if all(name.endswith("_e") for name in english) else ""
    wanted = EXTENDED if suffix else ENGLISH
    return Averages(
        over_datasets=round(float(np.mean([dataset.score for dataset in english.values()])), 2),
        over_categories=round(float(np.mean(list(means.values()))), 2),
        categories={category: round(mean, 2) for category, mean in means.items()},
        missing=[name + suffix for name in wanted if name + suffix not in english],
    )


def _code_similarity(prediction: str, truth: str, **_: Any) -> float:
    """Whole percent of likeness between the answer's first line of code and the reference."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((t for t in lines if not ("`" in t or "#" in t or "//" in t)), "")
    return _percent(line, truth) / 100


def _percent(text: str, other: str) -> int:
    """What `fuzzywuzzy.fuzz.ratio` gives by difflib, its only dependency in the original."""
    if not text or not other:
        return 0
    return round(100 * difflib.SequenceMatcher(None, text, other).ratio())


@cache
def _metrics(chinese: bool) -> Any:
    """lm-eval's LongBench metrics.

    Its module wants fuzzywuzzy (GPL), used for code alone, and jieba, used for Chinese alone.
    Neither is imported unless needed: empty modules stand in while it loads.
    """
    try:
        import rouge  # noqa: F401
    except ImportError as error:
        raise DependencyError("LongBench needs rouge: pip install 'endprompt[eval]'") from error
    if chinese:
        try:
            import logging

            import jieba
        except ImportError as error:
            raise DependencyError(
                "LongBench's Chinese data sets need jieba: pip install 'endprompt[eval]'"
            ) from error
        jieba.setLogLevel(logging.WARNING)
    fuzzy: Any = types.ModuleType("fuzzywuzzy")
    fuzzy.fuzz = types.SimpleNamespace()
    replaced = {"fuzzywuzzy": fuzzy} | ({} if chinese else {"jieba": types.ModuleType("jieba")})
    before = {name: sys.modules.get(name) for name in replaced}
    spec = importlib.util.spec_from_file_location(
        "endprompt.eval._longbench_metrics", _lm_eval_folder() / "metrics.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.update(replaced)
    try:
        spec.loader.exec_module(module)
    finally:
        for name, value in before.items():
            if value is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = value
    return module


def _lm_eval_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.origin:
        raise DependencyError("LongBench needs lm-eval: pip install 'endprompt[eval]'")
    return Path(spec.origin).parent / "tasks" / "longbench"
