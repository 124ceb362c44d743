"""Tiny exports of model families, to hold engines against: random weights that look far back.

    python benchmarks/tiny_exports.py --out runs/exports
    python benchmarks/tiny_exports.py --out runs/exports smollm2-yarn    # minutes

Each is a random model of a family at the sizes that an engine takes, with SmolLM2's tokenizer,
trained for one step by the default recipe and exported. Queries are enlarged, so that attention is
sharp and RoPE left unscaled changes the next token's log-probability by tenths of a nat.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from endprompt import recipe as recipes
from endprompt.export import checkpoint as exporting
from endprompt.export.reference import probe_tokens
from endprompt.models import checkpoint, embedded, families
from endprompt.models.tokenizer import load_tokenizer
from endprompt.train.run import train

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_families import TINY_WINDOW, tiny_known

EXPORTS = {
    "llama-3.1": "Llama 3.1, 3.3",
    "qwen-3-yarn": "Qwen 3 with YaRN",
    "gemma-3": "Gemma 3 1B",
    "gemma-3-linear": "Gemma 3, larger (text)",
}
"""Folder of an export and the known family that it is of."""
SMOLLM2 = "smollm2-yarn"
"""SmolLM2-135M by YaRN to twice its window, 9,216 tokens of it read: minutes."""
TARGET = 2 * TINY_WINDOW
SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 2,
}  # fmt: skip
SHARPNESS = 3.0
"""Queries are this many times as large as random ones."""


class Text:
    """One document: what the check of an export reads too."""

    def __init__(self, tokenizer: Any) -> None:
        self.text = np.array(probe_tokens(tokenizer, 4000))
        self.lengths = np.array([len(self.text)], dtype=np.int64)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.text


def random_model(name: str, tokenizer: Any) -> Any:
    """A random model of a known family, window `TINY_WINDOW`, whose attention is sharp."""
    import torch
    from transformers import AutoModelForCausalLM

    more = {"query_pre_attn_scalar": 64} if name.startswith("Gemma") else {}
    config = tiny_known(name, vocab_size=len(tokenizer), **SIZES, **more)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if path.endswith("q_norm.weight"):
                weight += SHARPNESS - 1.0  # Gemma's is held less 1
            elif path.endswith("q_proj.weight") and not hasattr(model.model.layers[0].self_attn,
                                                               "q_norm"):  # fmt: skip
                weight *= SHARPNESS
    return model


def make(name: str, out: Path, scratch: Path) -> Path:
    """Export the model `name` of `EXPORTS`, or SmolLM2, to `out/name`; what is there is kept."""
    folder, run = out / name, scratch / name / "run"
    if folder.is_dir():
        return folder
    tokenizer = load_tokenizer(str(embedded.model()))
    if name == SMOLLM2:
        base, window, target, read = embedded.model(), 8192, 16384, 9216
    else:
        base, window, target, read = scratch / name / "base", TINY_WINDOW, TARGET, TARGET - 16
        random_model(EXPORTS[name], tokenizer).save_pretrained(base)
        tokenizer.model_max_length = window
        tokenizer.save_pretrained(base)
    family = families.read(checkpoint.load_config(str(base)))
    recipe = recipes.load("recall-anchors").replace(
        {"rope.scaling": family.suited("yarn"), "rows.tokens": 256,
         "rows.kinds.0.terminal.recall": {"verbatim": 1}, "rows.kinds.0.terminal.anchors": 1,
         "training.tokens_per_step": 256, "training.tokens": 256,
         "training.gradient_checkpointing": False}
    ).resolve(window=window, target=target, gpu=False)  # fmt: skip
    train(recipe, model=str(base), documents=Text(tokenizer), target=target, out=run)
    done = exporting.export(run, folder, dtype="float32", tokens=read)
    for past in (False, True):
        where = "past" if past else "inside"
        print(f"{name}: {where} the old window RoPE left unscaled differs by "
              f"{done.reference.sensitivity(past=past):.2g} nats", flush=True)  # fmt: skip
    return folder


def main() -> int:
    """Make those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the exports")
    parser.add_argument("names", nargs="*", help=f"{SMOLLM2}, or of {', '.join(EXPORTS)} (default)")
    given = parser.parse_args()
    for name in given.names or EXPORTS:
        if name not in (*EXPORTS, SMOLLM2):
            parser.error(f"no export {name!r}: one of {SMOLLM2}, {', '.join(EXPORTS)}")
        scratch = given.out / "scratch" / name
        make(name, given.out, scratch)
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
