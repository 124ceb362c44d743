"""What RULER's YAML files beside this one refer to; lm-eval loads this file by its path."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import datasets

from endprompt.errors import EvaluationError
from endprompt.eval import ruler
from endprompt.models.tokenizer import load_tokenizer

LENGTHS = frozenset({2**power for power in range(10, 18)})
"""Those that have a metric of their own."""


def dataset(task: str, **metadata: Any) -> dict[str, datasets.Dataset]:
    """The prompts of a task at all lengths, as lm-eval's `custom_dataset`."""
    name = metadata.get("tokenizer") or metadata.get("pretrained") or metadata.get("model")
    if not name:
        raise EvaluationError("RULER sizes its prompts in tokens: give --metadata tokenizer")
    data = ruler.Data(
        essays=metadata.get("essays"),
        squad=metadata.get("squad"),
        hotpotqa=metadata.get("hotpotqa"),
    )
    tokenizer = load_tokenizer(name)
    rows = [
        {"max_length": length, "task": task, **sample.row()}
        for length in metadata.get("max_seq_lengths", [4096])
        for sample in ruler.samples(
            task,
            int(length),
            int(metadata.get("num_samples", 500)),
            seed=int(metadata.get("seed", 42)),
            tokenizer=tokenizer,
            data=data,
            template=str(metadata.get("template", "base")),
        )
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Score of one answer, under `score` and under its length's name."""
    scored = ruler.score(doc["task"], [{"pred": results[0], "outputs": doc["outputs"]}])
    value = scored.per_sample[0]
    length = int(doc["max_length"])
    return {"score": value} | ({str(length): value} if length in LENGTHS else {})


for task_name in ruler.TASKS:
    globals()[task_name] = partial(dataset, task_name)
