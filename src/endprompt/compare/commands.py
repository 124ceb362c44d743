"""Words of the commands that train and evaluate an arm on a real model, for every comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from endprompt.io import files
from endprompt.recipe import Recipe


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write the file that commands read a recipe from."""
    values = recipe.model_dump(mode="json")
    files.write_text(path, yaml.safe_dump(values, sort_keys=False))


def train(recipe: Path, *, model: str, data: Path, target: int, out: Path) -> list[str]:
    """Training; it leaves `out/train.json` and `out/model`."""
    return ["train", str(recipe), "--model", model, "--data", str(data),
            "--to", str(target), "--out", str(out)]  # fmt: skip


def window(
    model: Path,
    *,
    data: Path,
    lengths: Iterable[int],
    documents: int,
    needles: int,
    dtype: str,
    result: Path,
    keys: Sequence[str] = (),
) -> list[str]:
    """The window check on held-out text; keys: options that say which tokens are key."""
    return ["eval", "window", str(model), "--data", str(data), "--lengths", listed(lengths),
            "--documents", str(documents), "--needles", str(needles), "--dtype", dtype,
            "--json", str(result), *keys]  # fmt: skip


def suite(kind: str, model: Path, out: Path, lengths: Iterable[int], samples: int) -> list[str]:
    """A suite of `eval run`; it leaves `suite_result`."""
    asked = ["--lengths", listed(lengths)]
    if kind == "short":
        asked = ["--short", "mmlu,gsm8k,hellaswag,humaneval", "--run-code"]
    return ["eval", "run", str(model), "--tasks", kind, "--out", str(out), *asked,
            "--samples", str(samples)]  # fmt: skip


def suite_result(kind: str, out: Path) -> Path:
    """The last file that a suite writes."""
    return out / ("short/humaneval.summary.jsonl" if kind == "short" else f"{kind}/summary.json")


def listed(lengths: Iterable[int]) -> str:
    """Lengths as an option takes them."""
    return ",".join(map(str, lengths))
