"""Train every recipe for some steps by its name alone: does the loss fall, what does it cost?

    python benchmarks/run_recipes.py [--model FOLDER] [--out runs/recipes] [NAME ...]

Recipes with short rows train SmolLM2-135M on rows of 256 tokens (512 where a terminal asks for
much), those with rows of the target a random model of two layers. Two stretches of text are shown
in turn, so that the same text comes back and a falling loss means that the recipe trains; nothing
is said about quality. Each run leaves its train.json, which another call takes as it is where the
recipe is the same; `benchmarks/results/recipes.json` gathers them. Falls: the mean of the last
two losses is below that of the first two.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from endprompt import recipe as recipes
from endprompt.io import files, provenance
from endprompt.io.silence import silence_libraries
from endprompt.models import embedded

STEPS = 6
RESULTS = Path(__file__).parent / "results" / "recipes.json"


class TwoStretches:
    """The first two rows' worth of the language reference, as one document."""

    def __init__(self, tokenizer: Any, tokens: int) -> None:
        words = " ".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
        ids = tokenizer(words[: 16 * tokens], add_special_tokens=False)["input_ids"]
        self.text = np.array(ids[: 2 * tokens], dtype=np.int64)
        self.lengths = np.array([len(self.text)], dtype=np.int64)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.text


def random_model(folder: Path, tokenizer: Any) -> str:
    """A random Llama of two layers, window 512, with the real model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(name: str, real: str, tiny: str, tokenizer: Any, out: Path) -> dict[str, Any]:
    """One recipe, `STEPS` steps of one row; returns what its train.json says in short."""
    from endprompt.train.run import train

    recipe = recipes.load(name)
    at_target = recipe.rows.tokens == "target"
    model, window, target = (tiny, 512, 2048) if at_target else (real, 8192, 32768)
    tokens = target if at_target else 512 if "recall" in name else 256
    resolved = recipe.replace(
        {
            "rows.tokens": tokens,
            "training.tokens": STEPS * tokens,
            "training.tokens_per_step": tokens,
            "training.learning_rate": 3e-3 if at_target else 5e-5,
            "training.warmup_steps": 1,
            "training.save_steps": STEPS,
        }
    ).resolve(window=window, target=target, gpu=False)
    folder = out / name
    file = folder / "train.json"
    done = json.loads(file.read_text()) if file.is_file() else {}
    if done.get("recipe_hash") != resolved.hash():
        shutil.rmtree(folder, ignore_errors=True)
        text = TwoStretches(tokenizer, tokens)
        train(resolved, model=model, documents=text, target=target, out=folder)
        shutil.rmtree(folder / "model")
        done = json.loads(file.read_text())
    losses = [entry["loss"] for entry in done["curve"]]
    return {
        "model": "random, 2 layers" if at_target else "SmolLM2-135M-Instruct",
        "window": window,
        "target": target,
        "row_tokens": tokens,
        "steps": done["steps"],
        "tokens": done["tokens"],
        "flops": done["flops"],
        "seconds": round(done["seconds"], 1),
        "losses": [round(loss, 3) for loss in losses],
        "falls": float(np.mean(losses[-2:])) < float(np.mean(losses[:2])),
        "checks_passed": sum(check["passed"] for check in done["position_check"]),
        "checks": len(done["position_check"]),
        "recipe_hash": done["recipe_hash"],
    }


def main() -> None:
    from transformers import AutoTokenizer

    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "names", nargs="*", metavar="NAME", help="recipes; default: all that train"
    )
    options.add_argument("--model", help="default: the embedded model")
    options.add_argument("--out", type=Path, default=Path("runs/recipes"))
    given = options.parse_args()
    silence_libraries()
    real = embedded.resolve(given.model)
    tokenizer = AutoTokenizer.from_pretrained(real)
    tiny = random_model(given.out / "random-model", tokenizer)
    found: dict[str, Any] = {}
    for name in given.names or [n for n in recipes.names() if recipes.load(n).trained]:
        found[name] = run(name, real, tiny, tokenizer, given.out)
        each = found[name]
        print(f"{name:18} {'falls' if each['falls'] else 'RISES'}  {each['seconds']:6.1f} s  "
              f"{each['losses']}", flush=True)  # fmt: skip
    if not given.names:
        files.write_json(RESULTS, {"provenance": provenance.provenance(), "recipes": found})


if __name__ == "__main__":
    main()
