"""Which files make a checkpoint: found, named, and what is wrong with them in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endprompt.errors import EndPromptError, ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHOWN = 300
"""Characters of a library's message that an error repeats."""


@dataclass(frozen=True)
class Tensor:
    """One tensor as the head of a safetensors file tells of it.

    dtype   safetensors' name: F32, BF16, F16, ...
    """

    shape: tuple[int, ...]
    dtype: str


def require_model(model: str, *, tokenizer_only: bool = False) -> None:
    """Say what is wrong with a path before Transformers asks a hub about it.

    tokenizer_only  a folder needs no config.json

    Raises ModelError; a hub name passes.
    """
    path = Path(model)
    if path.is_dir():
        settings = ("config.json", "adapter_config.json")
        if not tokenizer_only and not any((path / name).is_file() for name in settings):
            raise ModelError(f"no model in {model}: the folder has no config.json")
    elif path.exists():
        wanted = "the folder that holds the tokenizer" if tokenizer_only else "its folder"
        raise ModelError(f"{model} is a file: give {wanted}, or a hub name")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"no such {'folder' if tokenizer_only else 'model'}: {model}")


def local_folder(model: str) -> Path:
    """Folder of a checkpoint; a hub name's is its snapshot in the hub's own cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    with model_errors(model):
        return Path(snapshot_download(model, allow_patterns=["model*.safetensors", "*.json"]))


def weight_files(folder: Path, model: str) -> list[Path]:
    """The safetensors files of a checkpoint folder, in order.

    model  how the user calls it

    Raises ModelError for a folder without any, with pickles alone, with an adapter beside whole
    weights, or that lacks a file which its index names.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{model} holds an adapter (adapter_config.json) beside whole weights: move away the "
            "one that is not meant"
        )
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _indexed(folder, model)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{model} holds its weights as a pickle ({pickles[0]}), which can run code and is "
            f"not read: convert it to {SINGLE} first"
        )
    raise ModelError(f"no weights in {model}: the folder has neither {SINGLE} nor {INDEX}")


def _indexed(folder: Path, model: str) -> list[Path]:
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        paths = [folder / name for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"cannot read {INDEX} of {model}: {one_line(error)}") from error
    if not paths:
        raise ModelError(f"{INDEX} of {model} names no file")
    for path in paths:
        if path.name not in names or not path.is_file():
            raise ModelError(
                f"{model} has no file {one_line(path.name)}, which {INDEX} names: fetch it again"
            )
    return paths


def read_headers(files: Sequence[Path], model: str) -> dict[str, Tensor]:
    """Shape and dtype of every tensor by its name; no weights are read. Raises ModelError."""
    from safetensors import safe_open

    tensors: dict[str, Tensor] = {}
    for path in files:
        with model_errors(f"{path.name} of {model}"), safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                part = file.get_slice(name)
                tensors[name] = Tensor(tuple(part.get_shape()), part.get_dtype())
    return tensors


def is_number(value: Any) -> bool:
    """A finite number that a float can hold, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


@contextmanager
def model_errors(what: str) -> Generator[None]:
    """Turn whatever a library raises on a bad file into a ModelError of one line.

    The files are the user's and the libraries are many: their errors have no type in common, and
    a panic of the tokenizers library is not even an Exception.
    """
    try:
        yield
    except EndPromptError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"cannot load {what}: it needs code of its own (auto_map), which is not run"
            ) from error
        raise ModelError(f"cannot load {what}: {one_line(error)}") from error


def one_line(error: Any) -> str:
    """A library's message on one line, cut to a length that can be read."""
    text = " ".join(str(error).split())
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return text or type(error).__name__
