"""A tiny random model with a byte-level tokenizer, saved as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WINDOW = 128
RECALL_POSE = Path(__file__).parent / "recipes" / "recall-pose.yaml"
"""A recipe of two kinds of rows."""
WORDS = (
    "the river ran past old stone mills where people met to trade grain and cloth before winter "
    "closed the road and long nights came down from the hills to the town"
).split()


def save_tiny(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A random model of 2 layers with a window of 128 and a byte-level tokenizer, saved."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    tokenizer = save_tokenizer(folder)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": WINDOW,
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**(settings | changes))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path) -> Any:
    """A byte-level tokenizer of 257 tokens with a chat template, saved."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_run(folder: Path, base: Path, scaling: str, target: int) -> Path:
    """What `endprompt train` leaves, as far as others read it, of a model that learnt nothing."""
    import json

    from endprompt import recipe as recipes
    from endprompt.models import checkpoint as models

    recipe = recipes.load(RECALL_POSE).replace({"rope.scaling": scaling})
    recipe = recipe.resolve(window=WINDOW, target=target, gpu=False)
    network = models.load(str(base), models.scaled_config(str(base), recipe, target))
    models.save(network, models.load_tokenizer(str(base)), folder / "model", target)
    trained = {"recipe": recipe.model_dump(mode="json"), "target": target, "tokens": 0, "flops": 0,
               "seconds": 0, "peak_memory_bytes": 0, "curve": [], "resumed_at": []}  # fmt: skip
    (folder / "train.json").write_text(json.dumps(trained))
    claim = {"endprompt": "train", "settings": {"model": str(base)}}
    (folder / "claim.json").write_text(json.dumps(claim))
    return folder
