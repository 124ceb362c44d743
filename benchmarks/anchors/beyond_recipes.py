"""What recipes can't say, tried on `recall-anchors` in the laboratory.

    python benchmarks/anchors/beyond_recipes.py [--seeds 3] [--out runs/beyond]

- `staged`: plain short rows for half of the steps, then anchors;
- `reworded`: a quarter of the tokens by which a quote is asked for are others.

Each changes one function while an arm runs; all else is the laboratory's. Bases 0, 1, ... are
those that recipes are chosen on; results lie where `endprompt lab` would put them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from endprompt import cues
from endprompt.data.rows import RowSource
from endprompt.io import files
from endprompt.lab import arms, study, summary
from endprompt.lab import model as bases
from endprompt.models import embedded
from endprompt.recipe import Kind

REPLACED = 0.25
OTHERS = ("untrained", "pose", "recall-anchors", "distilled-anchors")


@contextlib.contextmanager
def staged(rows: int) -> Generator[None]:
    """The first half of a run's rows are plain."""
    drawn = RowSource.kind

    def kind(self: RowSource, index: int) -> Kind:
        return Kind() if len(self) == rows and index < rows // 2 else drawn(self, index)

    with mock.patch.object(RowSource, "kind", kind):
        yield


@contextlib.contextmanager
def reworded(_: int) -> Generator[None]:
    """Some tokens of a quote's beginning give way to others of the same row's questions."""
    join = cues._segment

    def segment(parts: list, weight: float, recall: Any) -> Any:
        words = np.concatenate([tokens for tokens, _ in parts])
        rng = np.random.default_rng(words.tolist())
        told = list(parts)
        for n in range(1, len(parts) - 1):
            tokens, answer = parts[n]
            if not answer and not parts[n - 1][1] and parts[n + 1][1]:
                other = rng.random(len(tokens)) < REPLACED
                told[n] = np.where(other, rng.choice(words, len(tokens)), tokens), False
        return join(told, weight, recall)

    with mock.patch.object(cues, "_segment", segment):
        yield


CHANGES: dict[str, Callable[[int], contextlib.AbstractContextManager[None]]] = {
    "staged": staged,
    "reworded": reworded,
}


def do(name: str, scaling: str, seed: int, out: Path) -> None:
    """One arm, unless its result is there."""
    from endprompt.io.silence import silence_libraries

    torch.set_num_threads(1)
    silence_libraries()
    regime = study.Regime()
    base = bases.get(regime.base, seed, embedded.cache_folder() / "lab")
    path = out / "results" / "s8" / f"seed{seed}-{scaling}-{name}.json"
    if path.is_file():
        return
    if name in ("none", "untrained"):
        recipe = arms.untrained(scaling if name == "untrained" else name)
    else:
        loaded = arms.load("recall-anchors" if name in CHANGES else name)
        recipe = arms.adapt(loaded, regime, scaling, factor=8, seed=seed)
    arm = study.Arm(recipe, scaling, 8, seed)
    rows = recipe.amounts.rows if recipe.trained else 0
    with CHANGES[name](rows) if name in CHANGES else contextlib.nullcontext():
        found = study.measure(regime, arm, base)
    files.write_json(path, found | {"arm": name if recipe.trained else found["arm"]})
    print(f"{name}, {scaling}, base {seed}", flush=True)


def table(results: list[dict[str, Any]]) -> str:
    """Answers right at the target, differences to `recall-anchors` and PoSE, loss."""
    lines = ["| rows | right | less recall-anchors | less PoSE | loss |", "| --- " * 5 + "|"]
    for group in summary.groups(results):
        own, pose = group.find("recall-anchors"), group.find("pose")
        for one in group.arms:
            if not one.trained:
                continue
            right = one.scores(group.target).estimate.mean
            gaps = [
                "" if other is None or other.name == one.name
                else str(summary.between(one, other, group.target))
                for other in (own, pose)
            ]  # fmt: skip
            loss_ = one.loss(group.target).mean()
            lines.append(
                f"| `{one.name}`, {group.scaling} | {right:.3f} | {gaps[0]} | {gaps[1]} | "
                f"{loss_:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Every arm that is missing, two at once, then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scaling", default="pi,yarn")
    parser.add_argument("--out", type=Path, default=Path("runs/beyond"))
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    jobs = [
        (name, scaling, seed, given.out)
        for seed in range(given.seeds)
        for scaling in ("none", *given.scaling.split(","))
        for name in (("none",) if scaling == "none" else (*OTHERS, *CHANGES))
    ]
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        pool.starmap(do, jobs, chunksize=1)
    files = sorted((given.out / "results" / "s8").glob("*.json"))
    print(table([json.loads(file.read_text()) for file in files]))


if __name__ == "__main__":
    main()
