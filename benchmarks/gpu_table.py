"""The paper's table on SmolLM2-135M, 8K to 64K, within minutes of one GPU.

    python benchmarks/gpu_table.py --pack runs/pack        # here: model and text in parts
    python benchmarks/gpu_table.py --parts runs/pack --minutes 9 --out runs/gpu/table.json

Arms: untrained YaRN, and `short`, `pose`, `endprompt`, `fact-anchors`, `recall-anchors`,
`distilled-anchors` with YaRN on the same tokens at the same rate. Each is measured at the window
and at the target: loss, needles by quarter of the length and verbatim recall on held-out texts, and
RULER's 13 tasks. Beside them the time of a step on rows of the window, and its share of the GPU's
peak, for this model and for a Llama of 1.2 billion random weights.

Every figure is written as it comes; the same command resumes where the last one stopped. What
does not fit into `--minutes` is left to the next call. An arm is trained and its texts read before
the next arm; then comes RULER, in up to `--rounds` rounds of few samples with a seed each.
On an H100, estimated: 40 s of training an arm, 10 s of texts, 20 s of a round of RULER, 60 s of
steps.

`--pack` writes bfloat16 shards and text below numbered folders of at most 60 MiB, for a machine
that takes little at a time: each folder travels by itself, `--parts` puts them together. A torch
before 2.13 has no fused loss: chunks of float32 matmuls stand in for it, as the result says.

`tests/test_gpu_table.py` runs all of it on a CPU at toy size.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_cost
import numpy as np
import torch
import train_step

from endprompt import recipe as recipes
from endprompt import rope, units
from endprompt.cost import flops
from endprompt.data.encoder import Encoder
from endprompt.data.tokens import TokenDocuments
from endprompt.eval import results, suites
from endprompt.eval.config import EvalConfig
from endprompt.eval.engine import Coder, Engine
from endprompt.eval.reader import Reader
from endprompt.eval.results import Question
from endprompt.eval.texts import long_texts
from endprompt.eval.window import window_check
from endprompt.io import files, provenance
from endprompt.io.silence import silence_libraries
from endprompt.models import checkpoint as models
from endprompt.models import embedded
from endprompt.train.calibration import known_gpu, matmul_peak
from endprompt.train.run import train

UNTRAINED = "yarn-untrained"
ARMS = (UNTRAINED, "short", "pose", "endprompt", "fact-anchors", "recall-anchors",
        "distilled-anchors")  # fmt: skip
PART_BYTES = 60 * 2**20
SHARD = "60MB"
SHAPES = gpu_cost.SHAPES | {
    "toy": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 320,
        "max_position_embeddings": 256, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}  # fmt: skip
EXPECTED = {"train": 45.0, "texts": 12.0, "ruler": 30.0, "step": 15.0, "large-step": 30.0}
"""Seconds of a piece on an H100 before one of its kind was timed."""
STEPS = 6
"""Of a speed measurement; the first two are left out."""


class NoTime(Exception):
    """The minutes are used up."""


@dataclass
class Table:
    """Figures by name, written as each comes; the clock of this call.

    longest  seconds of the slowest piece of each kind so far, which the next is expected to take
    """

    out: Path
    settings: dict[str, Any]
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    longest: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if self.out.is_file():
            record = json.loads(self.out.read_text())
            if record["settings"] != self.settings:
                raise SystemExit(f"{self.out} holds a table of other settings: give another --out")
            self.figures, self.longest = record["figures"], record["longest"]

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.perf_counter() - self.began)

    def _expected(self, kind: str) -> float:
        assumed = EXPECTED.get(kind, 0.0) if torch.cuda.is_available() else 0.0
        return self.longest.get(kind, assumed)

    def forget(self, kind: str, name: str) -> None:
        """Make a figure anew."""
        self.figures.pop(f"{kind}/{name}", None)

    def has(self, kind: str, name: str) -> bool:
        """Whether a figure is there."""
        return f"{kind}/{name}" in self.figures

    def piece(self, kind: str, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Make one figure, unless it is there. Raises NoTime where it would not fit."""
        key = f"{kind}/{name}"
        if key in self.figures:
            return
        if self.left < self._expected(kind):
            raise NoTime(key)
        began = time.perf_counter()
        figure = make()
        _free()
        seconds = time.perf_counter() - began
        self.figures[key] = figure | {"wall_seconds": round(seconds, 2)}
        self.longest[kind] = max(self.longest.get(kind, 0.0), seconds)
        self.write()
        print(f"{self.left:6.0f} s left  {key}: {seconds:.1f} s  {_short(figure)}", flush=True)

    def write(self) -> None:
        """The record of what was measured so far."""
        files.write_json(
            self.out,
            {
                **provenance.provenance(),
                "settings": self.settings,
                "longest": self.longest,
                "figures": self.figures,
            },
        )


def _short(figure: dict[str, Any]) -> str:
    """A figure in one line."""
    text = json.dumps({key: value for key, value in figure.items() if key != "curve"})
    return text if len(text) < 300 else text[:300] + " ..."


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Model and text in parts.


def pack(model: str, text: str, folder: Path) -> list[Path]:
    """Model in bfloat16 and text in numbered folders of at most PART_BYTES; returns the folders."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "model"
        network = models.load(model, models.load_config(model), dtype="bfloat16")
        network.save_pretrained(made, max_shard_size=SHARD)
        models.load_tokenizer(model).save_pretrained(made)
        shutil.copytree(text, Path(scratch) / "text")
        sizes = {file: file.stat().st_size for file in Path(scratch).rglob("*") if file.is_file()}
        parts: list[int] = []
        for file in sorted(sizes, key=lambda file: -sizes[file]):
            if sizes[file] > PART_BYTES:
                raise SystemExit(f"{file.name} has {sizes[file]} bytes, a part {PART_BYTES}")
            fitting = [n for n, used in enumerate(parts) if used + sizes[file] <= PART_BYTES]
            number = fitting[0] if fitting else len(parts)
            parts += [0] if not fitting else []
            parts[number] += sizes[file]
            target = folder / str(number + 1) / file.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return [folder / str(number + 1) for number in range(len(parts))]


def put_together(parts: Path, folder: Path) -> tuple[str, str]:
    """Model and text of packed parts, by links in one folder each."""
    for part in sorted(path for path in parts.iterdir() if path.name.isdigit()):
        for file in (path for path in part.rglob("*") if path.is_file()):
            target = folder / file.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(file.resolve())
    index = folder / "model" / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(name for name in named if not (index.parent / name).exists())
        if missing:
            raise SystemExit(f"{parts} lacks {', '.join(missing)}: a part has not arrived")
    return str(folder / "model"), str(folder / "text")


# What every arm shares.


@dataclass(frozen=True)
class Shared:
    """Model, lengths and texts of all arms.

    documents  tokens to train on; heldout: int64[target] each, of other documents
    """

    model: str
    window: int
    target: int
    documents: TokenDocuments
    heldout: list[np.ndarray]

    @property
    def lengths(self) -> list[int]:
        """The window and the target, tokens."""
        return [self.window, self.target]


def shared(model: str, text: str, target: int, texts: int) -> Shared:
    """Held out is the end of the text, file by file; the rest is trained on."""
    tokenizer = models.load_tokenizer(model)
    window = rope.read_base(models.load_config(model)).window
    coder = Coder(tokenizer)
    paths = sorted(path for path in Path(text).rglob("*") if path.is_file())
    room = 1.02 * texts * target
    kept = len(paths)
    while room > 0 and kept > 1:
        kept -= 1
        room -= len(coder.encode(paths[kept].read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as scratch:
        for path in paths[kept:]:
            shutil.copy(path, scratch)
        heldout = long_texts(coder, scratch, tokens=target, count=texts)
    encoder = Encoder(tokenizer)
    arrays = encoder([path.read_text(encoding="utf-8") for path in paths[:kept]])
    documents = TokenDocuments.from_arrays(
        arrays, bos=encoder.bos, eos=encoder.eos, vocabulary=encoder.vocabulary,
        tokenizer_digest=encoder.digest,
    )  # fmt: skip
    return Shared(model, window, target, documents, heldout)


def recipe_of(arm: str, given: argparse.Namespace) -> recipes.Recipe:
    """An arm's recipe with YaRN and the settings that all share; amounts open."""
    recipe = recipes.load("pi" if arm == UNTRAINED else arm).replace({"rope.scaling": "yarn"})
    if arm == UNTRAINED:
        return recipe
    return recipe.replace(
        {
            "rows.tokens": given.row_tokens,
            "training.tokens_per_step": given.tokens_per_step,
            "training.tokens": given.tokens,
            "training.save_steps": 10**6,
            "training.learning_rate": 1e-4,
            "training.schedule": "linear",
            "training.warmup_steps": 10,
        }
    )


# Figures.


def trained(arm: str, given: argparse.Namespace, all_of: Shared, folder: Path) -> dict[str, Any]:
    """Train an arm into a folder, anew where an earlier call was cut off."""
    shutil.rmtree(folder, ignore_errors=True)
    recipe = recipe_of(arm, given).resolve(
        window=all_of.window, target=all_of.target, gpu=torch.cuda.is_available()
    )
    done = train(recipe, model=all_of.model, documents=all_of.documents, target=all_of.target,
                 out=folder)  # fmt: skip
    curve = [{key: entry[key] for key in ("loss", "seconds", "memory_gib")} for entry in done.curve]
    return {
        "recipe_hash": done.recipe_hash,
        "factor": models.load_config(str(folder / "model")).rope_parameters["factor"],
        "steps": done.steps,
        "tokens": done.tokens,
        "flops": done.flops,
        "seconds": done.seconds,
        "checks_passed": sum(check["passed"] for check in done.position_check),
        "checks": len(done.position_check),
        "curve": curve,
    }


def texts_read(folder: Path, given: argparse.Namespace, all_of: Shared) -> dict[str, Any]:
    """Loss, needles by quarter and verbatim recall at window and target."""
    engine = Engine.load(folder / "model", dtype=given.dtype)
    check = window_check(engine, all_of.heldout, lengths=all_of.lengths, needles=given.needles)
    return {
        "computation": check.computation.model_dump(),
        "lengths": [row.model_dump() for row in check.summary()],
        "curve": [bin_.model_dump() for bin_ in check.curve],
    }


def asked(given: argparse.Namespace, number: int, folder: Path) -> list[Question]:
    """RULER's questions of a round at both lengths, from the file of `--prompts`."""
    path = folder / f"round-{number}.jsonl"
    while not path.is_file():  # its process is at work since this one began
        if given.writer is None or given.writer.poll() not in (None, 0):
            raise SystemExit(f"RULER's prompts were not made: {folder / 'prompts.log'} says why")
        time.sleep(0.2)
    return [Question.model_validate_json(line) for line in path.read_text().splitlines()]


def write_prompts(given: argparse.Namespace, model: str, target: int, folder: Path) -> None:
    """RULER's questions of every round to a file each; a process of its own does this."""
    coder = Coder(models.load_tokenizer(model))
    tasks = EvalConfig(model=model, tasks="ruler", ruler_tasks=given.ruler_tasks).ruler_tasks
    window = rope.read_base(models.load_config(model)).window
    for number in range(1, given.rounds + 1):
        path = folder / f"round-{number}.jsonl"
        if path.is_file():
            continue
        lines = []
        for length, samples in ((window, given.near_samples), (target, given.samples)):
            suite = suites.ruler_suite(
                coder, tasks=tasks, lengths=[length], samples=samples, seed=41 + number
            )
            lines += [question.model_dump_json() for question in suite.questions()]
        files.write_text(path, "".join(line + "\n" for line in lines))


def ruler(
    folder: Path,
    given: argparse.Namespace,
    questions: list[Question],
    known: dict[str, list[int]],
    number: int,
) -> dict[str, Any]:
    """A round of RULER: scores by length and task, and seconds of answering.

    known  token ids of the round's prompts, which all arms share
    """
    engine = Engine.load(folder / "model", dtype=given.dtype)
    suite = suites.ruler_suite(engine, tasks=[], lengths=[], samples=0, seed=0)
    began = time.perf_counter()
    summary = results.answer_all(
        folder / f"ruler-{number}",
        {"round": number},
        questions,
        Reader(engine, known=known),
        suite.score,
        computation=engine.computation,
    )
    cells = summary.cells
    by_length = {
        length: statistics.mean(cell.mean for cell in cells if cell.length == length)
        for length in sorted({cell.length for cell in cells})
    }
    return {
        "mean": by_length,
        "samples": {length: sum(q.length == length for q in questions) for length in by_length},
        "cells": [[cell.task, cell.length, cell.mean, cell.samples] for cell in cells],
        "answered_in": time.perf_counter() - began,
    }


def step_time(model: str, tokens: int, rows: int, target: int, *, kept: bool) -> dict[str, Any]:
    """Seconds of a step of `rows` rows; `kept`: nothing of the forward pass is made again."""
    recipe = recipes.load("endprompt").replace(
        {"rows.tokens": tokens, "training.tokens_per_step": rows * tokens,
         "training.tokens": STEPS * rows * tokens, "training.save_steps": 10**6,
         "training.gradient_checkpointing": not kept}
    )  # fmt: skip
    config = models.load_config(model)
    gpu = torch.cuda.is_available()
    recipe = recipe.resolve(window=rope.read_base(config).window, target=target, gpu=gpu)
    text = train_step.documents(models.load_tokenizer(model), tokens)
    seen: list[dict[str, Any]] = []
    if gpu:
        torch.cuda.reset_peak_memory_stats()

    def note(entry: dict[str, Any]) -> None:
        seen.append(entry)
        if len(seen) == STEPS:
            raise train_step.Enough

    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(train_step.Enough):
        train(recipe, model=model, documents=text, target=target, out=Path(scratch), progress=note)
    best = min(entry["seconds"] for entry in seen[2:])
    rate = rows * flops.row(recipe, flops.read(config), False).total / best
    known = known_gpu()
    matmuls = matmul_peak(torch.device("cuda" if gpu else "cpu"), gpu)
    return {
        "row_tokens": tokens,
        "rows": rows,
        "checkpointing": not kept,
        "seconds": [entry["seconds"] for entry in seen],
        "ms_per_row": 1e3 * best / rows,
        "flops_per_second": rate,
        "share_of_peak": rate / (known.peak if known else matmuls),
        "share_of_matmuls": rate / matmuls,
        "memory_gib": seen[-1]["memory_gib"],
    }


@contextlib.contextmanager
def random_model(shape: str, tokenizer_of: str) -> Iterator[str]:
    """Folder of a random Llama of a shape with another model's tokenizer, while it is needed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            network = LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).to(torch.bfloat16)
        network.save_pretrained(scratch)
        models.load_tokenizer(tokenizer_of).save_pretrained(scratch)
        del network
        _free()
        yield scratch


def measure(table: Table, given: argparse.Namespace, all_of: Shared, work: Path) -> None:
    """Every figure that fits into the minutes, the most valuable first."""

    def model_of(arm: str) -> None:
        """Have an arm's model; one that is not on this machine any more is trained again."""
        kind = "scale" if arm == UNTRAINED else "train"
        if not (work / arm / "train.json").is_file():
            table.forget(kind, arm)
        table.piece(kind, arm, functools.partial(trained, arm, given, all_of, work / arm))

    for arm in given.arms:
        if not table.has("texts", arm):
            model_of(arm)
        table.piece("texts", arm, functools.partial(texts_read, work / arm, given, all_of))
    for number in range(1, given.rounds + 1):
        wanted = [arm for arm in given.arms if not table.has("ruler", f"{number}/{arm}")]
        questions = asked(given, number, work) if wanted else []
        known: dict[str, list[int]] = {}
        for arm in wanted:
            model_of(arm)
            table.piece(
                "ruler", f"{number}/{arm}",
                functools.partial(ruler, work / arm, given, questions, known, number),
            )  # fmt: skip
        if number == 1:
            _steps(table, given, all_of)


def _steps(table: Table, given: argparse.Namespace, all_of: Shared) -> None:
    window = all_of.window
    for rows, kept in ((4, True), (4, False)):
        name = f"own/{rows}x{window}/{'kept' if kept else 'checkpointed'}"
        table.piece(
            "step", name,
            functools.partial(step_time, all_of.model, window, rows, all_of.target, kept=kept),
        )  # fmt: skip

    def large(kept: bool) -> dict[str, Any]:
        with random_model(given.shape, all_of.model) as folder:
            own = rope.read_base(models.load_config(folder)).window
            return step_time(folder, own, 2, own * (all_of.target // window), kept=kept)

    for kept in (True, False):
        name = f"{given.shape}/{'kept' if kept else 'checkpointed'}"
        table.piece("large-step", name, functools.partial(large, kept))


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pack", type=Path, help="write model and text in parts here, and end")
    parser.add_argument("--parts", type=Path, help="packed model and text")
    parser.add_argument("--model", help="folder, hub name or GGUF; default: the embedded model")
    parser.add_argument("--text", help="folder of text files; default: the embedded text")
    parser.add_argument("--to", default="64k")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--tokens", default="5m", help="of each arm")
    parser.add_argument("--row-tokens", default="2k")
    parser.add_argument("--tokens-per-step", default="32k")
    parser.add_argument("--texts", type=int, default=3, help="held out, of the target's length")
    parser.add_argument("--needles", type=int, default=8, help="of a text and length")
    parser.add_argument("--ruler-tasks", default="all")
    parser.add_argument("--samples", type=int, default=2, help="of a task in a round at the target")
    parser.add_argument("--near-samples", type=int, default=4, help="at the window")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    parser.add_argument("--dtype", help="of evaluations; default: bfloat16 on a GPU, else float32")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--work", type=Path, help="models and prompts; default: beside --out")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/table.json"))
    parser.add_argument("--prompts", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Pack, or measure what is not measured yet."""
    given = options().parse_args()
    silence_libraries()
    work = given.work or given.out.parent / f"{given.out.stem}-work"
    work.mkdir(parents=True, exist_ok=True)
    if given.parts:
        model, text = put_together(given.parts, work / "base")
    else:
        model, text = embedded.resolve(given.model), given.text or str(embedded.text())
    if given.pack:
        for part in pack(model, text, given.pack):
            size = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
            print(f"{part}: {size / 2**20:.1f} MiB")
        return
    target = units.tokens(given.to)
    if given.prompts:
        write_prompts(given, model, target, work)
        return
    given.arms = given.arms.split(",")
    given.tokens = units.amount(given.tokens)
    given.row_tokens, given.tokens_per_step = map(
        units.tokens, (given.row_tokens, given.tokens_per_step)
    )
    given.dtype = given.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    settings = {
        "to": target, "tokens": given.tokens, "row_tokens": given.row_tokens,
        "tokens_per_step": given.tokens_per_step, "texts": given.texts, "needles": given.needles,
        "ruler_tasks": given.ruler_tasks, "samples": [given.near_samples, given.samples],
        "dtype": given.dtype, "shape": given.shape,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip
    table = Table(given.out, settings, 60 * given.minutes)
    with (work / "prompts.log").open("w") as log:
        given.writer = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--prompts"], stdout=log, stderr=log
        )
    try:
        all_of = shared(model, text, target, given.texts)
        measure(table, given, all_of, work)
    except NoTime as error:
        print(f"no time left for {error}: give the same command again")
    finally:
        given.writer.terminate()
        given.writer.wait()


if __name__ == "__main__":
    main()
