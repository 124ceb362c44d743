"""The text of a run: read, tokenised into its folder, some of it held out from training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from endprompt.data import holdout
from endprompt.data.chats import renderer
from endprompt.data.mixture import Weighted
from endprompt.data.prepare import prepare
from endprompt.data.sources import open_source, shown
from endprompt.errors import DataError
from endprompt.models import embedded


def prepare_text(
    specs: Sequence[str],
    tokenizer: Any,
    folder: Path,
    *,
    tokens: int,
    count: int,
    row_tokens: int,
    say: Callable[[str], None],
    chat: bool = False,
    fresh: bool = False,
) -> dict[str, Any]:
    """Tokenise text into a folder and set some aside; returns what is known of it.

    specs       what `data.sources.open_source` reads; none: the embedded text
    tokens      of each of `count` texts that are held out; `row_tokens`: of a training row
    chat        rows are messages, written with the tokenizer's chat template
    fresh       what lies in the folder is of a run that was refused, and may be of other text

    Raises TextError for text that can't be read or is too short, DataError for a folder of others.
    """
    name, licence = (
        (", ".join(map(shown, specs)), "the user's own")
        if specs
        else (embedded.TEXT_NAME, embedded.TEXT_LICENCE)
    )
    say(f"text: {name}")
    render = renderer(tokenizer) if chat else None
    sources = [
        Weighted(open_source(spec, render=render)) for spec in specs or [str(embedded.text())]
    ]
    for source in sources:
        for note in source.source.notes():
            say(note)
    try:
        prepare(sources, tokenizer, folder)
    except DataError:
        if not fresh:
            raise
        prepare(sources, tokenizer, folder, force=True)
    holdout.set_aside(folder, tokenizer, tokens=tokens, count=count, row_tokens=row_tokens)
    training, fingerprint = holdout.training_documents(folder)
    held = holdout.held_out_texts(folder)
    return {
        "name": name,
        "licence": licence,
        "documents": len(training),
        "tokens": int(training.lengths.sum()),
        "sha256": fingerprint,
        "holdout_documents": len(held),
        "holdout_tokens": int(sum(map(len, held))),
        "copied_tokens": holdout.copied_tokens(folder),
    }
