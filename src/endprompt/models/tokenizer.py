"""The one way in which a tokenizer is loaded: preparing data needs no model beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from endprompt.errors import ModelError
from endprompt.models import adapters
from endprompt.models.checkpoint_files import is_number, model_errors, one_line, require_model

BEYOND = {"gemma3_text": {"<image_soft_token>"}, "gemma3": {"<image_soft_token>"}}
"""Tokens that a family's tokenizer has, and its text models have no embedding for."""


def load_tokenizer(where: str | Path) -> Any:
    """Tokenizer of a hub name, a checkpoint folder, a folder with a tokenizer alone, or a GGUF.

    That of its base for an adapter without one.

    Raises ModelError when there is none, it can't be read, it gives no tokens, or it has tokens
    that the model beside it has no embedding for.
    """
    from transformers import AutoTokenizer

    path, options = Path(where), {}
    if adapters.is_adapter(path) and not any(path.glob("*token*")):
        return load_tokenizer(adapters.base_of(path))
    if path.is_dir() and not any(path.glob("*token*")):
        path = next(iter(sorted(path.glob("*.gguf"))), path)
    if path.suffix == ".gguf" and path.is_file():
        options, path = {"gguf_file": path.name}, path.parent
    else:
        require_model(str(where), tokenizer_only=True)
    with model_errors(f"the tokenizer of {where}"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(path) if path.is_dir() else str(where), trust_remote_code=False, **options
        )
        tokens = tokenizer.tokenize("The quick brown fox")
    if not tokens:
        raise ModelError(f"the tokenizer of {where} gives no tokens: it has no vocabulary")
    longest = tokenizer.model_max_length
    if not is_number(longest):
        raise ModelError(
            f"the tokenizer of {where} has model_max_length {one_line(longest)}: no number"
        )
    if not options:
        _require_embedded(tokenizer, str(where))
    return tokenizer


def _require_embedded(tokenizer: Any, model: str) -> None:
    """Every token has a row in the embedding, where there is a config that tells of one."""
    from transformers import PreTrainedConfig

    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        return
    with model_errors(model):
        try:
            config, _ = PreTrainedConfig.get_config_dict(model)
        except OSError:
            if Path(model).is_dir():
                raise
            return  # a hub name of a tokenizer alone
        inner = config.get("text_config")
        rows = (inner if isinstance(inner, dict) else config).get("vocab_size")
        vocabulary = tokenizer.get_vocab()
    if not isinstance(rows, int) or not vocabulary:
        return
    known = BEYOND.get(str(config.get("model_type")), set())
    beyond = [token for token, row in vocabulary.items() if row >= rows and token not in known]
    if beyond:
        first = min(beyond, key=vocabulary.__getitem__)
        raise ModelError(
            f"the tokenizer of {model} does not fit the model: {len(beyond):,} of its tokens, as "
            f"{first!r} (id {vocabulary[first]}), are beyond the {rows:,} rows of the embedding"
        )
