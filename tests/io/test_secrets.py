"""Secrets of URLs and of the environment are left out, and everything else stays."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endprompt.io.secrets import redact

CASES = {
    "https://me:pw@host/f.txt?sig=1": "https://host/f.txt?left-out",
    "https://me:p@w@host": "https://host",
    "s3://key:secret@bucket/a/b.jsonl": "s3://bucket/a/b.jsonl",
    "https://host/a@b/c": "https://host/a@b/c",
    "https://host/f#access_token=1": "https://host/f?left-out",
    "(url='https://me:pw@host/f?sig=1')": "(url='https://host/f?left-out')",
    "Authorization: Bearer abcdef012345": "Authorization: Bearer [left out]",
    "token hf_abcdefghijklmnopqrst": "token [left out]",
    "mail me@host: what? all": "mail me@host: what? all",
}


@pytest.mark.parametrize("text", CASES)
def test_secrets_are_left_out_and_nothing_else(text: str) -> None:
    assert redact(text) == CASES[text]


def test_values_of_secret_variables_are_left_out(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "planted-key")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "planted-word")
    assert redact("a planted-key, a planted-word") == "a [OPENAI_API_KEY], a planted-word"


WORD = st.text(string.ascii_letters + string.digits + "-_.~%", min_size=1)


@given(user=WORD, password=WORD, path=WORD, query=WORD)
def test_no_part_of_user_info_or_query_stays(
    user: str, password: str, path: str, query: str
) -> None:
    url = f"https://U{user}:P{password}@host.org/{path}x?Q{query}=x"
    assert redact(f"see {url}") == f"see https://host.org/{path}x?left-out"
    assert redact(redact(url)) == redact(url)
