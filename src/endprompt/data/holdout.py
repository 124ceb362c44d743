"""Text kept from training for the evaluation: long documents where there are any.

The choice follows a hash of the documents' names, so that it is the same for every run on the
same text, and training never sees a token of it, nor a copy of it under another name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from endprompt.data import remote
from endprompt.data.copies import Fingerprints, rests
from endprompt.data.prepared import open_documents
from endprompt.data.tokens import TokenDocuments
from endprompt.data.words import Words
from endprompt.errors import TextError
from endprompt.io import files, records
from endprompt.record import Piece, Split

FILE = "split.json"


@dataclass(frozen=True)
class View:
    """Pieces of documents, as documents: `view[i]` is int[lengths[i]]."""

    documents: TokenDocuments
    pieces: list[Piece]

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], tokens of each piece."""
        return np.array([piece.stop - piece.start for piece in self.pieces], dtype=np.int64)

    @property
    def bos(self) -> int | None:
        """Id that the documents begin with."""
        return self.documents.bos

    @property
    def eos(self) -> int | None:
        """Id that the documents end with."""
        return self.documents.eos

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> np.ndarray:
        piece = self.pieces[index]
        return self.documents[piece.document][piece.start : piece.stop]


def split(
    documents: TokenDocuments, *, tokens: int, count: int, row_tokens: int, tokenizer: Any = None
) -> Split:
    """Set `count` texts of at least `tokens` tokens aside, or as many as half of the text allows.

    row_tokens  what training needs in one piece
    tokenizer   of the documents: copies are then found whatever their spaces, case and
                punctuation; None: those with the same tokens

    Whole long documents come first; where there is none, short ones are joined; a single
    document gives up its end. Raises TextError when the text is too short for both.
    """
    lengths = documents.lengths
    total = int(lengths.sum())
    if total < tokens + row_tokens:
        raise TextError(
            f"text too short: {total} tokens, and the evaluation needs {tokens} beside training "
            f"rows of {row_tokens}: give more text, or lower --to or --lengths"
        )
    order = sorted(range(len(documents)), key=lambda i: _hash(documents.name(i)))
    whole = [Piece(document=i, start=0, stop=int(lengths[i])) for i in order]
    held: list[list[Piece]] = []
    used: set[int] = set()
    budget = total // 2
    for piece in whole:
        if len(held) < count and tokens <= piece.stop <= budget:
            held.append([piece])
            used.add(piece.document)
            budget -= piece.stop
    if not held:
        joined: list[Piece] = []
        for piece in whole:
            if piece.stop <= budget and sum(p.stop for p in joined) < tokens:
                joined.append(piece)
                budget -= piece.stop
        if sum(piece.stop for piece in joined) >= tokens:
            held.append(joined)
            used = {piece.document for piece in joined}
    train = [piece for piece in whole if piece.document not in used]
    if not held:  # one document has more than half of the text: its end is kept back
        longest = max(whole, key=lambda piece: piece.stop)
        border = longest.stop - tokens
        if border < row_tokens:
            raise TextError(
                f"text too short: the longest document has {longest.stop} tokens, and the "
                f"evaluation needs {tokens} beside a training row of {row_tokens}: give more "
                f"text, or lower --to or --lengths"
            )
        held = [[longest.model_copy(update={"start": border})]]
        train = [piece for piece in whole if piece is not longest]
        train.append(longest.model_copy(update={"stop": border}))
    return _without_copies(documents, train, held, row_tokens, Words(tokenizer))


def _without_copies(
    documents: TokenDocuments,
    train: list[Piece],
    held: list[list[Piece]],
    row_tokens: int,
    words: Words,
) -> Split:
    """The split, with copies of held-out text left out of what is trained on."""
    apart = View(documents, [piece for pieces in held for piece in pieces])
    marks = Fingerprints.of((apart[number] for number in range(len(apart))), words)
    kept: list[Piece] = []
    copied_documents = copied_tokens = 0
    for piece in sorted(train, key=lambda piece: piece.document):
        length = piece.stop - piece.start
        copied = marks.copies(documents[piece.document][piece.start : piece.stop])
        left = rests(copied, length)
        copied_documents += not left
        copied_tokens += length - sum(stop - start for start, stop in left)
        kept += [
            Piece(document=piece.document, start=piece.start + start, stop=piece.start + stop)
            for start, stop in left
        ]
    total = sum(piece.stop - piece.start for piece in kept)
    if total < row_tokens:
        raise TextError(
            f"text too short: {total} tokens are left to train on, a row takes {row_tokens}; "
            f"{copied_tokens} tokens are copies of the text that the evaluation needs: "
            "give other text beside it"
        )
    return Split(
        train=kept,
        held_out=held,
        copied_documents=copied_documents,
        copied_tokens=copied_tokens,
    )


def set_aside(folder: Path, tokenizer: Any, *, tokens: int, count: int, row_tokens: int) -> None:
    """Hold text of prepared data out, unless that is done; amounts are those of `split`."""
    if not (folder / FILE).is_file():
        documents = open_documents(folder, tokenizer=tokenizer)
        amounts = {"tokens": tokens, "count": count, "row_tokens": row_tokens}
        save(folder, split(documents, **amounts, tokenizer=tokenizer))


def save(folder: Path, split: Split) -> None:
    """Write the split beside prepared documents."""
    files.write_json(folder / FILE, split.plain())


def training_documents(folder: str | Path, tokenizer: Any = None) -> tuple[Any, str]:
    """Documents of a prepared folder or URL that training may read, and their fingerprint."""
    folder = remote.local(folder)
    documents = open_documents(folder, tokenizer=tokenizer)
    if not (folder / FILE).is_file():
        return documents, documents.fingerprint
    split = _load(folder)
    return View(documents, split.train), files.sha256_of([documents.fingerprint, split.plain()])


def copied_tokens(folder: Path) -> int:
    """Tokens that were left out of training as copies of held-out text."""
    return _load(folder).copied_tokens


def held_out_texts(folder: str | Path) -> list[np.ndarray]:
    """Texts of a prepared folder for the evaluation: int64[tokens] each, longest first."""
    folder = remote.local(folder)
    if not (folder / FILE).is_file():
        documents = open_documents(folder, split="holdout")
        order = np.argsort(-documents.lengths, kind="stable")
        return [documents[int(i)].astype(np.int64) for i in order]
    documents = open_documents(folder)
    return [
        np.concatenate([documents[p.document][p.start : p.stop] for p in pieces]).astype(np.int64)
        for pieces in _load(folder).held_out
    ]


def _load(folder: Path) -> Split:
    return records.read(folder / FILE, Split)


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
