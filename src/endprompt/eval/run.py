"""An evaluation from its configuration to results in a folder: what `endprompt eval run` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from endprompt import units
from endprompt.eval import estimate, results, suites, untaught
from endprompt.eval.config import EvalConfig
from endprompt.eval.engine import Coder, Engine
from endprompt.eval.reader import Reader
from endprompt.eval.results import Answerer, Cell, Summary
from endprompt.eval.server import Server, ServerError
from endprompt.eval.suites import Suite
from endprompt.eval.texts import long_texts
from endprompt.io import claims, digests
from endprompt.io.files import write_text
from endprompt.io.secrets import redact
from endprompt.models import embedded
from endprompt.models.tokenizer import load_tokenizer

Bar = Callable[[str, int], AbstractContextManager[Callable[[float], None]]]
"""A suite's name and number of questions -> what is called with the number answered."""
Show = Callable[[str, Sequence[Cell], Summary | None], None]


@dataclass
class Evaluated:
    """Results of an evaluation.

    cells     suite -> means by task, length and metric
    failed    samples that a server did not answer; the same call asks for them again
    troubles  kind of a server's trouble -> how often it was met, retried ones included
    """

    cells: dict[str, list[Cell]] = field(default_factory=dict)
    failed: int = 0
    troubles: dict[str, int] = field(default_factory=dict)


def _no_bar(*_: Any) -> AbstractContextManager[Callable[[float], None]]:
    return nullcontext(lambda _: None)


def evaluate(
    config: EvalConfig,
    out: Path,
    *,
    bar: Bar = _no_bar,
    show: Show = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluated:
    """Ask everything that a configuration names and write it under `out`, a folder a suite.

    bar   a progress bar for each suite
    show  called with name, cells and summary when a suite (of `short`: a task) is done
    say   called before a suite of known sizes with what it will take here

    What is there is not asked again. Raises an EndPromptError for everything that a user can
    cause, OutputError for a folder of another evaluation among it.
    """
    done = Evaluated()
    with claims.output(out, "eval run", reads=config.reads) as held:
        target = _Target.of(config)
        for name in (name for name in config.tasks if name != "short"):
            suite = suite_of(name, config, target.coder)
            held.claim({})
            if target.engine is not None and suite.sizes:
                say(_foretold(target.engine, suite))
            summary = _answer(suite, config, target, out / name, bar)
            show(name, summary.cells, summary)
            done.cells[name] = summary.cells
            done.failed += summary.failed
        if "short" in config.tasks:
            held.claim({})
            done.cells["short"] = []
            for cells in _short(config, target, out / "short"):
                show("short", cells, None)
                done.cells["short"] += cells
        if target.client is not None:
            done.troubles = dict(target.client.troubles)
    return done


@dataclass(frozen=True)
class _Target:
    """What is evaluated: an engine here, or a client of a server.

    asked  what decides about every answer: whose they are, by digests, not by a path alone
    """

    coder: Coder
    answerer: Answerer
    asked: dict[str, Any]
    engine: Engine | None = None
    client: Server | None = None

    @classmethod
    def of(cls, config: EvalConfig) -> _Target:
        if config.server is None:
            folder = embedded.resolve(config.model)
            engine = Engine.load(folder, dtype=config.dtype)
            engine.name = config.model
            asked = {"model": config.model, **digests.of_model(folder)}
            return cls(engine, Reader(engine), asked, engine=engine)
        sizing = config.tokenizer or config.model
        coder = Coder(load_tokenizer(sizing))
        client = Server(config.server, config.model, timeout=config.timeout, tries=config.tries)
        asked = {
            "model": config.model,
            "server": redact(config.server),
            "tokenizer_digest": digests.of_model(sizing).get("tokenizer_digest"),
        }
        return cls(coder, client, asked, client=client)


def suite_of(name: str, config: EvalConfig, coder: Coder) -> Suite:
    """Questions of a suite, sized by a tokenizer; of all but `short`, which are lm-eval's.

    Raises an EndPromptError for data that can't be had.
    """
    if name == "ruler":
        return suites.ruler_suite(
            coder,
            tasks=config.ruler_tasks,
            lengths=config.lengths,
            samples=config.samples,
            seed=config.seed,
            template=config.template,
            files={
                "essays": config.essays,
                "squad": config.squad,
                "hotpotqa": config.hotpotqa,
            },
        )
    longest = config.lengths[-1]
    if name == "longbench":
        return suites.longbench_suite(
            coder,
            datasets=config.datasets,
            folder=config.longbench,
            max_length=longest,
            samples=config.samples,
            chat=config.chat,
        )
    if name in untaught.TASKS:
        (text,) = long_texts(coder, config.text, tokens=longest, count=1)
        return suites.untaught_suite(
            name,
            coder,
            lengths=config.lengths,
            asked=len(config.depths),
            seed=config.seed,
            text=text,
        )
    documents = []
    if name == "needle":
        documents = long_texts(coder, config.text, tokens=longest, count=config.texts)
    return suites.retrieval_suite(
        name,
        coder,
        lengths=config.lengths,
        depths=config.depths,
        samples=config.texts,
        seed=config.seed,
        documents=documents,
    )


def _foretold(engine: Engine, suite: Suite) -> str:
    """What a suite will take, in one line."""
    tokens = sum(length for length, _ in suite.sizes)
    took = units.duration(estimate.seconds(engine, suite.sizes))
    device = "GPU" if engine.device.type == "cuda" else "CPU"
    return (
        f"{suite.name}: {len(suite.sizes):,} prompts, {tokens:,} tokens, about {took} on this "
        f"{device}; what is answered already is not asked again"
    )


def _answer(suite: Suite, config: EvalConfig, target: _Target, folder: Path, bar: Bar) -> Summary:
    """Ask a suite's questions."""
    with bar(suite.name, suite.total) as progress:
        return results.answer_all(
            folder,
            {**target.asked, "suite": suite.name, **suite.settings},
            suite.questions(),
            target.answerer,
            suite.score,
            computation=target.engine.computation if target.engine else None,
            workers=config.workers if target.client else 1,
            notes=suite.notes,
            progress=progress,
            survives=ServerError,
        )


def _short(config: EvalConfig, target: _Target, folder: Path) -> Iterator[list[Cell]]:
    """Cells of lm-eval's tasks, two files a task; a task that is there is not run again."""
    from endprompt.eval import harness

    settings = {**target.asked, "samples": config.samples, "seed": config.seed}
    settings |= {"suite": "short", "chat": config.chat}
    model: Any = "local-completions"
    arguments: dict[str, Any] = {}
    if target.engine is not None:
        settings |= target.engine.computation.deciding()
        model = harness.EngineLM(target.engine)
    elif config.server is not None:
        arguments["model_args"] = {
            "base_url": f"{config.server.rstrip('/')}/completions",
            "model": config.model,
            "tokenizer": config.tokenizer or config.model,
        }
    with claims.output(folder, "eval run") as held:
        held.require(settings)
        for task in config.short:
            path, table = folder / f"{task}.jsonl", folder / f"{task}.summary.jsonl"
            if not (path.is_file() and table.is_file()):
                samples, cells = harness.run_tasks(
                    model,
                    [task],
                    limit=config.samples,
                    include=config.include,
                    seed=config.seed,
                    chat=config.chat,
                    unsafe_code=config.run_code,
                    **arguments,
                )
                held.claim(settings)
                write_text(path, "".join(sample.model_dump_json() + "\n" for sample in samples))
                write_text(table, "".join(cell.model_dump_json() + "\n" for cell in cells))
            yield results.read_cells(table)
