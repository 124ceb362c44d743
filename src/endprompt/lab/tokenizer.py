"""A Transformers tokenizer for the made-up language, so that cues and facts reach it as text.

The words of the fixed cues become tokens that mean nothing. A fact of `cues.py` ("The number
that opens the lock of the Avon bridge is 123456.") becomes a pair of the language: its name the
first half of a key, its place the second, the first two digits of its number a value.
"""

from __future__ import annotations

from typing import Any

from endprompt.cues import NAMES, PLACES
from endprompt.lab.language import CLOSE, END, FIRST, OPEN, SECOND, VALUE, VOCABULARY, WORDS

UNKNOWN = WORDS[0]
CUE_WORDS = "This is the end of text please pay attention here End".split()


def tokenizer() -> Any:
    """A `PreTrainedTokenizerFast` of whole words; words that it doesn't know are one token."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"<{token}>": token for token in range(VOCABULARY)}
    named: dict[str, int] = {"<|im_end|>": END, '"...': OPEN, '..."': CLOSE, "<unk>": UNKNOWN}
    for some, tokens in ((CUE_WORDS, WORDS[1:]), (NAMES, FIRST), (PLACES, SECOND)):
        named.update((str(word), token) for word, token in zip(some, tokens, strict=False))
    for word, token in named.items():  # one word a token: a saved vocabulary goes both ways
        del words[f"<{token}>"]
        words[word] = token
    fast = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    numbers = {
        "|".join(str(digits) for digits in range(10, 100) if digits % len(VALUE) == n): token
        for n, token in enumerate(VALUE)
    }
    fast.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(pattern), with_)
            for pattern, with_ in (
                (r"(The number that opens|Which number opens) the lock of the ", ""),
                (r" is (?=\d)", " "),
                (r"(?<=\w)[.,?](?=\s|$)", ""),
                *((rf"\b({some})\d{{4}}\b", f"<{token}>") for some, token in numbers.items()),
            )
        ]
    )
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|im_end|>", unk_token="<unk>")
