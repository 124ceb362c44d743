"""A causal language model made ready for evaluation: long prompts, little memory, many questions.

A prompt is read in chunks into a key-value cache, so that attention scratch space and logits are
those of one chunk whatever the prompt's length. A cached prefix answers many questions: each is
appended, scored, and cut off again.

Shape letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from endprompt import rope
from endprompt.errors import EvaluationError, ModelError
from endprompt.eval import cache as caches
from endprompt.eval.chunk_attention import in_chunks
from endprompt.io.provenance import Computation
from endprompt.models import bf16_attention
from endprompt.models import checkpoint as models
from endprompt.models.precision import evaluated
from endprompt.models.tokenizer import load_tokenizer

LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""RoPE types whose frequencies change with the length of the call, so that chunks would differ."""

LOGIT_ROWS = 256
BATCH_TOKENS = 4096
MASK_CELLS = 2**25
CPU_CHUNK = 1024
MOST_CHUNK = 2**16
"""Tokens that are read at once: on a CPU, and at most on a GPU."""
CHUNK_PART = 0.2
CACHE_PART = 0.6
"""Parts of the free memory that a chunk on a GPU and the cache of a batch may take."""
CPU_BATCH_TOKENS = 16384
"""Of a batch: longer prompts keep a CPU busy one by one, and each is written as it comes."""
MOST_ROWS = 128


@dataclass(frozen=True)
class Scores:
    """How a model scored some tokens.

    nll_T     float64[T], negative log-likelihood of each token, nats; NaN where nothing precedes
    right_T   bool[T], the token was the likeliest one (greedy decoding would have taken it)
    """

    nll_T: np.ndarray
    right_T: np.ndarray

    @property
    def total(self) -> float:
        """Sum over tokens, nats."""
        return float(self.nll_T.sum())

    @property
    def mean(self) -> float:
        """Mean over tokens, nats per token."""
        return float(self.nll_T.mean())

    @property
    def exact(self) -> bool:
        """Every token was the likeliest: greedy decoding gives these very tokens."""
        return bool(self.right_T.all())


class Coder:
    """A tokenizer that adds and cleans up nothing."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def start_ids(self) -> list[int]:
        """What the tokenizer puts before a text (a BOS token, or nothing)."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        for at in range(len(full) - len(plain) + 1):
            if full[at : at + len(plain)] == plain:
                return list(full[:at])
        return []

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, nothing cleaned up."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, special ones left out."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def text_bytes(self, ids: Sequence[int] | np.ndarray) -> int:
        """Bytes of UTF-8 of the tokens' text, special tokens left out."""
        text = self.decode_answer([int(token) for token in ids])
        return len(text.encode("utf-8", errors="replace"))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt as the model should see it: start tokens once."""
        begun = bool(self.tokenizer.bos_token) and prompt.startswith(self.tokenizer.bos_token)
        return [*([] if begun else self.start_ids), *self.encode(prompt)]


class Engine(Coder):
    """A causal language model of Transformers with its tokenizer.

    model       any `AutoModelForCausalLM`, on its device and in its dtype; set to eval mode
    tokenizer   its tokenizer
    chunk       tokens read at once; bounds the memory of a prefill. None: 1,024 on a CPU, on a GPU
                as many as a fifth of its free memory has room for
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, chunk: int | None = None, name: str = ""
    ) -> None:
        if chunk is not None and chunk < 1:
            raise EvaluationError(f"chunk {chunk} tokens: give at least 1")
        super().__init__(tokenizer)
        self.model = model.eval()
        self.name = name or str(getattr(model.config, "_name_or_path", "") or "model")
        self.device = next(model.parameters()).device
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        known = inspect.signature(base.forward).parameters
        self._cache_argument = "cache" if "cache" in known else "past_key_values"
        if "logits_to_keep" not in known:
            raise ModelError(f"{type(base).__name__} cannot score part of a prompt: not supported")
        self._text_config = model.config.get_text_config(decoder=True)
        self._in_chunks = in_chunks if base._supports_attention_backend else nullcontext
        self.chunk = chunk or self._suited_chunk()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        chunk: int | None = None,
        attention: str | None = None,
    ) -> Engine:
        """Load a checkpoint folder or a hub name.

        dtype       "auto": the checkpoint's own; "fast": bfloat16 where this machine is fast in it
                    (measured), else the checkpoint's own; or float32, bfloat16, float16. Weights,
                    activations and the cache all have it
        device      "auto": CUDA where there is one, else the processor
        Raises ModelError when the model or its tokenizer cannot be read.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = evaluated(dtype, device)
        config = models.load_config(str(path))
        tokenizer = load_tokenizer(path)
        model = models.load(str(path), config, attention=attention, dtype=kind)
        return cls(model.to(device), tokenizer, chunk=chunk, name=str(path))

    def _suited_chunk(self) -> int:
        """Tokens that are read at once where nobody says: on a GPU a power of two."""
        if self.device.type == "cpu":
            return CPU_CHUNK
        config = self._text_config
        inner = getattr(config, "intermediate_size", None)
        inner = inner if isinstance(inner, int) else 4 * config.hidden_size
        # Logits and their copies in float32, and what a layer has at a time.
        per_token = 10 * self.vocabulary + self.model.dtype.itemsize * (
            8 * config.hidden_size + 4 * inner
        )
        room = CHUNK_PART * caches.free_memory_bytes(self.device) / per_token
        return min(max(2 ** int(math.log2(max(room, 1))), CPU_CHUNK), MOST_CHUNK)

    @property
    def computation(self) -> Computation:
        """The precision, device, attention backend and threads of everything that this gives."""
        computation = Computation.of(self.model)
        if self.masks_chunks and bf16_attention.suits(self.model):
            return computation.model_copy(update={"attention": bf16_attention.NAME})
        return computation

    @property
    def window(self) -> int:
        """Largest number of positions that the model's config allows, scaling included."""
        return rope.window_of(self._text_config, self.tokenizer)

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model knows."""
        return int(self._text_config.vocab_size)

    @property
    def length_dependent(self) -> bool:
        """RoPE frequencies change with the prompt's length: prompts are read in one piece."""
        return rope.of_global_layers(self._text_config).get("rope_type") in LENGTH_DEPENDENT

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generated answer."""
        ids: set[int] = set()
        generation = getattr(self.model, "generation_config", None)
        for owner in (self._text_config, generation, self.tokenizer):
            named = getattr(owner, "eos_token_id", None)
            ids.update(named if isinstance(named, list | tuple) else [named] if named else [])
        return frozenset(int(token) for token in ids)

    def work(self, length: int) -> float:
        """Operations of a prefill, roughly: what a progress bar should count."""
        config = self._text_config
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        linear = 2.0 * self.model.num_parameters()
        return linear * length + 2.0 * config.num_hidden_layers * heads * size * length**2

    def context(self) -> Context:
        """An empty context, to be extended and asked."""
        return Context(self)

    @property
    def masks_chunks(self) -> bool:
        """A mask of a chunk may hold the chunk alone: all of it sees what came before."""
        return self._in_chunks is in_chunks and self._text_config._attn_implementation == "sdpa"

    @property
    def can_batch(self) -> bool:
        """Prompts can be answered together: every layer keeps every token, at any length alike."""
        plain = caches.keeps_all(caches.new_cache(self.model.config))
        return plain and not self.length_dependent

    def rows_at_once(self, length: int) -> int:
        """How many rows of `length` tokens a batch may hold; 1 where `can_batch` is false."""
        if not self.can_batch:
            return 1
        per_token = caches.bytes_per_token(self._text_config, self.model.dtype.itemsize)
        tokens = int(CACHE_PART * caches.free_memory_bytes(self.device)) // per_token
        if self.device.type == "cpu":
            tokens = min(tokens, CPU_BATCH_TOKENS)
        return max(min(tokens // length, MOST_ROWS), 1)

    def forward(
        self,
        cache: DynamicCache,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor,
        rows_R: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [B, R, V] of the rows of this chunk; the cache grows by T tokens.

        mask  int64[B, S] over cache and chunk, a float mask [1, 1, T, S], or where `masks_chunks`
              bool[1, 1, T, T]
        """
        arguments = {
            "input_ids": ids_BT.to(self.device),
            "position_ids": positions_BT.to(self.device),
            "attention_mask": mask.to(self.device),
            "use_cache": True,
            "logits_to_keep": rows_R.to(self.device),
            self._cache_argument: cache,
        }
        with self._in_chunks(self._text_config):
            return self.model(**arguments).logits

    def loglikelihoods(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Scores]:
        """Score each continuation given its context, in the order of the requests.

        requests    (context ids, continuation ids); contexts at least one token long
        progress    called with the number of requests answered since the last call

        Short requests run in batches of like length; a long context is read once for all its
        continuations. Raises EvaluationError on an empty context or continuation.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (context, continuation) in enumerate(requests):
            if not len(context) or not len(continuation):
                raise EvaluationError(
                    f"request {number}: context {len(context)} tokens, continuation "
                    f"{len(continuation)} tokens: each needs at least 1"
                )
            groups.setdefault(tuple(context), []).append(number)
        results: dict[int, Scores] = {}
        alone: list[int] = []
        for context_ids, numbers in groups.items():
            longest = len(context_ids) + max(len(requests[n][1]) for n in numbers)
            shared = len(numbers) > 1 and len(context_ids) >= self.chunk // 4
            if not (shared or longest > self.chunk):
                alone.extend(numbers)
                continue
            context = self.context()
            context.extend(context_ids)
            scores = context.ask_all([([], requests[number][1]) for number in numbers])
            results.update(zip(numbers, scores, strict=True))
            _tell(progress, len(numbers))
        most = max(BATCH_TOKENS, self.chunk)
        alone.sort(key=lambda n: -(len(requests[n][0]) + len(requests[n][1])))
        for batch in _batches(alone, [len(c) + len(a) for c, a in requests], most):
            results.update(self._score_batch([(n, *requests[n]) for n in batch]))
            _tell(progress, len(batch))
        return [results[number] for number in range(len(requests))]

    @torch.inference_mode()
    def _score_batch(
        self, batch: Sequence[tuple[int, Sequence[int], Sequence[int]]]
    ) -> dict[int, Scores]:
        longest = max(len(context) + len(answer) for _, context, answer in batch)
        first = min(len(context) for _, context, _ in batch) - 1
        # Padding stands on the right, where a causal model cannot see it.
        ids_BT = torch.zeros((len(batch), longest), dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, (_, context, answer) in enumerate(batch):
            ids = [*context, *answer]
            ids_BT[row, : len(ids)] = torch.tensor(ids)
            mask_BT[row, : len(ids)] = 1
        logits_BTV = self.model(
            input_ids=ids_BT.to(self.device),
            attention_mask=mask_BT.to(self.device),
            use_cache=False,
            logits_to_keep=torch.arange(first, longest - 1, device=self.device),
        ).logits
        scored = {}
        for row, (number, context, answer) in enumerate(batch):
            start = len(context) - 1 - first
            targets = torch.tensor(list(answer), device=self.device)
            nll, right = _nll(logits_BTV[row, start : start + len(answer)], targets)
            scored[number] = Scores(nll, right)
        return scored

    def generate(
        self, prompt: Sequence[int], max_new_tokens: int, *, stop: Sequence[str] = ()
    ) -> list[int]:
        """Greedy continuation of a prompt, without the end token; see `Context.complete`."""
        return self.context().complete(prompt, max_new_tokens, stop=stop)


class Context:
    """Text that the model has read, kept as a key-value cache; made by `Engine.context()`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.length = 0
        self._next_V: torch.Tensor | None = None
        self._held = 0
        if engine.length_dependent:
            # Their frequencies grow with the longest call so far; a short call sets them back.
            with torch.inference_mode():
                first = torch.zeros((1, 1), dtype=torch.long, device=engine.device)
                engine.model(input_ids=first, use_cache=False)
        self.cache = caches.new_cache(engine.model.config)

    @torch.inference_mode()
    def extend(self, ids: Sequence[int] | np.ndarray, *, scored: int = 0) -> Scores:
        """Read on, at the next positions.

        ids       int[T], tokens that follow what was read
        scored    how many of the last of them to score; only their logits are ever computed

        Returns the scores of those tokens. The very first token of a context has nothing before
        it: its nll is NaN. Raises EvaluationError when more than T tokens are to be scored.
        """
        ids_T = torch.as_tensor(np.asarray(ids, dtype=np.int64))
        count = len(ids_T)
        if scored > count:
            raise EvaluationError(f"{scored} tokens to score, but only {count} given")
        first = count - scored
        caches.expect(self.cache, self.length + count)
        nll: list[np.ndarray] = []
        right: list[np.ndarray] = []
        if scored and first == 0:
            nll_1, right_1 = self._score_next(int(ids_T[0]))
            nll.append(nll_1)
            right.append(right_1)
        chunk = count if self.engine.length_dependent else self.engine.chunk
        for start in range(0, count, max(chunk, 1)):
            end = min(start + chunk, count)
            # Row t predicts token t+1, also when that is the first token of the next chunk. The
            # last row is always kept, for whatever comes after this call.
            low, high = max(first, start + 1), min(end + 1, count)
            keep_from = min(low, end) - 1
            logits_TV = self._forward(ids_T[start:end], keep_from - start)
            if low < high:
                targets = ids_T[low:high].to(self.engine.device)
                chunk_nll, chunk_right = _nll(logits_TV[: high - low], targets)
                nll.append(chunk_nll)
                right.append(chunk_right)
            self._next_V = logits_TV[-1].clone()
        return Scores(
            np.concatenate(nll) if nll else np.zeros(0),
            np.concatenate(right) if right else np.zeros(0, dtype=bool),
        )

    def rewind(self, length: int) -> bool:
        """Forget all but the first `length` tokens; False where the model cannot go back.

        What comes next has to be read with `extend` before anything is asked.
        """
        if not self._plain or length > self.length:
            return False
        self.cache.crop(length - self.length)
        self.length, self._next_V = length, None
        return True

    def ask(self, question: Sequence[int], answer: Sequence[int]) -> Scores:
        """Score `answer` after `question`, both put after the context; the context stays as it was.

        `Scores.exact` says whether greedy decoding gives the answer: under teacher forcing, all
        tokens being the likeliest is the same event, and it costs no decoding.
        """
        with self._kept():
            return self.extend([*question, *answer], scored=len(answer))

    def ask_all(self, questions: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scores]:
        """`ask` for many (question, answer) pairs: in one call where the model allows it.

        Each question sees the context and itself, at the positions right after the context.
        """
        implementation = self.engine.model.config._attn_implementation
        if not self._plain or implementation not in ("eager", "sdpa"):
            return [self.ask(*pair) for pair in questions]
        results: list[Scores] = []
        lengths = [len(question) + len(answer) for question, answer in questions]
        most = max(min(self.engine.chunk, MASK_CELLS // (self.length + 1)), 1)
        for batch in _batches(range(len(questions)), lengths, most):
            results += self._ask_batch([questions[number] for number in batch])
        return results

    @torch.inference_mode()
    def _ask_batch(self, questions: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scores]:
        ids: list[int] = []
        rows: list[int] = []
        starts: list[int] = []
        for question, answer in questions:
            starts.append(len(ids))
            # The row before each token of the answer predicts it; -1: the context's last row.
            first = len(question) - 1
            rows += [len(ids) + first + n if first + n >= 0 else -1 for n in range(len(answer))]
            ids += [*question, *answer]
        mark_T = torch.zeros(len(ids), dtype=torch.long)
        mark_T[starts] = 1
        of_T = mark_T.cumsum(0) - 1
        places_T = torch.arange(len(ids)) - torch.tensor(starts)[of_T]
        sees_TT = (of_T[:, None] == of_T) & (places_T[:, None] >= places_T)
        if self.engine.masks_chunks and self.length:
            mask = sees_TT
        else:
            dtype = self.engine.model.dtype
            mask = torch.zeros((len(ids), self.length + len(ids)), dtype=dtype)
            mask[:, self.length :].masked_fill_(~sees_TT, torch.finfo(dtype).min)
        kept = sorted({row for row in rows if row >= 0})
        with self._kept():
            logits_KV = self._call(
                torch.tensor(ids), self.length + places_T, mask[None, None], torch.tensor(kept)
            )
        place = {row: n for n, row in enumerate(kept)}
        if -1 in rows:
            if self._next_V is None:
                raise EvaluationError("an empty prompt: give at least one token")
            logits_KV = torch.cat([logits_KV, self._next_V[None]])
            place[-1] = len(kept)
        order = torch.tensor([place[row] for row in rows], device=logits_KV.device)
        answers = [token for _, answer in questions for token in answer]
        targets_T = torch.tensor(answers, device=logits_KV.device)
        nll_T, right_T = _nll(logits_KV[order], targets_T)
        ends = np.cumsum([len(answer) for _, answer in questions])[:-1]
        return [
            Scores(nll, right)
            for nll, right in zip(np.split(nll_T, ends), np.split(right_T, ends), strict=True)
        ]

    def complete(
        self, question: Sequence[int], max_new_tokens: int, *, stop: Sequence[str] = ()
    ) -> list[int]:
        """Greedy decoding after `question`; the context stays as it was.

        Ends before an end token, at `max_new_tokens`, or when a text of `stop` appears (the
        tokens that hold it are returned; the caller cuts the text).
        """
        engine = self.engine
        out: list[int] = []
        with self._kept():
            if len(question):
                self.extend(question)
            if self._next_V is None:
                raise EvaluationError("an empty prompt: give at least one token")
            while len(out) < max_new_tokens:
                token = int(self._next_V.argmax())
                if token in engine.end_ids:
                    break
                out.append(token)
                if stop and any(text in engine.decode(out) for text in stop):
                    break
                if len(out) < max_new_tokens:
                    self.extend([token])
        return out

    @property
    def _plain(self) -> bool:
        """Every layer keeps every token, and no frequency depends on the length."""
        return caches.keeps_all(self.cache) and not self.engine.length_dependent

    @contextmanager
    def _kept(self) -> Generator[None]:
        length, after_V = self.length, self._next_V
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            if self.length > length:
                self.cache.crop(length - self.length)
            self.length, self._next_V = length, after_V

    def _forward(self, ids_T: torch.Tensor, keep_from: int) -> torch.Tensor:
        """Logits [T-keep_from, V] of the rows from `keep_from`; the cache grows by T."""
        end = self.length + len(ids_T)
        # A mask of ones keeps Transformers from guessing borders of packed documents.
        mask_1S = torch.ones((1, end), dtype=torch.long)
        rows = torch.arange(keep_from, len(ids_T))
        return self._call(ids_T, torch.arange(self.length, end), mask_1S, rows)

    def _call(
        self, ids_T: torch.Tensor, positions_T: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        logits_RV = self.engine.forward(self.cache, ids_T[None], positions_T[None], mask, rows)[0]
        self.length += len(ids_T)
        if not self._held:
            self.cache.crop(0)
        return logits_RV

    def _score_next(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        if self._next_V is None:
            return np.full(1, np.nan), np.zeros(1, dtype=bool)
        return _nll(self._next_V[None], torch.tensor([token], device=self.engine.device))


def _nll(logits_TV: torch.Tensor, targets_T: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihoods float64[T] and whether each target is the argmax, bool[T]."""
    nll, right = [], []
    # In slices, so that the fp32 copy of the logits stays small.
    for start in range(0, len(targets_T), LOGIT_ROWS):
        rows = logits_TV[start : start + LOGIT_ROWS].float()
        targets = targets_T[start : start + LOGIT_ROWS]
        nll.append(torch.nn.functional.cross_entropy(rows, targets, reduction="none"))
        right.append(rows.argmax(-1) == targets)
    return torch.cat(nll).double().cpu().numpy(), torch.cat(right).cpu().numpy()


def _batches(order: Iterable[int], lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Cut `order` in batches of at most `most_tokens` tokens, padded to the longest of a batch."""
    batch: list[int] = []
    longest = 0
    for number in order:
        longest = max(longest, lengths[number])
        if batch and (len(batch) + 1) * longest > most_tokens:
            yield batch
            batch, longest = [], lengths[number]
        batch.append(number)
    if batch:
        yield batch


def _tell(progress: Callable[[int], None] | None, count: int) -> None:
    if progress is not None:
        progress(count)
