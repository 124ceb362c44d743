"""A tokenizer made of rules, the same on every machine: for prompts whose hashes are compared."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from endprompt.eval.ruler.words import word_list

COMMON = (
    "the of and to a in is it for that on was with as are be this have not one an by or from "
    "special magic numbers number words word uuids text provided mentioned hidden within "
    "following Document question Question answer Answer given documents Some What all list "
    "variables assigned value VAR Memorize track chain grass green sky blue sun yellow Here go"
).split()


def tokenizer_json(*, joined: bool = False) -> dict[str, Any]:
    """A BPE tokenizer in the manner of Llama 2: no splitting before the merges, spaces as '▁'.

    Words are merged letter by letter, from the left. `joined` adds a token that spans a space,
    which forbids counting by words.
    """
    words = [*COMMON, *word_list("noun")[::5], *word_list("adjective")[::5]]
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        if word.isalpha() and word.isascii():
            for end in range(len(word)):
                merges.setdefault(("▁" + word[:end], word[end]))
    if joined:
        merges.setdefault(("▁of", "▁the"))
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet += sorted({"▁", "\n", *string.printable.strip()})
    entries = ["<unk>", "<s>", "</s>", *alphabet, *(a + b for a, b in merges)]
    added = [
        {
            "id": number,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, content in enumerate(entries[:3])
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {entry: number for number, entry in enumerate(entries)},
            "merges": [list(pair) for pair in merges],
        },
    }


def write_tokenizer(folder: Path, *, joined: bool = False) -> Path:
    """Write it as Transformers reads it; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(joined=joined)))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings |= {"eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
