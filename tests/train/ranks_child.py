"""Train a recipe in each rank that `torchrun` starts; told what to do by a JSON file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from endprompt import recipe
from endprompt.data.tokens import TokenDocuments
from endprompt.train import run

TARGET = 512


def main(orders: dict[str, Any]) -> None:
    """Train; record the rows that this rank saw; die or poison the loss where told to."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    rng = np.random.default_rng(0)
    documents = TokenDocuments.from_arrays([rng.integers(0, 256, n) for n in (3000, 1500)])
    chosen = recipe.load("recall-pose").replace(orders["settings"])
    chosen = chosen.resolve(window=128, target=TARGET, gpu=False)
    out = Path(orders["out"])
    seen: list[str] = []
    measure = run.weighted_loss

    def watched(model: Any, batch: Any) -> Any:
        seen.extend(str(row.tolist()) for row in batch["input_ids"])
        losses = measure(model, batch)
        here = rank == orders.get("rank", 1)
        if here and len(seen) == orders.get("die_at"):
            os._exit(9)
        if here and len(seen) == orders.get("poison_at"):
            return losses.__class__(losses.weighted * np.nan, losses.weight, losses.by_segment)
        return losses

    run.weighted_loss = watched

    def stop(state: dict[str, Any]) -> None:
        if state["done"] == orders.get("stop_at"):
            os._exit(7)

    run.train(
        chosen, model=orders["model"], documents=documents, target=TARGET, out=out, progress=stop
    )
    (out / f"rows-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
