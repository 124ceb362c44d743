"""Hold an exported checkpoint, or the server that runs it, against the model as trained."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from endprompt.errors import EvaluationError
from endprompt.eval.server import Address
from endprompt.export.checkpoint import sha256
from endprompt.export.reference import Place, Reference, logits_at, read
from endprompt.io.secrets import redact
from endprompt.models import checkpoint as models
from endprompt.models import families

TOLERANCE = {"float32": 0.01, "bfloat16": 1.0, "float16": 0.05}
"""Nats by which a log-probability may differ, by the dtype of the weights: about twice the largest
difference that `benchmarks/export_tolerance.py` met at 192 places."""
SERVER_TOLERANCE = {"float32": 0.05, "bfloat16": 1.0, "float16": 0.1}
"""The same for a server, by the dtype that it computes in; kernels and cache are its own. In
float32 vLLM differs by 4e-5 nats, llama.cpp with a float16 cache by 0.013."""
SERVER_SHARE = 0.25
"""A server may differ by this share of what RoPE left unscaled would differ by, root mean square
over all tokens asked: a lost scaling differs by all of it, vLLM in float32 by 4e-5 nats."""
TELLING = 0.02
"""Nats: where RoPE left unscaled would differ by less, a lost scaling can't be seen."""


@dataclass(frozen=True)
class Check:
    """One line of the check."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Predicted:
    """The likeliest next token after `length` tokens: its log-probability, three times.

    here  of the checkpoint or server that is checked; None: not among those it gave
    """

    length: int
    text: str
    trained: float
    here: float | None
    unscaled: float


@dataclass(frozen=True)
class Verified:
    """What was checked, and the predictions side by side."""

    checks: list[Check]
    predictions: list[Predicted]


def verify(folder: Path) -> Verified:
    """Load the folder with Transformers as anybody would, and compare.

    Config, tokenizer and chat template are held against the run's; log-probabilities of next
    tokens against those of the training-time model, inside and past its old window. Weights are
    computed with in float32, so that a difference is the checkpoint's own.

    Raises DataError for a folder without a reference, ModelError for one that doesn't load.
    """
    expected = read(folder)
    config = models.load_config(str(folder))
    tokenizer = models.load_tokenizer(str(folder))
    checks = [*_configuration(folder, expected), *_tokenizer(tokenizer, expected)]
    if config.vocab_size <= max(token for place in expected.places for token in place.ids):
        checks.append(Check("vocabulary", False, f"{config.vocab_size} tokens: too few"))
        return Verified(checks, [])
    model = models.load(str(folder), config)
    lengths = [place.length for place in expected.places]
    logits = logits_at(model, expected.tokens, lengths)
    given = [
        {token: float(row[token]) for token in place.ids}
        for place, row in zip(expected.places, logits, strict=True)
    ]
    checks += compared(expected, given, TOLERANCE[expected.dtype])
    return Verified(checks, side_by_side(expected, given))


def verify_server(
    folder: Path, url: str, name: str, dtype: str = "bfloat16", timeout: float = 600.0
) -> Verified:
    """The same through an OpenAI-compatible server: prompts of token ids, one token asked each.

    dtype  that the server computes in: float32, float16 or bfloat16, which allows the most

    Raises EvaluationError where the server can't be reached or gives no log-probabilities.
    """
    expected = read(folder)
    address, given = Address(url), []
    for place in expected.places:
        asked = {
            "model": name,
            "prompt": expected.tokens[: place.length],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": len(place.ids),
            "return_tokens_as_token_ids": True,  # vLLM: names are unambiguous then
        }
        given.append(_by_id(_post(address, asked, timeout), place))
    checks = [*compared(expected, given, SERVER_TOLERANCE[dtype]), scaling_kept(expected, given)]
    return Verified(checks, side_by_side(expected, given))


def compared(
    expected: Reference, given: list[dict[int, float]], tolerance: float
) -> Iterable[Check]:
    """Largest difference inside and past the old window, beside what a lost scaling would make.

    given  for each place, log-probabilities by token id; the likeliest has to be among them
    """
    for name, past in (("inside the old window", False), ("past the old window", True)):
        worst, at, missing = 0.0, 0, 0
        for place, got in zip(expected.places, given, strict=True):
            if (place.length > expected.window) != past:
                continue
            if place.ids[0] not in got:
                missing = missing or place.length
            for token, logprob in zip(place.ids, place.logprobs, strict=True):
                if token in got and not abs(got[token] - logprob) <= worst:
                    worst, at = abs(got[token] - logprob), place.length
        detail = (
            f"differs by up to {worst:.2g} nats, allowed {tolerance:g}; "
            f"RoPE left unscaled would differ by {expected.sensitivity(past=past):.2g}"
        )
        if at and not worst <= tolerance:
            detail += f"; worst at {at:,} tokens"
        if missing:
            detail = f"the likeliest token at {missing:,} tokens is not among those given"
        yield Check(f"log-probabilities {name}", not missing and worst <= tolerance, detail)


def scaling_kept(expected: Reference, given: list[dict[int, float]]) -> Check:
    """Whether what a server gave past the old window is the trained model's, not an unscaled one's.

    given  for each place, log-probabilities by token id
    """
    pairs = [
        (got[token] - trained, unscaled - trained)
        for place, got in zip(expected.places, given, strict=True)
        if place.length > expected.window
        for token, trained, unscaled in zip(place.ids, place.logprobs, place.unscaled, strict=True)
        if token in got
    ]
    name = "RoPE is scaled"
    if not pairs:
        return Check(name, False, "can't tell: no token past the old window was compared")
    here, lost = (float(np.sqrt(np.mean(np.square(column)))) for column in zip(*pairs, strict=True))
    if lost < TELLING:
        return Check(
            name,
            False,
            f"can't tell: RoPE left unscaled would differ by {lost:.2g} nats only; export again "
            "with --tokens further past the old window",
        )
    detail = f"differs by {here:.2g} nats root mean square, RoPE left unscaled by {lost:.2g}"
    return Check(name, here <= SERVER_SHARE * lost, f"{detail}, allowed {SERVER_SHARE * lost:.2g}")


def side_by_side(expected: Reference, given: list[dict[int, float]]) -> list[Predicted]:
    """The likeliest token of each place, as the model was trained, as given, and unscaled."""
    return [
        Predicted(
            place.length,
            place.texts[0],
            place.logprobs[0],
            got.get(place.ids[0]),
            place.unscaled[0],
        )
        for place, got in zip(expected.places, given, strict=True)
    ]


def _configuration(folder: Path, expected: Reference) -> Iterable[Check]:
    written = json.loads((folder / "config.json").read_text())
    wanted = expected.rope_parameters
    parameters = written.get("rope_parameters") or {}
    same = parameters == json.loads(json.dumps(wanted))
    yield Check("RoPE as trained", same, _rope_words(parameters.get(families.GLOBAL, parameters)))
    asked = families.older_layout(json.loads(json.dumps(written | {"rope_parameters": wanted})))
    older = {key: written.get(key) for key in asked}
    said = (written.get("rope_scaling") or {}) | {"rope_theta": written.get("rope_theta")}
    same = older == asked and ("rope_scaling" in asked or not written.get("rope_scaling"))
    yield Check("RoPE for readers of the older layout", same, _rope_words(said))
    positions = written.get("max_position_embeddings")
    same = positions == expected.max_position_embeddings
    detail = f"{positions} of {expected.max_position_embeddings} positions"
    yield Check("window in config.json", same, detail)


def _tokenizer(tokenizer: Any, expected: Reference) -> Iterable[Check]:
    length = tokenizer.model_max_length
    detail = f"{length} of {expected.target} tokens"
    yield Check("window of the tokenizer", length == expected.target, detail)
    if expected.chat_template_sha256 is not None:
        template = getattr(tokenizer, "chat_template", None)
        same = isinstance(template, str) and sha256(template) == expected.chat_template_sha256
        yield Check("chat template", same, "as in the run" if same else "absent or changed")


def _rope_words(rope: dict[str, Any]) -> str:
    return (
        f"type {rope.get('rope_type', 'none')}, theta {rope.get('rope_theta')}, "
        f"factor {rope.get('factor')}"
    )


def _post(address: Address, body: dict[str, Any], timeout: float) -> dict[str, Any]:
    request, url = address.request("/completions", body), address.shown
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        said = redact(" ".join(error.read(300).decode("utf-8", "replace").split()))
        raise EvaluationError(
            f"{url} refused a prompt of {len(body['prompt']):,} tokens ({error.code}): {said}"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise EvaluationError(f"{url} gives no answer ({reason}): is the server up?") from error


def _by_id(answer: dict[str, Any], place: Place) -> dict[int, float]:
    """Log-probabilities by token id, from vLLM's and SGLang's layout or llama.cpp's."""
    ids = dict(zip(place.texts, place.ids, strict=True))
    try:
        said = answer["choices"][0]["logprobs"]
        if said.get("content"):
            entries = said["content"][0]["top_logprobs"]
            pairs = [(entry.get("id", entry["token"]), entry["logprob"]) for entry in entries]
        else:
            pairs = list(said["top_logprobs"][0].items())
    except (LookupError, TypeError, AttributeError):
        raise EvaluationError(
            "the server gives no log-probabilities: start it with them allowed"
        ) from None
    logprobs = {}
    for name, logprob in pairs:
        token = ids.get(name) if isinstance(name, str) else int(name)
        if isinstance(name, str) and name.startswith("token_id:"):
            token = int(name.removeprefix("token_id:"))
        if token is not None:
            logprobs[token] = float(logprob)
    return logprobs
