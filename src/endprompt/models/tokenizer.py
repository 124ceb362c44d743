"""Tokenizers by name: preparing data needs no model beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from endprompt.errors import ModelError


def load_tokenizer(model: str) -> Any:
    """Tokenizer of a hub model, a checkpoint folder, or a folder with a tokenizer alone.

    Raises ModelError when there is none, or it can't be read.
    """
    from transformers import AutoTokenizer

    path = Path(model).expanduser()
    if path.is_file():
        raise ModelError(f"{model} is a file: give the folder that holds the tokenizer")
    if not path.is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise ModelError(f"no such folder: {model}")
    try:
        return AutoTokenizer.from_pretrained(str(path) if path.is_dir() else model)
    except Exception as error:  # a broken tokenizer.json raises a plain Exception
        detail = " ".join(str(error).split())[:200]
        raise ModelError(f"cannot load the tokenizer of {model}: {detail}") from error
