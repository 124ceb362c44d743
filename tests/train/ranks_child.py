"""Train a recipe in each rank that `torchrun` starts; told what to do by a JSON file."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from launched import as_launched
from torch.distributed.tensor import DTensor

from endprompt import recipe
from endprompt.data.tokens import TokenDocuments
from endprompt.train import run

TARGET = 512


def main(orders: dict[str, Any]) -> None:
    """Train; record the rows that this rank saw; be late, die or poison the loss where told to."""
    torch.set_num_threads(1)
    if "config" in orders:
        as_launched(orders["config"], *orders.get("flags", ()))
    rank = int(os.environ["RANK"])
    rng = np.random.default_rng(0)
    documents = TokenDocuments.from_arrays([rng.integers(0, 256, n) for n in (3000, 1500)])
    yaml = Path(__file__).parents[1] / "recipes" / "recall-pose.yaml"
    chosen = recipe.load(yaml).replace(orders["settings"])
    chosen = chosen.resolve(window=128, target=TARGET, gpu=False)
    out = Path(orders["out"])
    seen: list[list[int]] = []
    told = 0
    measure, keep_random_state = run.aligned_loss, run.RowTrainer._save_rng_state

    def watched(model: Any, batch: Any, *more: Any, **named: Any) -> Any:
        spread = any(isinstance(p, DTensor) or hasattr(p, "ds_tensor") for p in model.parameters())
        assert spread == ("config" in orders), "weights are sharded where a config asks for it"
        seen.extend(batch["input_ids"].tolist())
        losses = measure(model, batch, *more, **named)
        here = rank == orders.get("rank", 1)
        if here and len(seen) == orders.get("die_at"):
            os._exit(9)
        if here and len(seen) == orders.get("poison_at"):
            return losses.__class__(losses.weighted * np.nan, losses.weight, losses.by_segment)
        return losses

    def late(self: Any, folder: str) -> None:
        time.sleep(rank * orders.get("late", 0))
        keep_random_state(self, folder)

    run.aligned_loss, run.RowTrainer._save_rng_state = watched, late

    def step(state: dict[str, Any]) -> None:
        nonlocal told
        with (out / f"rows-{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": state["done"], "rows": seen[told:]}) + "\n")
        told = len(seen)
        if state["done"] == orders.get("stop_at"):
            os._exit(7)

    run.train(
        chosen, model=orders["model"], documents=documents, target=TARGET, out=out, progress=step
    )
    PartialState().destroy_process_group()  # as the command does


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
