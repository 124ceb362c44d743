"""Long real texts to hide needles in: the user's own, or the one that every Python has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from endprompt.errors import TextError
from endprompt.io.secrets import redact

if TYPE_CHECKING:
    from endprompt.eval.engine import Coder

STAND_IN = "Python's language reference (stand-in: surely seen in pretraining)"


def long_texts(coder: Coder, spec: str | None, *, tokens: int, count: int) -> list[np.ndarray]:
    """`count` texts of `tokens` tokens, int64 each: documents of a source, short ones joined.

    spec    what `endprompt.data.sources.open_source` reads; None: the language reference
    Raises TextError when there is less text, with both numbers.
    """
    texts: list[np.ndarray] = []
    rest: list[int] = []
    total = 0
    for document in _documents(spec):
        ids = coder.encode(document) if isinstance(document, str) else document
        rest += [*(coder.encode("\n\n") if rest else []), *(int(token) for token in ids)]
        total += len(ids)
        while len(rest) >= tokens and len(texts) < count:
            texts.append(np.asarray(rest[:tokens], dtype=np.int64))
            rest = rest[tokens:]
        if len(texts) == count:
            return texts
    raise TextError(
        f"{redact(spec) if spec else STAND_IN} has {total} tokens, {count} x {tokens} are needed: "
        "give more text, fewer texts or shorter lengths"
    )


def _documents(spec: str | None) -> Iterator[str | np.ndarray]:
    if spec is None:
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
        return
    from endprompt.data.readers import Document
    from endprompt.data.sources import open_source

    for row in open_source(spec).rows():
        if isinstance(row, Document):
            document = row.text if row.text is not None else row.ids
            if document is not None:
                yield document
