"""Tokenised documents: random access to any of them, in memory or mapped from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from endprompt.data import parts
from endprompt.data.encoder import BATCH_CHARACTERS, Encoder, check_ids
from endprompt.data.sources import Document
from endprompt.errors import DataError, TextError


class TokenDocuments:
    """Documents as token ids. `docs[i]` is a view of uint16[tokens] or uint32[tokens].

    bos, eos          ids that the documents begin and end with, None where there is none
    vocabulary        number of ids of the tokenizer, None where nobody said
    tokenizer_digest  sha256 of the tokenizer (`Encoder.digest`), None where nobody said
    reopen            how another process maps the same documents: a function and its arguments

    >>> docs = TokenDocuments.from_arrays([np.array([5, 6, 7]), np.array([8, 9])])
    >>> len(docs), docs.tokens, docs[1].tolist(), docs.lengths.tolist()
    (2, 5, [8, 9], [3, 2])
    """

    def __init__(
        self,
        chunks: Sequence[parts.Part],
        *,
        bos: int | None = None,
        eos: int | None = None,
        vocabulary: int | None = None,
        tokenizer_digest: str | None = None,
        reopen: tuple[Callable[..., TokenDocuments], tuple[Any, ...]] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self._chunks = list(chunks)
        self._first = np.cumsum([0, *(len(chunk.names) for chunk in self._chunks)])
        self._reopen = reopen
        self._fingerprint = fingerprint
        self.bos = bos
        self.eos = eos
        self.vocabulary = vocabulary
        self.tokenizer_digest = tokenizer_digest

    @classmethod
    def from_arrays(
        cls,
        arrays: Sequence[np.ndarray | Sequence[int]],
        names: Sequence[str] | None = None,
        **facts: Any,
    ) -> TokenDocuments:
        """Documents in memory.

        arrays  integer ids, one array a document
        names   one a document; None: "document 0", ...
        facts   bos, eos, vocabulary, tokenizer_digest
        """
        offsets = np.cumsum([0, *(len(ids) for ids in arrays)])
        filled = [np.asarray(ids) for ids in arrays if len(ids)]
        joined = np.concatenate(filled or [np.empty(0, np.uint16)])
        if joined.dtype.kind not in "iu":
            raise DataError(f"token ids are of type {joined.dtype}, not integers")
        if joined.min(initial=0) < 0:
            raise DataError(f"token id {joined.min()} is negative: ids start at 0")
        dtype = parts.dtype_for(int(joined.max(initial=0)) + 1)
        given = [f"document {i}" for i in range(len(arrays))] if names is None else list(names)
        if len(given) != len(arrays):
            raise ValueError(f"{len(given)} names for {len(arrays)} documents")
        return cls([parts.Part(joined.astype(dtype), offsets, given)], **facts)

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        chunk, inside = self._place(index)
        start, stop = chunk.offsets_N[inside], chunk.offsets_N[inside + 1]
        return chunk.values_T[start:stop]

    def __reduce__(self) -> Any:
        # To another process goes the folder's name, not the gigabytes mapped from it.
        if self._reopen is not None:
            return self._reopen
        return super().__reduce__()

    def name(self, index: int) -> str:
        """Name of one document."""
        chunk, inside = self._place(index)
        return chunk.names[inside]

    @cached_property
    def names(self) -> list[str]:
        """Names of all documents."""
        return [name for chunk in self._chunks for name in chunk.names]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64[documents], tokens of each."""
        return np.concatenate([np.empty(0, np.int64), *(c.lengths_N for c in self._chunks)])

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex of the documents' lengths and ids (on disk: of the manifest)."""
        if self._fingerprint is not None:
            return self._fingerprint
        digest = hashlib.sha256(self.lengths.astype("<i8").tobytes())
        for chunk in self._chunks:
            used = chunk.values_T[chunk.offsets_N[0] : chunk.offsets_N[-1]]
            digest.update(used.astype("<u4").tobytes())
        return digest.hexdigest()

    def _place(self, index: int) -> tuple[parts.Part, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index = int(index) % len(self)
        chunk = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._chunks[chunk], index - int(self._first[chunk])


def tokenise(documents: Iterable[Document | str], tokenizer: Any) -> TokenDocuments:
    """Tokenise into memory: for text up to some hundred MB. Larger: `endprompt prepare`.

    documents  from `Source.documents()`, or plain strings. Each gets the bos that the tokenizer
               itself puts first (none for many models) and its end-of-sequence token; ids that
               a source brought are taken as they are

    Raises TextError when there is no document, DataError for an id above the vocabulary.
    """
    encoder = Encoder(tokenizer)
    arrays: list[np.ndarray] = []
    names: list[str] = []
    waiting: list[Document] = []
    size = 0

    def flush() -> None:
        for document, ids in zip(waiting, encode_documents(encoder, waiting), strict=True):
            arrays.append(ids.astype(parts.dtype_for(encoder.vocabulary)))
            names.append(document.name)
        waiting.clear()

    for number, given in enumerate(documents):
        if isinstance(given, str):
            given = Document(given, None, f"document {number}", "")
        waiting.append(given)
        size += len(given.text or "")
        if size >= BATCH_CHARACTERS:
            flush()
            size = 0
    flush()
    if not arrays:
        raise TextError("no document to tokenise: the source is empty")
    return TokenDocuments.from_arrays(
        arrays,
        names,
        bos=encoder.bos,
        eos=encoder.eos,
        vocabulary=encoder.vocabulary,
        tokenizer_digest=encoder.digest,
    )


def encode_documents(encoder: Encoder, documents: Sequence[Document]) -> list[np.ndarray]:
    """Ids of each document, checked against the vocabulary: unsigned or signed int[tokens] each."""
    texts = [document.text for document in documents if document.text is not None]
    encoded = iter(encoder(texts))
    arrays: list[np.ndarray] = []
    for document in documents:
        ids = next(encoded) if document.ids is None else document.ids
        check_ids(ids, encoder.vocabulary, document.name, given=document.ids is not None)
        arrays.append(ids)
    return arrays
