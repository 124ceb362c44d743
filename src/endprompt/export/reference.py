"""What a model predicts inside and past its old window: numbers to hold every engine against.

One text is read; at a few prompt lengths the likeliest next tokens are kept with their
log-probabilities. The same is kept for the model with RoPE unscaled: a difference that large is
what a lost scaling looks like, and one far below it means that the scaling is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from endprompt import rope
from endprompt.errors import DataError, RecipeError
from endprompt.io import records
from endprompt.record import Exact, Record

FILE = "endprompt.json"
LIKELIEST = 5
PAST = 1024
"""Tokens past the old window that are read when nothing else is asked for."""


class Settings(Exact):
    """Frozen, and strict about keys."""


class Place(Settings):
    """Next-token predictions after a prompt of `length` tokens, the likeliest first.

    logprobs  natural logarithms, of the model as trained
    unscaled  the same tokens' with the base's RoPE left unscaled
    """

    length: int
    ids: list[int]
    texts: list[str]
    logprobs: list[float]
    unscaled: list[float]


class Reference(Record):
    """What an exported checkpoint has to reproduce; written beside it as endprompt.json."""

    remedy: ClassVar[str] = "export again"

    endprompt: str
    window: int
    target: int
    dtype: str
    rope_parameters: dict[str, Any]
    max_position_embeddings: int
    chat_template_sha256: str | None
    tokens: list[int]
    places: list[Place]

    def sensitivity(self, *, past: bool) -> float:
        """Largest difference in log-probability that RoPE left unscaled makes, nats."""
        return max(
            abs(scaled - other)
            for place in self.places
            if (place.length > self.window) == past
            for scaled, other in zip(place.logprobs, place.unscaled, strict=True)
        )


def read(folder: Path) -> Reference:
    """The reference in an exported folder. Raises DataError."""
    file = folder / FILE
    if not file.is_file():
        raise DataError(f"no {FILE} in {folder}: give a folder that `endprompt export` wrote")
    return records.read(file, Reference)


def prompt_lengths(window: int, target: int, tokens: int | None) -> list[int]:
    """Three lengths inside the old window and three past it; the last is `tokens`.

    Raises RecipeError where `tokens` is not past the window, or past the target.
    """
    last = tokens or min(target, window + PAST)
    if not window < last <= target:
        raise RecipeError(
            f"--tokens {last} has to be above the old window of {window} and at most the target "
            f"of {target} tokens"
        )
    step = (last - window) / 3
    return sorted(
        {window // 4 or 1, window // 2 or 1, window}
        | {window + max(1, round(step * k)) for k in (1, 2)}
        | {last}
    )


def probe_tokens(tokenizer: Any, count: int) -> list[int]:
    """int[count]: the language reference that every Python carries, repeated where it ends."""
    from pydoc_data.topics import topics

    from endprompt.eval.engine import Coder

    start = Coder(tokenizer).start_ids
    text = "\n".join(topics[name] for name in sorted(topics))[: 16 * count]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [*start, *np.resize(np.asarray(ids), count - len(start)).tolist()]


def logits_at(model: Any, tokens: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
    """Log-probabilities float64[N, V] of the token after each of N prompt lengths.

    One call for all, but for scalings whose frequencies follow the length of the call.
    """
    import torch

    kind = rope.of_global_layers(model.config).get("rope_type", "default")
    groups = [[n] for n in lengths] if kind in ("dynamic", "longrope") else [list(lengths)]
    rows = []
    with torch.inference_mode():
        for group in groups:
            ids_BT = torch.tensor([list(tokens[: max(group)])], device=model.device)
            keep = torch.tensor([n - 1 for n in group], device=model.device)
            logits_BTV = model(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                use_cache=False,
                logits_to_keep=keep,
            ).logits
            rows.append(torch.log_softmax(logits_BTV[0].double(), dim=-1).cpu().numpy())
    return np.concatenate(rows)


def places(
    model: Any, unscaled: Any, tokenizer: Any, tokens: Sequence[int], lengths: Sequence[int]
) -> list[Place]:
    """The likeliest next tokens of `model` at each length, and what `unscaled` gives them."""
    trained_NV = logits_at(model, tokens, lengths)
    plain_NV = logits_at(unscaled, tokens, lengths)
    places = []
    for row, length in enumerate(lengths):
        ids = np.argsort(-trained_NV[row])[:LIKELIEST]
        places.append(
            Place(
                length=length,
                ids=ids.tolist(),
                texts=[tokenizer.decode([int(token)]) for token in ids],
                logprobs=trained_NV[row][ids].tolist(),
                unscaled=plain_NV[row][ids].tolist(),
            )
        )
    return places
