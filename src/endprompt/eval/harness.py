"""lm-evaluation-harness on our engine, and RULER as tasks that plain lm-eval can use.

`EngineLM` is an lm-eval model. `tasks_path()` is a folder for lm-eval's `--include_path`.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from endprompt import stats
from endprompt.errors import EvaluationError
from endprompt.eval.engine import Engine
from endprompt.eval.reader import Reader
from endprompt.eval.results import Cell, Question, Sample

SHORT_TASKS = ("mmlu", "gsm8k", "hellaswag", "humaneval")
"""The short-text tasks of the paper's table 5, under lm-eval's names."""


class EngineLM(TemplateLM):
    """An engine as lm-eval sees a model. Prompts longer than the window lose their beginning."""

    def __init__(self, engine: Engine, *, max_length: int | None = None) -> None:
        super().__init__()
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self._max_length = max_length or engine.window
        self._reader = Reader(engine)

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation together."""
        return self._max_length

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return int(self.engine.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        bos = self.engine.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's caches."""
        return self.engine.name.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The tokenizer's own template."""
        return cast(
            str,
            self.engine.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            ),
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any
    ) -> list[int]:
        """Token ids; start tokens once, unless `add_special_tokens` is False."""
        if add_special_tokens is False:
            return self.engine.encode(string)
        return self.engine.prompt_ids(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = []
        for _, context, continuation in requests:
            # As lm-eval counts: the last token is predicted, not read.
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise EvaluationError(
                    f"a continuation of {len(continuation)} tokens does not fit in "
                    f"{self.max_length}: evaluate with a longer max length"
                )
            pairs.append((context[-room:], continuation))
        return [(-scores.total, scores.exact) for scores in self.engine.loglikelihoods(pairs)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in lm-eval's windows of the maximal length."""
        del disable_tqdm
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            totals.append(-sum(scores.total for scores in self.engine.loglikelihoods(pairs)))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each cut before the first of its stop texts.

        Raises EvaluationError when a task asks for sampling.
        """
        del disable_tqdm
        questions = []
        for number, request in enumerate(requests):
            prompt, options = request.args
            if options.get("do_sample") and float(options.get("temperature", 1.0)) > 0:
                raise EvaluationError("a task asks for sampling: the engine decodes greedily only")
            until = options.get("until") or []
            count = int(options.get("max_gen_toks", options.get("max_new_tokens", 256)))
            ids = self.engine.prompt_ids(prompt)
            if len(ids) + count > self.max_length:
                prompt = self.engine.decode(ids[-max(self.max_length - count, 1) :])
            questions.append(
                Question(
                    id=str(number),
                    task="",
                    length=0,
                    prompt=prompt,
                    max_new_tokens=count,
                    stop=(until,) if isinstance(until, str) else tuple(until),
                )
            )
        batches = self._reader.batches(questions)
        return [answer for batch in batches for answer in self._reader.answer_all(batch)]


def tasks_path() -> Path:
    """Folder of RULER's tasks, for `lm_eval --include_path`."""
    return Path(__file__).parent / "tasks"


def task_manager(
    tasks: Sequence[str], include: Path | None = None, metadata: dict[str, Any] | None = None
) -> Any:
    """lm-eval's index of tasks. Raises EvaluationError for one that it does not know."""
    from lm_eval.tasks import TaskManager

    folders: list[str | Path] = [tasks_path(), *([include] if include else [])]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # lm-eval's own thousands of tasks take seconds to index: only where one of them is asked for.
    manager = TaskManager(include_path=folders, metadata=metadata, include_defaults=False)
    if not all(manager.match_tasks([task]) for task in tasks):
        manager = TaskManager(include_path=folders, metadata=metadata)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise EvaluationError(f"lm-eval has no task {', '.join(unknown)}: see `lm_eval ls tasks`")
    return manager


def run_tasks(
    model: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include: Path | None = None,
    seed: int = 0,
    chat: bool = False,
    unsafe_code: bool = False,
    metadata: dict[str, Any] | None = None,
    **arguments: Any,
) -> tuple[list[Sample], list[Cell]]:
    """Run lm-eval tasks; a sample for each of their documents, a cell for each of their metrics.

    model         an `EngineLM`, or the name of one of lm-eval's models (with `model_args`)
    limit         documents of each task, all when None
    include       folder with more tasks
    unsafe_code   allow tasks that run generated code (humaneval)
    metadata      settings of the tasks themselves, such as max_seq_lengths and tokenizer
    arguments     passed on to `lm_eval.simple_evaluate`

    Raises EvaluationError for a task that lm-eval does not know or whose data is out of reach.
    """
    from lm_eval import simple_evaluate

    manager = task_manager(tasks, include, metadata)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluated: Any = simple_evaluate(
                model=model,
                tasks=list(tasks),
                limit=limit,
                task_manager=manager,
                apply_chat_template=chat,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                bootstrap_iters=0,
                confirm_run_unsafe_code=unsafe_code,
                **arguments,
            )
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise EvaluationError(f"lm-eval could not run {', '.join(tasks)}: {reason}") from error
    return _samples(evaluated["samples"]), _cells(evaluated)


def _samples(logged: dict[str, list[dict[str, Any]]]) -> list[Sample]:
    samples = []
    for task, rows in logged.items():
        for row in sorted(rows, key=lambda row: (row["filter"], row["doc_id"])):
            scores = {
                name: float(row[name])
                for name in row["metrics"]
                if isinstance(row.get(name), int | float | bool)
            }
            samples.append(
                Sample(
                    id=f"{task}/{row['filter']}/{row['doc_id']}",
                    task=task,
                    length=0,
                    prompt_sha256=row["prompt_hash"],
                    prediction=str(row["filtered_resps"]),
                    references=(str(row["target"]),),
                    scores=scores,
                )
            )
    return samples


def _cells(evaluated: dict[str, Any]) -> list[Cell]:
    """lm-eval's own aggregates (which need not be means), with intervals where they are means."""
    cells = []
    for task, results in evaluated["results"].items():
        for key, value in results.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            rows = [
                float(row[metric])
                for row in evaluated["samples"].get(task, [])
                if row["filter"] == filtered and isinstance(row.get(metric), int | float)
            ]
            mean = float(value)
            found_mean = stats.of_values(rows) if rows else None
            same = found_mean is not None and abs(found_mean.mean - mean) < 1e-9
            cells.append(
                Cell(
                    task=task,
                    length=0,
                    metric=metric if filtered == "none" else f"{metric} ({filtered})",
                    mean=mean,
                    low=found_mean.low if found_mean and same else None,
                    high=found_mean.high if found_mean and same else None,
                    samples=len(rows)
                    or int(evaluated["n-samples"].get(task, {}).get("effective", 0)),
                    failed=0,
                )
            )
    return cells
