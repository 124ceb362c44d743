"""SmolLM2 extended twice, 8K to 16K to 32K, beside one step to 32K and untrained YaRN by 4.

    python benchmarks/extended_twice.py --work /scratch/twice --lengths 4k,8k,12k,18k

Each training is the demonstration's: `recall-anchors`, 24 steps of 1,024 tokens, so that the model
extended twice has been trained for twice as many tokens as the one extended once. All models
answer the same questions on the same held-out text (`endprompt eval window`). A finished training
or evaluation is a file in `--work` and is not done again; the table is written after each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from endprompt import recipe as recipes
from endprompt import units
from endprompt.io import files, provenance
from endprompt.models import checkpoint, embedded

RESULTS = Path(__file__).parent / "results" / "extended_twice.json"
FIRST, LAST = 16384, 32768


def main() -> None:
    """Train, evaluate, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="default: the embedded SmolLM2")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--lengths", default="4k,8k,12k,18k")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args()
    base = embedded.resolve(given.model)
    lengths = units.lengths(given.lengths)
    data = _data(base, given.work, max(lengths), given.row_tokens)
    amounts = {
        "training.tokens": given.steps * given.row_tokens,
        "training.tokens_per_step": given.row_tokens,
        "rows.tokens": given.row_tokens,
    }
    models = {
        "untrained, YaRN by 4": lambda: _untrained(base, given.work / "untrained", amounts),
        "8K to 16K": lambda: _trained(base, FIRST, data, given.work / "once-16k", amounts),
        "8K to 16K to 32K": lambda: _trained(
            str(given.work / "once-16k" / "model"), LAST, data, given.work / "twice", amounts
        ),
        "8K to 32K": lambda: _trained(base, LAST, data, given.work / "once-32k", amounts),
    }
    found: dict[str, Any] = {
        **provenance.provenance(),
        "model": Path(base).name,
        "steps": given.steps,
        "row_tokens": given.row_tokens,
        "lengths": lengths,
        "models": {},
    }
    for name, make in models.items():
        began = time.perf_counter()
        folder = make()
        config = checkpoint.load_config(str(folder))
        found["models"][name] = {
            "rope_parameters": config.rope_parameters,
            "window": config.max_position_embeddings,
            "training_seconds": round(time.perf_counter() - began, 1),
        }
        files.write_json(given.json, found)
    for name in ("8K to 16K to 32K", "8K to 32K", "untrained, YaRN by 4"):
        folder = models[name]()
        report = given.work / f"{folder.parent.name}-{max(lengths)}.json"
        if not report.is_file():
            _run("eval", "window", folder, "--data", data, "--lengths", given.lengths,
                 "--dtype", "float32", "--needles", "8", "--json", report)  # fmt: skip
        evaluation = json.loads(report.read_text())
        evaluation["model"] = str(folder.relative_to(given.work))
        found["models"][name]["evaluation"] = evaluation
        files.write_json(given.json, found)


def _data(base: str, work: Path, tokens: int, row_tokens: int) -> Path:
    """The embedded text, tokenised, with one text of `tokens` set aside."""
    from endprompt.data import holdout
    from endprompt.data.mixture import Weighted
    from endprompt.data.prepare import prepare
    from endprompt.data.prepared import open_documents
    from endprompt.data.sources import open_source

    folder, tokenizer = work / "data", checkpoint.load_tokenizer(base)
    prepare([Weighted(open_source(str(embedded.text())))], tokenizer, folder)
    if not (folder / holdout.FILE).is_file():
        documents = open_documents(folder, tokenizer=tokenizer)
        split = holdout.split(documents, tokens=tokens, count=1, row_tokens=row_tokens)
        holdout.save(folder, split)
    return folder


def _untrained(base: str, out: Path, amounts: dict[str, Any]) -> Path:
    folder = out / "model"
    if not folder.is_dir():
        recipe = recipes.load("recall-anchors").replace(amounts).untrained()
        config = checkpoint.scaled_config(base, recipe, LAST)
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.link(base, config, checkpoint.load_tokenizer(base), folder, LAST)
    return folder


def _trained(base: str, target: int, data: Path, out: Path, amounts: dict[str, Any]) -> Path:
    if not (out / "train.json").is_file():
        settings = [word for key, value in amounts.items() for word in ("--set", f"{key}={value}")]
        _run("train", "recall-anchors", "--model", base, "--data", data, "--to", target,
             "--out", out, *settings)  # fmt: skip
    return out / "model"


def _run(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "endprompt", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
