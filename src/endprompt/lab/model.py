"""Small base models, trained from scratch on the made-up language and kept.

How a base comes to retrieve is no discovery of its own, and every result says so. From a plain
initialisation retrieval did not appear within two minutes; so the first layer starts with heads
that look one and two tokens back, the second with a noisy head that matches keys, and texts grow
from a quarter of the window to the whole of it, half of them with questions at their end.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from endprompt.io import claims, files
from endprompt.lab.language import BOS, END, VOCABULARY, Ints, Kind, document, examination

if TYPE_CHECKING:
    import torch

WARM_START = (
    "warm start: the first layer begins with heads that look one and two tokens back, the second "
    "with a noisy head that matches keys; texts grow from a quarter of the window to all of it, "
    "and half of them end in questions"
)


@dataclass(frozen=True)
class Base:
    """Everything that makes a base model: equal settings and seed, equal weights.

    window          tokens L0
    theta           RoPE's; 100 leaves no pair of a head that turns slowly over the window
    steps, tokens_per_step, learning_rate   of its training; AdamW, linear decay at the end
    pairs_alone     part of the steps that sees pairs only, in growing texts
    """

    window: int = 128
    theta: float = 100.0
    layers: int = 2
    width: int = 128
    heads: int = 2
    mlp: int = 64
    kinds: tuple[Kind, ...] = ("single", "multikey")
    steps: int = 1300
    tokens_per_step: int = 1024
    learning_rate: float = 2e-3
    pairs_alone: float = 0.25


def build(base: Base, seed: int) -> Any:
    """A `LlamaForCausalLM` with the warm start, on the processor, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=base.width,
        intermediate_size=base.mlp,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.heads,
        head_dim=base.width // base.heads,
        max_position_embeddings=base.window,
        rope_parameters={"rope_type": "default", "rope_theta": base.theta},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        _warm_start(model, base, torch.Generator().manual_seed(seed + 1000))
    return model


def _warm_start(model: Any, base: Base, draw: torch.Generator) -> None:
    """Write the heads into the initial weights, beside the noise that stays (a part of it).

    The stream has four parts of C numbers: a token's code, the code of the token before it, that
    of the one before that, and the rest, whose last number is a constant.
    """
    import torch

    C, D, W = base.width // 4, base.width // base.heads, base.width
    noise, code, look, match, write = 0.3, 0.12, 12.0 * (32 / D) ** 0.5, 2.0, 0.3
    embedding = model.model.embed_tokens.weight
    embedding.mul_(0.5)
    embedding[:, :C] += code * torch.randn(VOCABULARY, C, generator=draw)
    embedding[:, W - 1] = 0.5
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for attention in (first, second):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(attention, name).weight.mul_(noise)
    unit = torch.eye(D, C)
    turn = base.theta ** (-torch.arange(0, D, 2) / D)
    for head, back in enumerate((1, 2)):
        of_head = slice(head * D, (head + 1) * D)
        first.q_proj.weight[of_head, W - 1] += look**0.5 * torch.cat(
            [torch.cos(-back * turn), torch.sin(-back * turn)]
        )
        first.k_proj.weight[of_head, W - 1] += look**0.5 * (torch.arange(D) < D // 2)
        first.v_proj.weight[of_head, :C] += unit
        first.o_proj.weight[(1 + head) * C : (2 + head) * C, of_head] += write * unit.T
    # Keys are matched by the quarter of the pairs that turn slowest.
    slow = torch.arange(D // 2 - D // 8, D // 2)
    rows = torch.cat([slow, slow + D // 2])
    own, before = torch.zeros(2, D, C)
    for part in (own, before):
        part[rows] = match / C**0.5 * torch.randn(len(rows), C, generator=draw)
    second.q_proj.weight[:D, : 2 * C] += torch.cat([own, before], dim=1)
    second.k_proj.weight[:D, C : 3 * C] += torch.cat([own, before], dim=1)
    second.v_proj.weight[:D, :C] += unit
    second.o_proj.weight[:C, :D] += unit.T


def train(base: Base, seed: int, folder: Path) -> None:
    """Train a base and write it with its tokenizer and `base.json` to `folder`."""
    import torch

    from endprompt.lab.tokenizer import tokenizer

    began, worked = time.perf_counter(), time.process_time()
    model = build(base, seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=base.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    curve = []
    for step in range(base.steps):
        done = step / base.steps
        ids_BT = torch.from_numpy(np.stack(_lesson(base, seed, step)))
        for group in optimizer.param_groups:
            group["lr"] = base.learning_rate * min(1, (step + 1) / 30, (1 - done) / 0.4)
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(round(loss.item(), 4))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    files.write_json(
        folder / "base.json",
        {
            "base": asdict(base),
            "seed": seed,
            "warm_start": WARM_START,
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - worked,
            "tokens": base.steps * base.tokens_per_step,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "loss": curve[:: max(1, base.steps // 50)],
        },
    )


def _lesson(base: Base, seed: int, step: int) -> list[Ints]:
    """Texts of one step: pairs in growing texts, then every kind in texts of the whole window.

    Every other text of the window ends in questions, so that all distances inside it are learnt.
    """
    done = step / base.steps
    if done < base.pairs_alone:
        part = 0.25 + 0.75 * int(4 * done / base.pairs_alone) / 4
        length, kinds = int(part * base.window), base.kinds[:1]
        rows = range(max(1, base.tokens_per_step // length))
        return [document(length, (3, seed, step, row), kinds) for row in rows]
    texts = []
    for row in range(max(1, base.tokens_per_step // base.window)):
        here = (3, seed, step, row)
        if row % 2:
            kind = base.kinds[(step + row // 2) % len(base.kinds)]
            texts.append(examination(kind, base.window, here, base.kinds).tokens_T)
        else:
            texts.append(document(base.window, here, base.kinds))
    return texts


def folder_of(base: Base, seed: int, cache: Path) -> Path:
    """Where a base is kept: a name that holds its settings."""
    return cache / f"base-{files.sha256_of(asdict(base))[:12]}-{seed}"


def get(base: Base, seed: int, cache: Path) -> Path:
    """Folder of a trained base; trained now when the cache has none."""
    return claims.cached(folder_of(base, seed, cache), lambda folder: train(base, seed, folder))
