"""Ask a model about a long text: turns share one key-value cache, and the window's use is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from endprompt import rope
from endprompt.errors import EvaluationError


@dataclass
class Conversation:
    """Questions and answers about a text, greedy.

    model, tokenizer  as Transformers loads them
    text              put before the first question; "" for none

    What the model has read stays in the cache, so that a long text is read once. The chat
    template is used where the tokenizer has one; else turns are plain text.
    """

    model: Any
    tokenizer: Any
    text: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    _read: list[int] = field(default_factory=list)
    _cache: Any = None

    @property
    def window(self) -> int:
        """Positions that the model is good for, scaling included."""
        return rope.window_of(self.model.config, self.tokenizer)

    @property
    def used(self) -> int:
        """Tokens of the window that the conversation takes so far."""
        return len(self._read)

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Questions, without the text before the first, and their answers."""
        said = [message["content"] for message in self.messages]
        if self.text and said:
            said[0] = said[0].removeprefix(f"{self.text}\n\n")
        return list(zip(said[::2], said[1::2], strict=True))

    def prompt(self, question: str) -> tuple[int, int]:
        """Tokens of the prompt with this question, and those of them that are not read yet."""
        ids = self._encode(self._asked(question))
        return len(ids), len(ids) - self._known(ids)

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 512,
        streamer: Any = None,
        stop: Callable[[], bool] | None = None,
    ) -> str:
        """The answer.

        streamer  Transformers': given the answer's tokens as they come
        stop      asked after each token; the answer ends with the first True

        Raises EvaluationError, and leaves the conversation as it was, when prompt and answer
        exceed the window.
        """
        import torch
        from transformers import DynamicCache

        asked = self._asked(question)
        ids = self._encode(asked)
        if len(ids) + max_new_tokens > self.window:
            raise EvaluationError(
                f"{len(ids):,} tokens and an answer of up to {max_new_tokens:,} exceed the window "
                f"of {self.window:,}: give a shorter text, or lower --tokens"
            )
        if self._cache is None:
            self._cache = DynamicCache(config=self.model.config)
        self._forget(ids)
        ids_BT = torch.tensor([ids], device=self.model.device)
        try:
            with torch.inference_mode():
                out_BT = self.model.generate(
                    ids_BT,
                    attention_mask=torch.ones_like(ids_BT),
                    cache=self._cache,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    streamer=streamer,
                    stopping_criteria=[lambda *_, **__: stop()] if stop else None,
                )
        except BaseException:
            self._cache, self._read = None, []  # layers may have read different amounts
            raise
        self._read = out_BT[0, :-1].tolist()  # the last token was given, not read
        answer = self.tokenizer.decode(out_BT[0, len(ids) :], skip_special_tokens=True)
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer

    def _asked(self, question: str) -> list[dict[str, str]]:
        first = self.text and not self.messages
        content = f"{self.text}\n\n{question}" if first else question
        return [*self.messages, {"role": "user", "content": content}]

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None):
            prompt = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            return self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        prompt = "\n".join(message["content"] for message in messages) + "\n"
        return self.tokenizer(prompt, verbose=False)["input_ids"]

    def _known(self, ids: list[int]) -> int:
        """Tokens of a prompt that stand in the cache; one is left to be read."""
        same = 0
        for old, new in zip(self._read, ids[:-1], strict=False):
            if old != new:
                break
            same += 1
        return same

    def _forget(self, ids: list[int]) -> None:
        """Keep of the cache what the new prompt begins with."""
        same = self._known(ids)
        if same < len(self._read):
            self._cache.crop(same - len(self._read))
            self._read = self._read[:same]
