"""What recipes can't say, tried on `recall-anchors` in the laboratory.

    python benchmarks/anchors/beyond_recipes.py [--seeds 3] [--out runs/beyond]

- `staged`: plain short rows for half of the steps, then anchors;
- `distilled`: on the prefix the model learns what the base would say of the row at contiguous
  positions, in place of the text itself;
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
from torch.nn import functional as F

from endprompt import cues, embedded, record
from endprompt.data.rows import PREFIX, TERMINAL, RowSource
from endprompt.lab import arms, study
from endprompt.lab import model as bases
from endprompt.recipe import Kind
from endprompt.report import lab_summary
from endprompt.train import loss, run
from endprompt.train import model as models

REPLACED = 0.25


@contextlib.contextmanager
def staged(_: Path, rows: int) -> Generator[None]:
    """The first half of a run's rows are plain."""
    drawn = RowSource.kind

    def kind(self: RowSource, index: int) -> Kind:
        return Kind() if len(self) == rows and index < rows // 2 else drawn(self, index)

    with mock.patch.object(RowSource, "kind", kind):
        yield


@contextlib.contextmanager
def distilled(base: Path, _: int) -> Generator[None]:
    """Kullback-Leibler divergence from the base on the prefix, cross-entropy on answers."""
    teacher = models.load(str(base), models.load_config(str(base))).eval()

    def aligned_loss(model: Any, batch: dict[str, torch.Tensor]) -> loss.Losses:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            told_BTV = teacher(**inputs, use_cache=False).logits.log_softmax(-1)
        logits_BTV = model(**inputs, position_ids=batch["position_ids"], use_cache=False).logits
        said_BTV = logits_BTV.log_softmax(-1)
        plain_BT = F.nll_loss(said_BTV.transpose(1, 2), batch["labels"], reduction="none")
        far_BT = (told_BTV.exp() * (told_BTV - said_BTV)).sum(-1)
        weights_BT, prefix_BT = batch["label_weights"], batch["label_segments"] == PREFIX
        losses_BT = torch.where(prefix_BT, far_BT, plain_BT)
        trained_BT = weights_BT > 0
        parts = [
            trained_BT & (prefix_BT if segment == PREFIX else ~prefix_BT)
            for segment in (PREFIX, TERMINAL)
        ]
        by_segment = [
            torch.stack([plain_BT[part].sum().detach(), part.sum().float()]) for part in parts
        ]
        return loss.Losses(
            (weights_BT * losses_BT).sum(), weights_BT.sum(), torch.stack(by_segment)
        )

    with mock.patch.object(run, "aligned_loss", aligned_loss):
        yield


@contextlib.contextmanager
def reworded(_: Path, __: int) -> Generator[None]:
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


CHANGES: dict[str, Callable[[Path, int], contextlib.AbstractContextManager[None]]] = {
    "staged": staged,
    "distilled": distilled,
    "reworded": reworded,
}


def do(name: str, scaling: str, seed: int, out: Path) -> None:
    """One arm, unless its result is there."""
    from endprompt.train.quiet import quiet

    torch.set_num_threads(1)
    quiet()
    regime = study.Regime()
    base = bases.get(regime.base, seed, embedded.cache_folder() / "lab")
    path = out / "results" / "s8" / f"seed{seed}-{scaling}-{name}.json"
    if path.is_file():
        return
    if name in ("none", "untrained"):
        recipe = arms.untrained(scaling if name == "untrained" else name)
    else:
        loaded = arms.load("pose" if name == "pose" else "recall-anchors")
        recipe = arms.adapt(loaded, regime, scaling, factor=8, seed=seed)
    arm = study.Arm(recipe, scaling if name != "none" else "none", 8, seed)
    rows = recipe.amounts.rows if recipe.trained else 0
    with CHANGES[name](base, rows) if name in CHANGES else contextlib.nullcontext():
        found = study.measure(regime, arm, base)
    record.write_json(path, found | {"arm": name if recipe.trained else found["arm"]})
    print(f"{name}, {scaling}, base {seed}", flush=True)


def table(results: list[dict[str, Any]]) -> str:
    """Answers right at the target, differences to `recall-anchors` and PoSE, loss."""
    lines = ["| rows | right | less recall-anchors | less PoSE | loss |", "| --- " * 5 + "|"]
    for group in lab_summary.groups(results):
        own, pose = group.find("recall-anchors"), group.find("pose")
        for one in group.arms:
            if not one.trained:
                continue
            right = lab_summary.estimate(one.scores(group.target)).mean
            gaps = [
                "" if other is None or other.name == one.name
                else lab_summary.written(lab_summary.between(one, other, group.target))
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
        for scaling in given.scaling.split(",")
        for name in ("none", "untrained", "pose", "recall-anchors", *CHANGES)
    ]
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        pool.starmap(do, jobs, chunksize=1)
    files = sorted((given.out / "results" / "s8").glob("*.json"))
    print(table([json.loads(file.read_text()) for file in files]))


if __name__ == "__main__":
    main()
