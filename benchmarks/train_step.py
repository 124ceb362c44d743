"""A training step: ours against a plain Transformers Trainer on the same rows.

    taskset -c 1 python benchmarks/train_step.py [MODEL] [--tokens 1024,2048] [--dtype bfloat16]

Each measurement runs in a process of its own, kinds in turns. Compared are

- `plain`: Transformers' Trainer with its defaults, on the ids, positions and mask of our rows;
- `ours`: `endprompt.train.run`, collator, Trainer and loss included;
- `ours-checkpointed`, `plain-checkpointed`: both with activation checkpointing.

Seconds are of the processor, so that other work on the machine does not count; the first of
several steps is left out. The share of the peak counts the operations of the model (recomputed
ones not) over those of the best of several 2048 x 2048 matmuls in float32, timed in the same
process.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from endprompt.io import files, provenance
from endprompt.models import embedded

KINDS = ("plain", "ours", "ours-checkpointed", "plain-checkpointed")
RESULTS = Path(__file__).parent / "results" / "train_step.json"


def clock() -> float:
    """Seconds of the processor, user and system, of this process."""
    return time.process_time()


def peak_flops(size: int = 2048, times: int = 4) -> float:
    """Operations a second of the best of some square float32 matmuls."""
    import torch

    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(times):
        began = clock()
        left @ right
        best = min(best, clock() - began)
    return 2 * size**3 / best


class Enough(Exception):
    """The steps that were asked for are done; nothing is saved."""


def stopwatch(steps: int, marks: list[float]) -> Any:
    """A callback that notes the clock around every step and ends the run after the last."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not marks:
                marks.append(clock())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(clock())
            if len(marks) > steps:
                raise Enough

    return Watch()


def documents(tokenizer: Any, tokens: int = 0) -> Any:
    """The language reference that comes with Python, as one document; longer where need be."""
    import pydoc_data.topics

    from endprompt.data.tokens import TokenDocuments

    text = " ".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    ids = tokenizer(text[:120_000])["input_ids"]
    return TokenDocuments.from_arrays([ids * (1 + tokens // len(ids))])


def measure(
    kind: str, model: str, tokens: int, steps: int, method: str, target: int, dtype: str
) -> dict:
    """Seconds of a step, peak memory and share of the peak of one kind, in this process."""
    import torch

    from endprompt import recipe as recipes
    from endprompt import rope
    from endprompt.cost import flops
    from endprompt.io.silence import silence_libraries
    from endprompt.models import checkpoint as models

    silence_libraries()
    torch.set_num_threads(1)
    config = models.load_config(model)
    window = rope.read_base(config).window
    checkpointed = kind.endswith("-checkpointed")
    recipe = recipes.load(method).replace(
        {
            "rows.tokens": tokens,
            "training.tokens_per_step": tokens,
            "training.tokens": (steps + 1) * tokens,
            "training.gradient_checkpointing": checkpointed,
            "training.dtype": dtype,
            "training.save_steps": steps + 1,
        }
    )
    recipe = recipe.resolve(window=window, target=target, gpu=False)
    tokenizer = models.load_tokenizer(model)
    peak = peak_flops()
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = run_ours if kind.startswith("ours") else run_plain
        with contextlib.suppress(Enough):
            run(recipe, model, documents(tokenizer), tokenizer, target, Path(folder),
                stopwatch(steps, marks), checkpointed)  # fmt: skip
    memory = provenance.peak_memory_bytes()
    peak = max(peak, peak_flops())
    seconds = [later - before for before, later in itertools.pairwise(marks)]
    seconds = seconds[1:] or seconds
    work = flops.row(recipe, flops.read(config), False).total
    return {
        "kind": kind,
        "row_tokens": tokens,
        "seconds": [round(each, 3) for each in seconds],
        "peak_memory_bytes": memory,
        "matmul_flops_per_second": peak,
        "model_flops": work,
        "share_of_peak": work / min(seconds) / peak,
    }


def run_ours(
    recipe: Any, model: str, text: Any, _: Any, target: int, out: Path, watch: Any, __: bool
) -> None:
    """The product's own training."""
    from endprompt.train.run import train

    train(recipe, model=model, documents=text, target=target, out=out, callbacks=[watch])


def run_plain(
    recipe: Any, model: str, text: Any, tokenizer: Any, target: int, out: Path, watch: Any,
    checkpointed: bool,
) -> None:  # fmt: skip
    """Transformers' Trainer with its defaults, labels for the model's own loss."""
    from transformers import Trainer, TrainingArguments

    from endprompt.cues import CueWriter
    from endprompt.data.rows import RowSource, collate
    from endprompt.models import checkpoint as models

    rows = RowSource(
        text, recipe.rows, CueWriter(tokenizer), target=target, seed=0, count=recipe.amounts.rows
    )

    def plain(examples: list) -> dict[str, Any]:
        batch = collate(examples)
        kept = {key: batch[key] for key in ("input_ids", "position_ids", "attention_mask")}
        return kept | {"labels": batch["input_ids"]}

    Trainer(
        model=models.load(model, models.scaled_config(model, recipe, target)),
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=recipe.amounts.steps,
            per_device_train_batch_size=1,
            learning_rate=recipe.training.learning_rate,
            use_cpu=True,
            bf16=recipe.training.dtype == "bfloat16",
            activation_checkpointing=checkpointed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=plain,
        callbacks=[watch],
    ).train()


def child(script: str, words: list[str]) -> dict[str, Any]:
    """What a measurement in a process of its own prints last."""
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure in turns, print the ratios, write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", nargs="?", help="folder or hub name; default: the embedded model")
    parser.add_argument("--tokens", default="1024,2048")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--method", default="endprompt")
    parser.add_argument("--target", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, help="default: in results/, by the dtype")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.model, int(given.tokens), given.steps,
                                 given.method, given.target, given.dtype)))  # fmt: skip
        return
    model = embedded.resolve(given.model)
    sizes = [int(tokens) for tokens in given.tokens.split(",")]
    found: list[dict[str, Any]] = []
    for _ in range(given.rounds):
        for tokens in sizes:
            for kind in given.kinds.split(","):
                words = [model, "--one", kind, "--tokens", str(tokens), "--method", given.method]
                words += ["--steps", str(given.steps), "--target", str(given.target)]
                words += ["--dtype", given.dtype]
                found.append(child(__file__, words))
                print(json.dumps(found[-1]), flush=True)
    rows = [_gathered(found, tokens, kind) for tokens in sizes for kind in given.kinds.split(",")]
    for row in rows:
        plain = next(r for r in rows if r["row_tokens"] == row["row_tokens"])
        row["time_to_plain"] = row["seconds_per_token"] / plain["seconds_per_token"]
        row["memory_to_plain"] = row["peak_memory_bytes"] / plain["peak_memory_bytes"]
        print(
            f"{row['row_tokens']:5} {row['kind']:18} {1e3 * row['seconds_per_token']:6.2f} ms a "
            f"token ({row['time_to_plain']:.2f}), {row['peak_memory_bytes'] / 1e9:5.2f} GB "
            f"({row['memory_to_plain']:.2f}), {row['share_of_peak']:.0%} of the matmul peak"
        )
    files.write_json(
        given.out or results(RESULTS, given.dtype),
        {**provenance.provenance(), "method": given.method, "dtype": given.dtype, "rows": rows,
         "threads": 1, "measured": found},
    )  # fmt: skip


def results(path: Path, dtype: str) -> Path:
    """File of what was measured in a dtype."""
    return path if dtype == "float32" else path.with_stem(f"{path.stem}_{dtype}")


def _gathered(found: list[dict[str, Any]], tokens: int, kind: str) -> dict[str, Any]:
    same = [row for row in found if (row["row_tokens"], row["kind"]) == (tokens, kind)]
    seconds = statistics.median(each for row in same for each in row["seconds"])
    peak = max(row["matmul_flops_per_second"] for row in same)
    return {
        "row_tokens": tokens,
        "kind": kind,
        "seconds_per_token": seconds / tokens,
        "peak_memory_bytes": statistics.median(row["peak_memory_bytes"] for row in same),
        "share_of_peak": same[0]["model_flops"] / seconds / peak,
    }


if __name__ == "__main__":
    main()
