"""Methods on a real model at equal tokens: several training seeds and texts, and one table.

    python benchmarks/methods_on_model.py [MODEL] --to 16k --tokens 1m --step 16k --workers 8

Every arm trains with the same scaling, rate, schedule and tokens in all, rows of 1,024 tokens and
steps of `--step` tokens (rows of the target's length: at least one a step), and answers the same
questions on held-out text (`endprompt eval window`). `NAME-no-jump` is a recipe's control: its rows
at contiguous positions. The base and the untrained scaling are always there. A finished arm is a
file in `--work` and is not done again; after `--budget` seconds no further one is begun. Arms of
one seed come before the next seed, so that what is there is a table at any time.

Differences are paired; their intervals are a bootstrap over the seeds and the questions of every
text.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import shutil
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from endprompt import recipe as recipes
from endprompt import units
from endprompt.io import claims, files, provenance
from endprompt.models import embedded

RESULTS = Path(__file__).parent / "results" / "methods_smollm2.json"
ARMS = (
    "recall-anchors,short,recall-anchors-no-jump,pose,endprompt,endprompt-pose,continuation,"
    "recall-continuation,full"
)
UNTRAINED = ("base", "untrained")
BARE = "-no-jump"
TEXTS = "bible,python"
LOSS_TOKENS = 1024
DRAWS = 4000
MEASURES = {"needles": "nll_per_token", "digits": "digits_right", "quotes": "nll"}


@dataclass(frozen=True)
class Setting:
    """What all arms share."""

    model: str
    target: int
    scaling: str
    tokens: int
    step: int
    rate: float
    lengths: tuple[int, ...]
    documents: int
    needles: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One arm; an untrained one has no seed."""

    arm: str
    text: str
    seed: int | None

    def file(self, work: Path) -> Path:
        """Its result."""
        seed = "untrained" if self.seed is None else f"seed{self.seed}"
        return work / "results" / f"{self.text}-{seed}-{self.arm}.json"


def jobs(arms: Sequence[str], texts: Sequence[str], seeds: int) -> Iterator[Job]:
    """All arms, seed by seed."""
    yield from (Job(arm, text, None) for text in texts for arm in UNTRAINED)
    yield from (Job(arm, text, seed) for seed in range(seeds) for arm in arms for text in texts)


def recipe_of(job: Job, setting: Setting) -> recipes.Recipe:
    """The recipe of an arm with what all of them share."""
    import torch

    name = job.arm.removesuffix(BARE)
    recipe = recipes.load("short" if job.seed is None else name)
    if job.arm.endswith(BARE):
        recipe = recipe.without_jump()
    shared: dict[str, Any] = {
        "rope.scaling": "none" if job.arm == "base" else setting.scaling,
        "training.tokens": setting.tokens,
        "training.tokens_per_step": setting.step,
        "training.learning_rate": setting.rate,
        "training.schedule": "linear",
        "training.warmup_steps": 3,
        "training.save_steps": 10**6,
        "training.seed": job.seed or 0,
    }
    if recipe.rows.tokens == "target":
        shared["training.tokens_per_step"] = max(setting.step, setting.target)
    else:
        shared["rows.tokens"] = 1024
    if job.seed is None:
        recipe = recipe.untrained()
    recipe = recipe.replace(shared)
    from endprompt.models.checkpoint import load_config
    from endprompt.rope import read_base

    window = read_base(load_config(setting.model)).window
    gpu = torch.cuda.is_available()
    return recipe.resolve(window=window, target=setting.target, gpu=gpu)


def prepare_text(text: str, setting: Setting, folder: Path) -> None:
    """Tokens of a text, some documents of it held out."""
    from endprompt.data import holdout
    from endprompt.data.mixture import Weighted
    from endprompt.data.prepare import prepare
    from endprompt.data.prepared import open_documents
    from endprompt.data.sources import open_source
    from endprompt.models.checkpoint import load_tokenizer

    if (folder / holdout.FILE).is_file():
        return
    source = text
    if text == "bible":
        source = str(embedded.text())
    elif text == "python":
        source = str(library_sources(folder.with_name("python-sources")))
    tokenizer = load_tokenizer(setting.model)
    prepare([Weighted(open_source(source))], tokenizer, folder)
    found = holdout.split(
        open_documents(folder, tokenizer=tokenizer),
        tokens=max(setting.lengths),
        count=setting.documents,
        row_tokens=setting.target,
    )
    holdout.save(folder, found)


def library_sources(folder: Path) -> Path:
    """The longer modules of Python's standard library as text files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if path.stat().st_size > 20_000:
            shutil.copyfile(path, folder / f"{path.stem}.txt")
    return folder


def become_worker(threads: int) -> None:
    """No chatter, a share of the cores, and an end when the parent ends, however it does."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from endprompt.io.quiet import quiet

    torch.set_num_threads(threads)
    quiet()


def end_with_parent() -> None:
    """Wait for the parent's end, then end at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run(job: Job, setting: Setting, work: Path) -> float:
    """Train an arm, ask it, write what it answered; returns seconds."""
    import torch

    from endprompt.data import holdout
    from endprompt.eval.engine import Engine
    from endprompt.eval.window import window_check
    from endprompt.models import checkpoint as models
    from endprompt.train.run import train

    torch.cuda.empty_cache()  # other arms share the GPU
    began = time.perf_counter()
    recipe = recipe_of(job, setting)
    data = work / "data" / job.text
    out = work / "arms" / job.file(work).stem
    found: dict[str, Any] = {**asdict(job), "recipe_hash": recipe.hash()}
    if job.seed is None:
        config = models.scaled_config(setting.model, recipe, setting.target)
        tokenizer = models.load_tokenizer(setting.model)
        models.link(setting.model, config, tokenizer, out / "model", setting.target)
    else:
        documents, fingerprint = holdout.training_documents(data)
        done = train(recipe, model=setting.model, documents=documents, target=setting.target,
                     out=out, fingerprint=fingerprint)  # fmt: skip
        found |= {"train_seconds": done.seconds, "tokens": done.tokens, "flops": done.flops,
                  "epochs": done.epochs, "memory_gib": done.curve[-1]["memory_gib"],
                  "last_loss": done.curve[-1]["loss"]}  # fmt: skip
    trained = time.perf_counter()
    texts = [ids_T for ids_T in holdout.held_out_texts(data) if len(ids_T) >= setting.lengths[-1]]
    check = window_check(
        Engine.load(out / "model", chunk=4096 if torch.cuda.is_available() else 1024),
        texts[: setting.documents],
        lengths=setting.lengths,
        needles=setting.needles,
        quotes=setting.needles,
        last=LOSS_TOKENS,
    ).model_dump(mode="json")
    found["losses"] = [[e["length"], e["nll"]] for e in check["losses"]]
    found["needles"] = [[e["length"], e["nll_per_token"]] for e in check["needles"]]
    found["digits"] = [[e["length"], e["digits_right"]] for e in check["needles"]]
    found["quotes"] = [[e["length"], e["nll"]] for e in check["quotes"]]
    found["texts"] = check["texts"]
    found["seconds"] = {"train": trained - began, "check": time.perf_counter() - trained}
    files.write_json(job.file(work), found)
    shutil.rmtree(out, ignore_errors=True)
    return time.perf_counter() - began


def run_all(wanted: list[Job], setting: Setting, work: Path, workers: int, budget: float) -> None:
    """Every arm that is missing, some of them at once, until the budget is spent."""
    began = time.perf_counter()
    todo = [job for job in wanted if not job.file(work).is_file()]
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, become_worker, (threads,)
    ) as all_:
        running: dict[concurrent.futures.Future, Job] = {}
        left = iter(todo)
        while True:
            while len(running) < workers and time.perf_counter() - began < budget:
                job = next(left, None)
                if job is None:
                    break
                running[all_.submit(run, job, setting, work)] = job
            if not running:
                break
            done, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                job = running.pop(future)
                error = future.exception()
                said = f"failed: {error!r}" if error else f"{future.result():.1f} s"
                spent = time.perf_counter() - began
                print(f"{spent:6.1f} s  {job.text} {job.seed} {job.arm}: {said}", flush=True)


Values = dict[tuple[str, int | None], dict[str, list]]


def values(found: list[dict[str, Any]], arm: str) -> Values:
    """An arm's answers by text and seed."""
    return {(one["text"], one["seed"]): one for one in found if one["arm"] == arm}


def at(one: dict[str, list], measure: str, length: int) -> np.ndarray:
    """float64[questions] of a run at a length."""
    return np.array([value for where, value in one[measure] if where == length])


def paired(one: Values, other: Values, measure: str, length: int) -> list[float] | None:
    """Mean difference and its interval over what both have; an untrained arm has no seeds."""
    texts: dict[str, list[np.ndarray]] = {}
    for (text, seed), mine in one.items():
        rival = other.get((text, seed)) or other.get((text, None))
        if rival is not None:
            gap = at(mine, measure, length) - at(rival, measure, length)
            texts.setdefault(text, []).append(gap)
    if not texts:
        return None
    rng = np.random.default_rng(0)
    means, draws = [], []
    for gaps in texts.values():
        gaps_SQ = np.stack(gaps)  # the seeds of a text are asked the same
        S, Q = gaps_SQ.shape
        means.append(gaps_SQ.mean())
        seeds_DS = rng.multinomial(S, np.full(S, 1 / S), DRAWS) / S
        asked_DQ = rng.multinomial(Q, np.full(Q, 1 / Q), DRAWS) / Q
        draws.append(((seeds_DS @ gaps_SQ) * asked_DQ).sum(1))
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return [round(float(value), 4) for value in (np.mean(means), low, high)]


def summary(found: list[dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """Answers of every run, and differences of every arm to every other one at every length."""
    names = list(dict.fromkeys(one["arm"] for one in found))
    arms: dict[str, Any] = {}
    for name in names:
        mine = values(found, name)
        arms[name] = {
            "runs": [
                {
                    "text": text,
                    "seed": seed,
                    **{
                        measure: {
                            str(length): at(one, measure, length).round(3).tolist()
                            for length in setting.lengths
                        }
                        for measure in ("losses", *MEASURES)
                    },
                    **{
                        key: one[key]
                        for key in ("train_seconds", "memory_gib", "last_loss", "epochs", "tokens")
                        if key in one
                    },
                }
                for (text, seed), one in sorted(mine.items(), key=str)
            ],
            "minus": {
                rival: {
                    measure: {
                        str(length): gap
                        for length in setting.lengths
                        if (gap := paired(mine, values(found, rival), measure, length))
                    }
                    for measure in ("losses", *MEASURES)
                }
                for rival in names
                if rival != name and not (name in UNTRAINED and rival not in UNTRAINED)
            },
        }
    return {"setting": asdict(setting), "arms": arms}


def table(told: dict[str, Any]) -> str:
    """Means at the target, and needle differences to every control."""
    target = str(told["setting"]["lengths"][-1])
    arms = told["arms"]
    rivals = [name for name in ("untrained", "short", "pose", "endprompt", "full") if name in arms]
    lines = ["| arm | runs | loss | needle | digits | quote |"
             + "".join(f" needle minus {name} |" for name in rivals)]  # fmt: skip
    lines.append("| --- " * (6 + len(rivals)) + "|")
    for name, arm in arms.items():
        means = [
            np.mean([np.mean(one[measure][target]) for one in arm["runs"]])
            for measure in ("losses", *MEASURES)
        ]
        gaps = [arm["minus"].get(rival, {}).get("needles", {}).get(target) for rival in rivals]
        shown = ["" if gap is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gap) for gap in gaps]
        numbers = " | ".join(f"{mean:.3f}" for mean in means)
        lines.append(f"| `{name}` | {len(arm['runs'])} | {numbers} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Prepare, run what is missing, print the table, write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", nargs="?", help="folder, hub name or GGUF; default: embedded")
    parser.add_argument("--to", default="16k", help="target window")
    parser.add_argument("--scaling", default="yarn")
    parser.add_argument("--tokens", default="1m", help="tokens of a training")
    parser.add_argument("--step", default="16k", help="tokens of a step")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--lengths", default="8k,12k,16k")
    parser.add_argument("--documents", type=int, default=4, help="held-out documents of a text")
    parser.add_argument("--needles", type=int, default=16)
    parser.add_argument("--texts", default=TEXTS, help="bible, python, or files and folders")
    parser.add_argument("--arms", default=ARMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds")
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--name", default="", help="entry of the record; default: from amounts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    setting = Setting(
        model=embedded.resolve(given.model),
        target=units.tokens(given.to),
        scaling=given.scaling,
        tokens=units.tokens(given.tokens),
        step=units.tokens(given.step),
        rate=given.rate,
        lengths=tuple(units.lengths(given.lengths)),
        documents=given.documents,
        needles=given.needles,
        texts=tuple(given.texts.split(",")),
    )
    told = {**asdict(setting), "texts": None}  # texts may be added
    claims.claim(given.work / "setting.json", told)
    names = {text: Path(text).name for text in setting.texts}
    for text, name in names.items():
        prepare_text(text, setting, given.work / "data" / name)
    wanted = list(jobs(given.arms.split(","), list(names.values()), given.seeds))
    run_all(wanted, setting, given.work, given.workers, given.budget)
    found = [json.loads(f.read_text()) for job in wanted if (f := job.file(given.work)).is_file()]
    told = summary(found, setting)
    told["setting"]["model"] = Path(setting.model).name
    print(table(told))
    everything = json.loads(given.out.read_text()) if given.out.is_file() else {}
    name = given.name or f"{given.scaling} {given.to}, {given.tokens} tokens"
    everything[name] = {**provenance.provenance(), **told}
    files.write_json(given.out, everything)


if __name__ == "__main__":
    main()
