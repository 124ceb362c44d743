"""Bytes that training holds on one device, counted from the sizes of a model.

docs/cost-model.md derives every term and holds it against measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from endprompt.cost import flops
from endprompt.cost.flops import Decoder

GIB = 2**30
TOKENS_AT_ONCE = 4096
"""Tokens of short rows in one forward pass on a CPU, and the least on a GPU."""
CHUNK_TOKENS = 512
"""Tokens whose logits `endprompt.train.loss` has in memory at a time."""
CPU_RUNTIME = 0.6 * GIB
"""The process with torch and Transformers loaded."""
RECOMPUTED_FROM = 0.5 * GIB
"""Activations from which on a CPU makes the cheap ones again (`endprompt.train.activations`)."""
LARGE_BLOCK = 16 * 2**20
"""Bytes from which on a block on a CPU does not lie in the C library's heap."""
HOLES = 0.6
"""Part of the activations that the holes between them take in that heap, as measured."""
MOST_AT_ONCE = 2**16
ROOM_AT_ONCE = 0.5
"""Tokens that a GPU takes in one pass, at most, and the part of its memory that they may fill."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device by what they hold."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    holes: float
    logits: float
    gathered: float
    runtime: float
    gaps: float = 0.0
    """The bank of filled gaps, and one segment of a row in one layer that attends to it."""
    accumulates: bool = False
    """Gradients of earlier rows of the step are kept while the next row runs."""

    @property
    def total(self) -> float:
        """The peak of a step: at the end of forward, or when all gradients are there."""
        earlier = self.gradients if self.accumulates else 0.0
        inside = max(self.activations + self.holes + self.logits + earlier, self.gradients)
        held = self.weights + self.optimizer + self.gathered + self.runtime + self.gaps
        return held + inside


def layer_bytes(decoder: Decoder, dtype: str, *, matmuls_only: bool = False) -> float:
    """Kept for the backward pass, per token and layer.

    Counted from what torch saves for a Llama with flash or memory-efficient attention: in
    float32 6 H + 2 A + 2 K + 4 I numbers (A, K: sizes of all heads and of all key-value heads),
    and a float for each norm and head. Under autocast the residual stream and the norms stay
    float32 (4 H), and each matmul keeps a bf16 copy of its input.

    matmuls_only  float32: matmuls (the last of a layer not), attention and the layer's input
    """
    heads = decoder.heads * decoder.head_size
    key_values = decoder.kv_heads * decoder.head_size
    matrices = 1 + decoder.gated
    if matmuls_only:
        numbers = 2 * decoder.hidden + 2 * heads + 2 * key_values + matrices * decoder.intermediate
        return 4 * (numbers + decoder.heads)
    inner = 2 * matrices * decoder.intermediate
    small = 4 * (2 + decoder.heads)
    if dtype == "float32":
        return 4 * (6 * decoder.hidden + 2 * heads + 2 * key_values + inner) + small
    return 26 * decoder.hidden + 2 * (2 * heads + 2 * key_values + inner) + small


def worth_recomputing(decoder: Decoder, tokens: int) -> bool:
    """Whether a CPU makes cheap activations of a forward pass of `tokens` again.

    Below, the time that sorting them takes is not worth what it saves.
    """
    return decoder.layers * layer_bytes(decoder, "float32") * tokens > RECOMPUTED_FROM


def train_memory_bytes(
    decoder: Decoder,
    *,
    row_tokens: int,
    rows_at_once: int = 1,
    trainable: flops.Trainable = "all",
    lora_rank: int = 8,
    checkpointing: bool = False,
    dtype: str = "float32",
    devices: int = 1,
    sharded: bool = False,
    accumulates: bool = False,
    shifted: bool = False,
    distilled: bool = False,
    own_teacher: bool = False,
    gap_keys: int = 0,
    gap_bank: int = 0,
    runtime: float = CPU_RUNTIME,
) -> Memory:
    """Bytes on one device at the peak of a training step, as `endprompt train` runs it.

    rows_at_once  rows in one forward pass on one device
    dtype         float32 stands for a CPU, bfloat16 for a GPU
    devices       that share weights, gradients and optimizer where `sharded`
    accumulates   a step has several forward passes
    shifted       attention in shifted groups, which copies queries, keys, values and results
    distilled     the teacher stands beside the model, whole on each device, in `dtype`
    own_teacher   the teacher is the model itself
    gap_keys, gap_bank  keys in the gaps of a row, and tokens whose keys are kept to fill them
    """
    trained = flops.trained_weights(decoder, trainable, lora_rank)
    total = decoder.weights + (trained if trainable == "lora" else 0)
    parts = devices if sharded else 1
    tokens = row_tokens * rows_at_once
    per_layer = layer_bytes(decoder, dtype) * tokens
    working = 3 * tokens * decoder.intermediate
    if shifted:  # three cut, two of them repeated before, one put together; and their gradients
        working += 2 * (3 + 2 + 1) * tokens * decoder.heads * decoder.head_size
    working *= 4 if dtype == "float32" else 2
    if checkpointing:  # the input of every layer, and one layer made again
        activations = 4 * decoder.layers * tokens * decoder.hidden + per_layer + working
    elif dtype == "float32" and worth_recomputing(decoder, tokens):
        kept = layer_bytes(decoder, dtype, matmuls_only=True) * tokens
        activations = decoder.layers * kept + (per_layer - kept) + working
    else:
        activations = decoder.layers * per_layer + working
    in_heap = dtype == "float32" and 4 * tokens * decoder.hidden < LARGE_BLOCK
    head = 4 * decoder.head_weights if trained else 0
    logits = 2 * 4 * min(tokens, CHUNK_TOKENS) * decoder.vocabulary + head
    base = 0.0
    if distilled:  # its weights, and of a chunk what it says, and how far that is from what is said
        base = 0.0 if own_teacher else (4.0 if dtype == "float32" else 2.0) * decoder.weights
        logits += 2 * 4 * min(tokens, CHUNK_TOKENS) * decoder.vocabulary
    gathered = 0.0
    if dtype != "float32" and not sharded:  # autocast keeps a bf16 copy of what it multiplies
        gathered = 2.0 * (decoder.attention_weights + decoder.feed_forward_weights)
    if sharded:  # two layers and both ends in bf16, their gradients in float32
        layer = (decoder.attention_weights + decoder.feed_forward_weights) / decoder.layers
        ends = decoder.head_weights * (1 if decoder.tied else 2)
        gathered = (2 + (4 if trained else 0)) * (2 * layer + ends)
    return Memory(
        weights=4 * total / parts + base,
        gradients=4 * trained / parts,
        optimizer=8 * trained / parts,
        activations=activations,
        holes=HOLES * activations if in_heap else 0.0,
        logits=logits,
        gathered=gathered,
        runtime=runtime,
        gaps=gap_bytes(decoder, row_tokens, gap_keys, gap_bank, dtype),
        accumulates=accumulates,
    )


def gap_bytes(decoder: Decoder, row_tokens: int, keys: int, bank: int, dtype: str) -> float:
    """The bank, and what one segment of a row takes in one layer while it attends to `keys`.

    Keys and values of the bank in every layer. Of a segment, a row at most: keys and values
    gathered, turned and joined, once for each query head, their gradients, and the mask.
    """
    if not keys:
        return 0.0
    size = 4 if dtype == "float32" else 2
    kept = 2 * decoder.layers * decoder.kv_heads * decoder.head_size * bank
    joined = 2 * (3 * decoder.kv_heads + 2 * decoder.heads) * decoder.head_size * keys
    return size * (kept + joined + row_tokens * keys)


def tokens_at_once(
    decoder: Decoder,
    device_bytes: float,
    *,
    trainable: flops.Trainable,
    lora_rank: int,
    checkpointing: bool,
    dtype: str,
    shifted: bool,
    distilled: bool,
    own_teacher: bool = False,
    gap_keys: int = 0,
    gap_bank: int = 0,
) -> int:
    """Tokens of short rows that a GPU takes in one forward pass, a power of two.

    Where rows are few or the model is small, launching kernels takes longer than running them.
    """

    def fits(tokens: int) -> bool:
        held = train_memory_bytes(
            decoder,
            row_tokens=tokens,
            trainable=trainable,
            lora_rank=lora_rank,
            checkpointing=checkpointing,
            dtype=dtype,
            accumulates=True,
            shifted=shifted,
            distilled=distilled,
            own_teacher=own_teacher,
            gap_keys=gap_keys,
            gap_bank=gap_bank,
        )
        return held.total <= ROOM_AT_ONCE * device_bytes

    most = TOKENS_AT_ONCE
    while most < MOST_AT_ONCE and fits(2 * most):
        most *= 2
    return most
