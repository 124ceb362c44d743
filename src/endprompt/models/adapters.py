"""Adapters as PEFT saves them: a folder with what was added to a base, merged when it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from endprompt.errors import ModelError
from endprompt.models.checkpoint_files import (
    INDEX,
    SINGLE,
    model_errors,
    one_line,
    read_headers,
)

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
"""What PEFT saves beside an adapter where a tokenizer has grown."""


def is_adapter(model: str | Path) -> bool:
    """Whether a folder holds an adapter, and no whole weights."""
    folder = Path(model)
    whole = (folder / SINGLE).is_file() or (folder / INDEX).is_file()
    return (folder / SETTINGS).is_file() and not whole


def base_of(model: str | Path) -> str:
    """Checkpoint folder or hub name of the model that an adapter was trained on.

    A relative path is taken from the working directory, then from the adapter's own folder.
    Raises ModelError where the adapter names none, or a folder that is not there.
    """
    folder = Path(model)
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        named = settings["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"cannot read {SETTINGS} of {model}: {one_line(error)}") from error
    if not isinstance(named, str) or not named:
        raise ModelError(
            f"{model} is an adapter of no named base: write it into base_model_name_or_path of "
            f"{SETTINGS}"
        )
    for place in (Path(named), folder / named):
        if place.is_dir():
            if is_adapter(place):
                raise ModelError(f"{model} is an adapter of another adapter, {place}: merge that")
            return str(place)
    if named.startswith((".", "/", "~")) or named.count("/") != 1:
        raise ModelError(
            f"{model} is an adapter of {one_line(named)}, which is not there: write where it is "
            f"into base_model_name_or_path of {SETTINGS}"
        )
    return named


def config_folder(model: str) -> str:
    """Where a model's config.json is: an adapter's own folder if it has one, else its base."""
    if is_adapter(model) and not (Path(model) / "config.json").is_file():
        return base_of(model)
    return model


def require_weights(model: str) -> None:
    """Raise ModelError for an adapter without safetensors, which includes pickles."""
    if not (Path(model) / WEIGHTS).is_file():
        raise ModelError(f"{model} is an adapter without {WEIGHTS}: save it as safetensors")


def merged(network: Any, model: str) -> Any:
    """A base with an adapter folded into its weights.

    network  the adapter's base; it is changed in place

    Raises ModelError for adapters of kinds that don't merge, and for tensors that the adapter's
    settings ask for and the file lacks, or has beside them.
    """
    from peft import PeftModel, get_peft_model_state_dict

    require_weights(model)
    saved = set(read_headers([Path(model) / WEIGHTS], model))
    with model_errors(model):
        wrapped: Any = PeftModel.from_pretrained(network, model, is_trainable=False)
        asked = set(get_peft_model_state_dict(wrapped))
        kind = wrapped.active_peft_config.peft_type
    missing = sorted(asked - saved)
    beside = sorted(name for name in saved - asked if not any(part in name for part in EMBEDDINGS))
    if missing or beside:
        fault = f"missing: {missing[0]}" if missing else f"unexpected: {beside[0]}"
        raise ModelError(f"the weights of {model} do not fit its {SETTINGS}: {one_line(fault)}")
    if not hasattr(wrapped, "merge_and_unload"):
        raise ModelError(f"{model} is an adapter of kind {kind}, which can't be merged")
    with model_errors(model):
        return wrapped.merge_and_unload()
