"""A key-value cache that is written in place, and what it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

SPARE = 512


class BufferedLayer(DynamicLayer):
    """A cache layer that writes into a buffer instead of copying itself at each step.

    expected   tokens that it is about to hold: the buffer is made for them, and SPARE more
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self.expected = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states, start, end)
        assert self._buffers is not None
        keys, values = self._buffers
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _grow(self, key: torch.Tensor, value: torch.Tensor, start: int, end: int) -> None:
        room = max(self.expected, end) + SPARE
        grown = []
        for new, old in ((key, self.keys), (value, self.values)):
            buffer = new.new_empty((*new.shape[:-2], room, new.shape[-1]))
            if old is not None and start:
                buffer[..., :start, :] = old  # of one row for all, after `begin_with`
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])

    def begin_with(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Begin with what one row holds; each row gets its copy when it is read on."""
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


def new_cache(config: Any) -> DynamicCache:
    """An empty cache whose layers that keep every token are buffered."""
    cache = DynamicCache(config=config)
    # Sliding-window layers, where a model has them, must be able to go back after a question.
    cache.activate_past_recording()
    cache.layers = [
        BufferedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def keeps_all(cache: DynamicCache) -> bool:
    """Every layer keeps every token."""
    return all(type(layer) is BufferedLayer for layer in cache.layers)


def begin_with(cache: DynamicCache, row: DynamicCache) -> None:
    """Let every row of an empty cache begin with what another's one row holds."""
    for layer, begun in zip(cache.layers, row.layers, strict=True):
        assert isinstance(layer, BufferedLayer)
        assert isinstance(begun, BufferedLayer)
        if begun.keys is not None and begun.values is not None:
            layer.begin_with(begun.keys, begun.values)


def expect(cache: DynamicCache, tokens: int) -> None:
    """Say how many tokens it is about to hold."""
    for layer in cache.layers:
        if isinstance(layer, BufferedLayer):
            layer.expected = tokens


def bytes_per_token(text_config: Any, itemsize: int) -> int:
    """Bytes that a token takes in the cache of a decoder, of plain attention in every layer."""
    heads = text_config.num_attention_heads
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    key_heads = getattr(text_config, "num_key_value_heads", None) or heads
    return 2 * text_config.num_hidden_layers * key_heads * size * itemsize


def free_memory_bytes(device: torch.device) -> int:
    """Bytes that a new cache or chunk could take now: of the GPU, else of this machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (said,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(said) * 1024
    except (OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
