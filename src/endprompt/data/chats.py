"""Chats as text: the tokenizer's own template writes the messages of a row."""

from __future__ import annotations

from typing import Any

from endprompt.data.readers import Render
from endprompt.errors import TextError


def renderer(tokenizer: Any) -> Render:
    """What writes messages ({"role": ..., "content": ...}) as the model saw them in its training.

    The beginning-of-sequence token that many templates write is taken off: every document gets
    its own. Raises TextError where the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TextError(
            "the tokenizer has no chat template: leave --chat out, or give a chat model"
        )
    bos = getattr(tokenizer, "bos_token", None)

    def render(messages: list[Any]) -> str:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        return text.removeprefix(bos) if bos else text

    return render
