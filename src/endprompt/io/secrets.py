"""What must not leave with a file, a page or a message: user info and queries of URLs, tokens."""

from __future__ import annotations

import os
import re

_URL = re.compile(r"""\b([a-z][a-z0-9+.-]*)://([^\s'"<>`]*[^\s'"<>`),.:;\]}])""", re.IGNORECASE)
_HEADER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE)
_TOKEN = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_)[\w-]{16,}")
_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
_SHORTEST = 6
LEFT_OUT = "[left out]"


def redact(text: str) -> str:
    """The text without user info, queries and fragments of URLs, without headers and tokens.

    Tokens are known by their form, and as values of environment variables whose names say so
    (HF_TOKEN, OPENAI_API_KEY, AWS_SECRET_ACCESS_KEY, ...).

    >>> redact("cannot read https://me:pw@host/f.txt?X-Amz-Signature=ab12: fetch it again")
    'cannot read https://host/f.txt?left-out: fetch it again'
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name) and value in text:
            text = text.replace(value, f"[{name}]")
    text = _URL.sub(_bare, text)
    text = _HEADER.sub(rf"\1 {LEFT_OUT}", text)
    return _TOKEN.sub(LEFT_OUT, text)


def _bare(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    ends = [place for place in (rest.find(mark) for mark in "?#") if place >= 0]
    body = rest[: min(ends)] if ends else rest
    authority, slash, path = body.partition("/")
    query = "?left-out" if ends else ""
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}{query}"
