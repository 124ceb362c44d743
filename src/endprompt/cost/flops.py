"""Floating-point operations of a decoder, counted from the numbers in its config.

A multiply and an add count as two. Only matmuls are counted: norms,
activations, softmax and RoPE are below a percent at the sizes where it matters. Attention is
counted as causal kernels compute it, half of the square of a row's physical length: positions
cost nothing, only tokens do, which is why short rows are cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from endprompt.recipe import Recipe

Attention = Literal["full", "shifted"]
Trainable = Literal["nothing", "all", "lora", "lora+", "attention"]

UNGATED = ("gpt_neox", "gpt2", "gptj", "phi", "falcon", "starcoder2", "opt", "bloom")
"""Model types whose feed-forward part has two matrices; all others gate theirs with a third."""


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder-only transformer.

    intermediate         width that a token goes through: of a mixture, its experts' together
    stored_intermediate  width that is kept: of a mixture, all experts'; 0: the same
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    gated: bool = True
    tied: bool = False
    stored_intermediate: int = 0

    @property
    def attention_weights(self) -> int:
        """Weights of q, k, v and o over all layers."""
        return self.layers * 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)

    @property
    def feed_forward_weights(self) -> int:
        """Weights of the feed-forward parts over all layers, every expert's."""
        return (
            self.layers
            * (2 + self.gated)
            * self.hidden
            * (self.stored_intermediate or self.intermediate)
        )

    @property
    def multiplied_weights(self) -> int:
        """Weights of the matrices that a token is multiplied with, the head's included."""
        inner = self.layers * (2 + self.gated) * self.hidden * self.intermediate
        return self.attention_weights + inner + self.head_weights

    @property
    def head_weights(self) -> int:
        """Weights of the map to the vocabulary."""
        return self.hidden * self.vocabulary

    @property
    def weights(self) -> int:
        """All weights but those of norms and biases."""
        embeddings = 0 if self.tied else self.head_weights
        return self.attention_weights + self.feed_forward_weights + self.head_weights + embeddings


def read(config: Any) -> Decoder:
    """Sizes of a decoder from its Transformers config."""
    heads = config.num_attention_heads
    active, stored = _widths(config)
    return Decoder(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=active,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        gated=config.model_type not in UNGATED,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        stored_intermediate=stored,
    )


def _widths(config: Any) -> tuple[int, int]:
    """Feed-forward width that a token goes through, and that is kept where it is more.

    Layers that some families keep dense are counted as the others.
    """
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((n for n in (getattr(config, name, None) for name in names) if n), 0)
    if not experts:
        return config.intermediate_size, 0
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    shared = getattr(config, "shared_expert_intermediate_size", None) or width * (
        getattr(config, "n_shared_experts", None) or 0
    )
    return width * config.num_experts_per_tok + shared, width * experts + shared


def attention(decoder: Decoder, tokens: int, kind: Attention = "full", groups: int = 4) -> float:
    """Scores and sums of values of one row, forward: 4 T^2/2 per head and unit of head size.

    `shifted` stays in groups of T/groups; half of the heads have half a group at each end.
    """
    pairs = tokens**2 / 2
    if kind == "shifted":
        group = tokens / groups
        pairs = group**2 / 2 * (groups + (groups - 0.5)) / 2
    return pair_attention(decoder, pairs)


def pair_attention(decoder: Decoder, pairs: float) -> float:
    """Scores and sums of values of so many query-key pairs in every layer, forward."""
    return 4 * decoder.layers * decoder.heads * decoder.head_size * pairs


def forward(decoder: Decoder, tokens: int, kind: Attention = "full", groups: int = 4) -> float:
    """One row of `tokens` through the model, logits of every token included."""
    linear = decoder.multiplied_weights
    return 2 * linear * tokens + attention(decoder, tokens, kind, groups)


@dataclass(frozen=True)
class Operations:
    """Operations by kind: devices do matmuls faster than attention."""

    matmuls: float
    attention: float

    @property
    def total(self) -> float:
        """Both kinds."""
        return self.matmuls + self.attention


def training(
    decoder: Decoder,
    tokens: int,
    *,
    trainable: Trainable = "all",
    kind: Attention = "full",
    groups: int = 4,
    lora_rank: int = 8,
    checkpointing: bool = False,
    distilled: bool = False,
    gained: bool = False,
    gap_pairs: float = 0.0,
) -> Operations:
    """Forward and backward of one row of `tokens`.

    Backward sends a gradient through every matrix (as much as forward), through attention
    (twice as much), and makes a gradient for each trainable matrix (as much as forward).
    Checkpointing runs the layers forward once more, up to the last matrix of each, whose result
    no gradient needs. A teacher reads the row as well. Labels weighed by their gain (`gained`) ask
    for short contexts to be read (`short_reads`), and for as many logits more. Attention to keys in
    filled gaps (`gap_pairs` query-key pairs a row) is made once more in the backward pass, whatever
    is kept; reading the bank, once a run, is left out. Zero for what trains nothing.
    """
    if trainable == "nothing":
        return Operations(0.0, 0.0)
    linear = decoder.multiplied_weights
    trained = {  # matrices whose gradient is a product; LoRA's own come below
        "all": linear,
        "attention": decoder.attention_weights,
        "lora": 0,
        "lora+": decoder.head_weights if decoder.tied else 0,
    }[trainable]
    inner = attention(decoder, tokens, kind, groups)
    matmuls = (2 * linear + 2 * linear + 2 * trained) * tokens
    if trainable in ("lora", "lora+"):
        matmuls += 3 * 2 * _lora_weights(decoder, lora_rank) * tokens
    if checkpointing:
        last = decoder.layers * decoder.hidden * decoder.intermediate
        matmuls += 2 * (linear - decoder.head_weights - last) * tokens
    inner *= 4 if checkpointing else 3
    if distilled:
        matmuls += 2 * linear * tokens
        inner += attention(decoder, tokens)
    if gained:
        short = short_reads(tokens)
        matmuls += 2 * (linear - decoder.head_weights) * short.reads * short.length
        matmuls += 2 * 2 * decoder.head_weights * tokens
        inner += short.reads * attention(decoder, short.length)
    inner += (5 if checkpointing else 4) * pair_attention(decoder, gap_pairs)
    return Operations(matmuls, inner)


class ShortReads(NamedTuple):
    """A row cut into short contexts: the tokens that a label has before it at least, the number of
    pieces that overlap, the tokens of each."""

    context: int
    reads: int
    length: int


def short_reads(tokens: int) -> ShortReads:
    """How a row of `tokens` is cut, whose labels are weighed by their gain from far context.

    The short context is a quarter of the row, c tokens, to 2c - 1; labels before have no gain.

    >>> short_reads(1024)
    ShortReads(context=256, reads=3, length=511)
    """
    context = max(1, tokens // 4)
    return ShortReads(context, -(-(tokens - context) // context), 2 * context - 1)


def row(
    recipe: Recipe,
    decoder: Decoder,
    checkpointing: bool | None = None,
    *,
    gap_pairs: float | None = None,
) -> Operations:
    """Operations of training on one row of a resolved recipe.

    checkpointing  None: as the recipe has it
    gap_pairs      query-key pairs of a mean row with keys in filled gaps; None: as if each token
                   saw half of them, more than rows that jump in two or three places have
    """
    settings = recipe.training
    if gap_pairs is None:
        gap_pairs = recipe.amounts.row_tokens * recipe.memory()["gap_keys"] / 2
    if checkpointing is None:
        checkpointing = bool(settings.gradient_checkpointing)
    return training(
        decoder,
        recipe.amounts.row_tokens,
        trainable=settings.trainable,
        kind=settings.attention,
        groups=settings.attention_groups,
        lora_rank=settings.lora_rank,
        checkpointing=checkpointing,
        distilled=settings.prefix_loss != "text",
        gained=settings.label_weights == "gain",
        gap_pairs=gap_pairs,
    )


def _lora_weights(decoder: Decoder, rank: int) -> int:
    """Weights of LoRA on q, k, v and o of every layer."""
    q, k = decoder.heads * decoder.head_size, decoder.kv_heads * decoder.head_size
    return decoder.layers * rank * (2 * (decoder.hidden + q) + 2 * (decoder.hidden + k))


def trained_weights(decoder: Decoder, trainable: Trainable, lora_rank: int = 8) -> int:
    """Weights with a gradient and an optimizer's state; those of norms are left out."""
    lora = _lora_weights(decoder, lora_rank)
    return {
        "nothing": 0,
        "all": decoder.weights,
        "attention": decoder.attention_weights,
        "lora": lora,
        "lora+": lora + decoder.head_weights,  # the embeddings have the head's size
    }[trainable]


LLAMA_3_8B = Decoder(
    layers=32,
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    head_size=128,
    vocabulary=128256,
)
"""The paper's model."""
