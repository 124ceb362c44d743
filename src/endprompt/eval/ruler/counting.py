"""How many tokens a text has, without tokenising it again and again.

RULER's prompts are sized by token counts, and most of a prompt is words seen before. Where the
tokenizer keeps the words of a text apart, the count of the text is the sum of the counts of its
words, and each word is tokenised once. `TokenCounter` checks that this holds for its tokenizer;
where it does not, it tokenises the whole text.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

MEMO_LIMIT = 100_000
"""Words remembered before the memory of them is emptied: some 20 MB."""

CHECKS = 2_000
"""Random texts on which a rule about the tokenizer is tried before it is used."""

_GAP = re.compile(r"(?<=\S) (?=\S)")
_CROSSING = re.compile(r"\S ")
_MIXED_DIGITS = re.compile(r"[0-9][^0-9]|[^0-9 ][0-9]")
_COMPOSED = re.compile(r"[0-9-]")
_RUNS = re.compile(r"[^0-9A-Za-z]*(?:[0-9]+|[A-Za-z]+)|[^0-9A-Za-z]+")
_MIXED_RUNS = re.compile(r"[0-9][A-Za-z]|[A-Za-z][0-9]|[0-9A-Za-z][!-/:-@\[-`{-~]")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"0" * 9)


class _Unsure(Exception):
    """A word touches white space: what it counts depends on its neighbours."""


class _Special(Exception):
    """A piece holds a special token: it is one token, and may swallow the space beside it."""


class _Words(dict[str, int]):
    """Tokens of a word that follows a word and one space; learnt when first asked for."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self._runs = _Runs(counter)

    def __missing__(self, word: str) -> int:
        if not word or word != word.strip():
            raise _Unsure(word)
        self._counter.refuse_special(word)
        if self._counter.runs_apart and word.isascii() and _COMPOSED.search(word):
            head, *runs = _RUNS.findall(word)
            if len(runs) > 2 or (runs and "-" in word):
                return self[head] + sum(map(self._runs.__getitem__, runs))
        if len(self) >= MEMO_LIMIT:
            self.clear()
        self[word] = count = self._counter.after("a ", word)
        return count

    def of_piece(self, piece: str) -> int:
        """As for a word; the piece may hold or end in white space (not remembered if it ends)."""
        try:
            return self[piece]
        except _Unsure:
            self._counter.refuse_special(piece)
            return self._counter.after("a ", piece)


class _Runs(dict[str, int]):
    """Tokens of a run of digits after a letter, of letters after a digit, of marks and a run."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter

    def __missing__(self, run: str) -> int:
        if len(self) >= MEMO_LIMIT:
            self.clear()
        self[run] = count = self._counter.after("0" if run[0].isalpha() else "a", run)
        return count


class TokenCounter:
    """Counts the tokens of texts, special tokens of the model (BOS, EOS) not included.

    tokenizer   a Transformers tokenizer

    `words_apart` says whether counts are summed over words: no entry of the vocabulary spans a
    space that follows a word, and random texts count as the sum of their halves.
    `digits_alike` says whether all digits count alike, so that numbers need no look-up each.
    `runs_apart` says whether letters, digits and marks within a word are kept apart as well, so
    that identifiers (UUIDs, red-fox) are counted by their runs.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = backend if self._same(tokenizer, backend) else None
        self._tokenizer: Any = None if self._backend is not None else tokenizer
        self._context: dict[str, int] = {}
        self.words_apart = self.digits_alike = self.runs_apart = False
        if self._backend is not None:
            entries, added = _vocabulary(self._backend)
            self._know_special(added)
            self.words_apart = self._keeps_words_apart([*entries, *added])
            self.digits_alike = self._counts_digits_alike(entries)
            self.runs_apart = self._keeps_runs_apart(entries)
        self._words = _Words(self)

    def whole(self, text: str) -> int:
        """Tokens of a text, by tokenising all of it."""
        if self._backend is None:
            return len(self._tokenizer.tokenize(text))
        return len(self._backend.encode_batch_fast([text], add_special_tokens=False)[0])

    def after(self, context: str, text: str) -> int:
        """Tokens that `text` adds to `context`, a blank at whose end belongs to the text."""
        if context not in self._context:
            self._context[context] = self.whole(context.rstrip())
        return self.whole(context + text) - self._context[context]

    def count(self, text: str) -> int:
        """Tokens of a text: the same number as `whole`, found faster where that is sound."""
        if not self.words_apart:
            return self.whole(text)
        try:
            return self._by_words(_zeros(text) if self.digits_alike else text)
        except _Special:
            return self.whole(text)

    def _by_words(self, text: str) -> int:
        first, *words = text.split(" ")
        try:
            if not first or first != first.strip():
                raise _Unsure(first)
            self.refuse_special(first)
            last = 0
            if len(words) > 1 and not words[-1] and words[-2]:
                if words[-2] != words[-2].strip():
                    raise _Unsure(words[-2])
                last = self._words.of_piece(f"{words[-2]} ")
                del words[-2:]
            return self.whole(first) + sum(map(self._words.__getitem__, words)) + last
        except _Unsure:
            first, *pieces = _GAP.split(text)
        self.refuse_special(first)
        return self.whole(first) + sum(map(self._words.of_piece, pieces))

    def refuse_special(self, piece: str) -> None:
        """Raise _Special when a piece holds a special token, with its digits or with zeros."""
        if self._special_first.search(piece) and any(token in piece for token in self._special):
            raise _Special(piece)

    def distrust(self) -> None:
        """Tokenise whole texts from now on: a count was found to be wrong."""
        self.words_apart = False

    # -- the checks --------------------------------------------------------------------------

    @staticmethod
    def _same(tokenizer: Any, backend: Any) -> bool:
        """Whether the Rust tokenizer alone does what `tokenizer.tokenize` does."""
        if backend is None or not hasattr(backend, "encode_batch_fast"):
            return False
        probes = ("", "a", " a", "Two words.\n\n\tThree 12345-fold", "naïve 日本語 <s> </s> <unk>")
        return all(
            len(tokenizer.tokenize(text))
            == len(backend.encode_batch_fast([text], add_special_tokens=False)[0])
            for text in probes
        )

    def _know_special(self, added: list[str]) -> None:
        self._special = tuple({*added, *map(_zeros, added)})
        firsts = "".join(re.escape(token[0]) for token in self._special)
        self._special_first = re.compile(f"[{firsts}]" if firsts else "(?!)")

    def _keeps_words_apart(self, vocabulary: list[str]) -> bool:
        if any(_CROSSING.search(entry) for entry in vocabulary):
            return False
        draw = random.Random(0)
        pairs = [
            (_scribble(draw).rstrip() or "x", _scribble(draw).lstrip() or "x")
            for _ in range(CHECKS)
        ]
        both = self._all_whole([f"{left} {right}" for left, right in pairs])
        lefts = self._all_whole([left for left, _ in pairs])
        rights = self._all_whole([f"a {right}" for _, right in pairs])
        alone = self.whole("a")
        return all(
            whole == left + right - alone
            for whole, left, right in zip(both, lefts, rights, strict=True)
        )

    def _keeps_runs_apart(self, entries: list[str]) -> bool:
        if not self.words_apart or any(_MIXED_RUNS.search(entry) for entry in entries):
            return False
        draw = random.Random(2)
        for _ in range(CHECKS):
            word = "".join(
                draw.choices(
                    (*"0123456789abcdef-.:", ".\nOne", "-vole", "quiet"), k=draw.randint(3, 30)
                )
            )
            head, *runs = _RUNS.findall(word)
            parts = self.after("a ", head) + sum(map(_Runs(self).__getitem__, runs))
            if self.after("a ", word) != parts:
                return False
        return True

    def _counts_digits_alike(self, entries: list[str]) -> bool:
        if any(_MIXED_DIGITS.search(entry.lstrip(" ")) for entry in entries):
            return False
        draw = random.Random(1)
        texts = [str(number) for number in range(1000)]
        texts += [str(draw.getrandbits(draw.randint(8, 60))) for _ in range(CHECKS)]
        texts += [_scribble(draw) for _ in range(CHECKS)]
        return self._all_whole(texts) == self._all_whole([_zeros(text) for text in texts])

    def _all_whole(self, texts: list[str]) -> list[int]:
        assert self._backend is not None
        return [
            len(encoding)
            for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ]


def _zeros(text: str) -> str:
    return text.encode().translate(_DIGITS_TO_ZERO).decode()


def _vocabulary(backend: Any) -> tuple[list[str], list[str]]:
    """The entries of the vocabulary as the text that they stand for; those added to it, apart."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spec = json.loads(backend.to_str())
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    entries = backend.get_vocab().keys() - set(added)
    if "ByteLevel" in f"{spec['pre_tokenizer']} {spec['decoder']}":
        byte_of = {mark: value for value, mark in bytes_to_unicode().items()}
        return [
            bytes(byte_of[mark] for mark in entry).decode("utf-8", "replace")
            for entry in entries
            if all(mark in byte_of for mark in entry)
        ], added
    return [
        entry.replace("▁", " ").removeprefix("##")
        for entry in entries
        if not _BYTE.fullmatch(entry)
    ], added


def _scribble(draw: random.Random) -> str:
    """A short text of words, numbers, marks, capitals and white space, as prompts have them."""
    parts = (
        lambda: "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 7))),
        lambda: draw.choice(("the", "is", "One", "VAR", "What", "Question", "don't", "I'll")),
        lambda: str(draw.getrandbits(draw.randint(1, 40))),
        lambda: f"{draw.getrandbits(32):x}",
        lambda: draw.choice((".", ",", "-", "'", '"', ":", "...", "?", "(", ")", "=", "<|", "|>")),
        lambda: draw.choice((" ", " ", " ", "\n", "\n\n", "\t", " \n", "\n ", "  ")),
        lambda: draw.choice(("é", "日本", "ß", "—", "’", "…", "🙂", "ё", "ﬁ")),
    )
    return "".join(draw.choice(parts)() for _ in range(draw.randint(1, 8)))
