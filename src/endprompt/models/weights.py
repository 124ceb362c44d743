"""Weights that are the model's: all of them, of the right shape, finite, in a known precision.

Transformers fills what a checkpoint lacks with random numbers and continues. Here the heads of the
files are held against the model before a weight is read: the model stands on the meta device, so
that this takes no memory, and Transformers' own renaming of tensors applies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from endprompt.errors import ModelError
from endprompt.models.checkpoint_files import Tensor, one_line
from endprompt.models.precision import STORED

if TYPE_CHECKING:
    import torch

NAMED = 3
"""Tensors that an error names before it counts the rest."""

SLICE = 2**24
"""Values looked at in one go: 64 MiB in float32."""


def precision(headers: Mapping[str, Tensor], config: Any) -> str:
    """The precision that most of a checkpoint's numbers are stored in: a name of torch's.

    That of the config where they are stored in another form (quantised, float64).
    """
    counts: Counter[str] = Counter()
    for tensor in headers.values():
        size = 1
        for length in tensor.shape:
            size *= length
        counts[tensor.dtype] += size
    most = counts.most_common(1)[0][0] if counts else ""
    said = str(getattr(config, "dtype", "")).removeprefix("torch.")
    return STORED.get(most) or (said if said in STORED.values() else "float32")


def require_complete(headers: Mapping[str, Tensor], config: Any, model: str) -> frozenset[str]:
    """Hold the heads of a checkpoint's files against the model that its config describes.

    What a family does not store passes: Transformers knows tied heads and buffers that it
    computes. Returns the names of tied weights. Raises ModelError with the first tensors that
    are missing, unexpected or of another shape.
    """
    import torch
    from transformers import AutoModelForCausalLM

    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if layers > len(headers):  # or the model below is built for minutes
        raise ModelError(
            f"the weights of {model} do not fit its config: {layers:,} layers, and "
            f"{len(headers):,} tensors in the files"
        )
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        state = {name: torch.empty(tensor.shape) for name, tensor in headers.items()}
    loaded, report = type(skeleton).from_pretrained(
        None,
        config=skeleton.config,
        state_dict=state,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    require_same(report, model)
    return frozenset(loaded.all_tied_weights_keys)


def require_same(report: Mapping[str, Any], model: str) -> None:
    """Raise ModelError for what Transformers' loading report lists, the first tensors by name."""
    shapes = [
        f"{name} {list(given)} instead of {list(wanted)}"
        for name, given, wanted in report["mismatched_keys"]
    ]
    faults = [
        *_listed("missing", report["missing_keys"]),
        *_listed("unexpected", report["unexpected_keys"]),
        *_listed("of another shape", shapes),
        *report["error_msgs"],
    ]
    if faults:
        raise ModelError(
            f"the weights of {model} do not fit its config: {one_line('; '.join(faults))}"
        )


def _listed(fault: str, names: Iterable[str]) -> list[str]:
    listed = sorted(names)
    rest = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return [f"{fault}: {', '.join(listed[:NAMED])}{rest}"] if listed else []


def require_finite(model: Any, name: str) -> None:
    """Raise ModelError when a weight is NaN or infinite, with its tensor."""
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.element_size() < 2 or tensor.is_meta:
            continue
        bad = sum(_not_finite(part) for part in tensor.detach().reshape(-1).split(SLICE))
        if bad:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name} has weights that are not finite: {bad:,} of {tensor.numel():,} values of "
                f"{key} are NaN or infinite in {kind}"
            )


def _not_finite(part_N: torch.Tensor) -> int:
    """How many are NaN or infinite; a finite sum says that none is."""
    import torch

    if part_N.sum(dtype=torch.float32).isfinite():
        return 0
    return int((~part_N.isfinite()).sum())


def fit(model: Any, dtype: str) -> bool:
    """Whether no weight would become infinite in a precision: float16 ends at 65,504."""
    import torch

    most = torch.finfo(getattr(torch, dtype)).max
    return all(
        float(tensor.detach().abs().max()) <= most
        for tensor in model.state_dict().values()
        if tensor.is_floating_point() and tensor.numel()
    )


def require_tied(model: Any, tied: frozenset[str], name: str) -> None:
    """Raise ModelError where config and weights disagree on whether the head is the embedding."""
    apart = sorted(tied - set(model.all_tied_weights_keys))
    if apart:
        raise ModelError(
            f"{name} ties {apart[0]} to the embedding in its config, and its files hold other "
            "weights for it: set tie_word_embeddings to false in config.json"
        )


@contextmanager
def unheard() -> Generator[None]:
    """Keep Transformers' report and progress bar from the screen: an error says it in one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
