"""Prepares data in a process of its own, to be killed or measured: source, tokenizer, out, sizes.

Prints the tokens after each batch, then the peak memory in KiB.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from endprompt.data import prepare as preparing
from endprompt.data.mixture import Weighted
from endprompt.data.sources import open_source


class Light:
    """What preparing needs of a tokenizer, without Transformers' seconds of import."""

    name_or_path = "light"

    def __init__(self, file: str) -> None:
        self.backend_tokenizer = Tokenizer.from_file(file)
        self.eos_token_id = self.backend_tokenizer.token_to_id("</s>")

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, Any]:
        encoding = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoding.ids}


def main(source: str, tokenizer: str, out: str, part_tokens: str, batch_characters: str) -> None:
    preparing.BATCH_CHARACTERS = int(batch_characters)
    preparing.prepare(
        [Weighted(open_source(source))],
        Light(tokenizer),
        Path(out),
        options=preparing.Options(holdout=0.2, part_tokens=int(part_tokens)),
        report=lambda progress: print(progress.tokens, flush=True),
    )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main(*sys.argv[1:])
