"""Prompts of like length, read and answered together.

Prompts are padded on the right, where a causal model cannot see it, so that reading them needs no
mask; decoding masks each row's padding. What all prompts begin with is read once.

Shape letters: B rows, T tokens, R rows of logits, S tokens of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from endprompt.eval import cache as caches

if TYPE_CHECKING:
    from endprompt.eval.engine import Context, Engine


@dataclass(frozen=True)
class Request:
    """A prompt and when its answer ends.

    ids   tokens after what all rows begin with, at least one
    stop  texts that end an answer, as in `Context.complete`
    """

    ids: Sequence[int]
    max_new_tokens: int
    stop: Sequence[str] = ()


@torch.inference_mode()
def complete(
    engine: Engine, requests: Sequence[Request], *, after: Context | None = None
) -> list[list[int]]:
    """Greedy continuations, as `Context.complete` gives each, end tokens left out.

    after  the context that every prompt begins with; left as it was

    For engines that `can_batch`; the caller bounds the batch (`Engine.rows_at_once`).
    """
    rows = _Rows(engine, requests, after)
    next_BV = rows.read()
    answers: list[list[int]] = [[] for _ in requests]
    open_rows = {row for row, request in enumerate(requests) if request.max_new_tokens > 0}
    for step in range(max(request.max_new_tokens for request in requests)):
        tokens_B = next_BV.argmax(-1)
        for row, token in enumerate(tokens_B.tolist()):
            if row in open_rows and _ends(engine, requests[row], answers[row], token):
                open_rows.discard(row)
        if not open_rows:
            break
        next_BV = rows.decode(tokens_B, step)
    return answers


def _ends(engine: Engine, request: Request, answer: list[int], token: int) -> bool:
    """Add a token to an answer, unless it is an end token; whether the answer is whole."""
    if token in engine.end_ids:
        return True
    answer.append(token)
    if len(answer) >= request.max_new_tokens:
        return True
    return bool(request.stop) and any(text in engine.decode(answer) for text in request.stop)


class _Rows:
    """The prompts of a batch in one cache."""

    def __init__(self, engine: Engine, requests: Sequence[Request], after: Context | None) -> None:
        self.engine = engine
        self.past = after.length if after else 0
        self.requests = requests
        self.lengths = [self.past + len(request.ids) for request in requests]
        self.longest = max(self.lengths)
        whole = self.longest + max(request.max_new_tokens for request in requests)
        self.cache = caches.new_cache(engine.model.config)
        if after is not None:
            caches.begin_with(self.cache, after.cache)
        caches.expect(self.cache, whole)
        self.mask_BS = torch.ones((len(requests), whole), dtype=torch.long, device=engine.device)
        for row, length in enumerate(self.lengths):
            self.mask_BS[row, length : self.longest] = 0

    def read(self) -> torch.Tensor:
        """Read all prompts in chunks; logits [B, V] of the last token of each."""
        B, device = len(self.requests), self.engine.device
        ids_BT = torch.zeros((B, self.longest - self.past), dtype=torch.long)
        for row, request in enumerate(self.requests):
            ids_BT[row, : len(request.ids)] = torch.tensor(list(request.ids))
        ids_BT = ids_BT.to(device)
        next_V: list[torch.Tensor | None] = [None] * B
        chunk = max(self.engine.chunk // B, 1)
        for start in range(self.past, self.longest, chunk):
            end = min(start + chunk, self.longest)
            last = {row: n - 1 for row, n in enumerate(self.lengths) if start < n <= end}
            kept = sorted(set(last.values())) or [end - 1]
            logits_BRV = self.engine.forward(
                self.cache,
                ids_BT[:, start - self.past : end - self.past],
                torch.arange(start, end, device=device).expand(B, -1),
                torch.ones((B, end), dtype=torch.long, device=device),
                torch.tensor(kept, device=device) - start,
            )
            for row, place in last.items():
                next_V[row] = logits_BRV[row, kept.index(place)].clone()
        return torch.stack([logits for logits in next_V if logits is not None])

    def decode(self, tokens_B: torch.Tensor, step: int) -> torch.Tensor:
        """Logits [B, V] after one more token of each row, the `step`-th of its answer."""
        device = self.engine.device
        places_B = torch.tensor(self.lengths, device=device) + step
        return self.engine.forward(
            self.cache,
            tokens_B[:, None],
            places_B[:, None],
            self.mask_BS[:, : self.longest + step + 1],
            torch.zeros(1, dtype=torch.long, device=device),
        )[:, 0]
