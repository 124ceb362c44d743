"""20 steps of torchtitan's model on the rows, run in torchtitan's environment.

torchtitan's Trainer takes CUDA where there is no accelerator (tools/utils.py, get_device_info) and
can't be made on a processor. Its Llama 3 model, RoPE, document masks, loss, data loader and
conversion of weights are used as they are; the loop around them is the one below.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention.flex_attention import AuxOutput, create_mask
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.models.common import Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import FlexAttention
from torchtitan.models.common.config_utils import (
    get_attention_config,
    make_ffn_config,
    make_gqa_config,
)
from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter

RATE, WARMUP, STEPS = 1e-3, 2, 20
NO_INIT: dict[str, Any] = {"weight": torch.nn.init.zeros_}


def dense_attention(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, **given: Any
) -> tuple[torch.Tensor, AuxOutput]:
    """Flex attention has no backward on processors: torchtitan's own mask, without its kernel."""
    B, _, T, _ = q_BHTD.shape
    mask_BHTT = create_mask(given["block_mask"].mask_mod, B, 1, T, T, device="cpu")
    out_BHTD = torch.nn.functional.scaled_dot_product_attention(
        q_BHTD, k_BHTD, v_BHTD, mask_BHTT, scale=given["scale"], enable_gqa=given["enable_gqa"]
    )
    return out_BHTD, AuxOutput(lse=None, max_scores=None)


FlexAttention._compiled_flex_attn = dense_attention


def model_config(config: dict[str, Any], rope: Any) -> Llama3Model.Config:
    """torchtitan's description of a Llama checkpoint."""
    dim, vocabulary = config["hidden_size"], config["vocab_size"]
    norm = RMSNorm.Config(normalized_shape=dim, eps=config["rms_norm_eps"], param_init=NO_INIT)
    layer = Llama3TransformerBlock.Config(
        attention_norm=norm,
        ffn_norm=norm,
        attention=make_gqa_config(
            dim=dim,
            n_heads=config["num_attention_heads"],
            n_kv_heads=config["num_key_value_heads"],
            wqkv_param_init=NO_INIT,
            wo_param_init=NO_INIT,
            inner_attention=get_attention_config("flex"),
            rope=rope,
        ),
        feed_forward=make_ffn_config(
            dim=dim,
            hidden_dim=config["intermediate_size"],
            w1_param_init=NO_INIT,
            w2w3_param_init=NO_INIT,
        ),
    )
    return Llama3Model.Config(
        dim=dim,
        vocab_size=vocabulary,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocabulary, embedding_dim=dim, param_init=NO_INIT
        ),
        norm=norm,
        lm_head=Linear.Config(in_features=dim, out_features=vocabulary, param_init=NO_INIT),
        layers=[layer] * config["num_hidden_layers"],
    )


def main() -> None:
    """Train, write losses and a checkpoint in Transformers' names."""
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder / "rows"))
    import torchtitan_rows as shipped  # ty: ignore[unresolved-import]

    config = json.loads((folder / "scaled" / "config.json").read_text())
    described = model_config(config, shipped.rope(config["head_dim"]))
    model = described.build()
    adapter = Llama3StateDictAdapter(described, None)
    weights = load_file(folder / "scaled" / "model.safetensors")
    model.load_state_dict(adapter.from_hf(dict(weights)), strict=True)
    loss_fn = CrossEntropyLoss(CrossEntropyLoss.Config(global_vocab_size=config["vocab_size"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    loader = shipped.RowsDataLoader(
        shipped.RowsDataLoader.Config(), dp_world_size=1, dp_rank=0, local_batch_size=1
    )
    losses = []
    for step, (batch, labels) in enumerate(loader):
        if step == 0:
            shipped.check(model, batch)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / WARMUP)
        positions = batch["positions"]
        masks = model.get_attention_masks(positions=positions)
        given = model(batch["input"], attention_masks=masks, positions=positions)
        loss, _ = loss_fn(given, labels, (labels != -100).sum(), positions=positions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    (folder / "losses.json").write_text(json.dumps(losses))
    saved = folder / "saved"
    saved.mkdir()
    held = {name: tensor.contiguous() for name, tensor in adapter.to_hf(model.state_dict()).items()}
    save_file(held, saved / "model.safetensors", metadata={"format": "pt"})
    for path in (folder / "scaled").iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "claim.json":
            (saved / path.name).write_text(path.read_text())
    print(json.dumps({"losses": losses, "rope": asdict(shipped.rope(config["head_dim"]))}))


if __name__ == "__main__":
    main()
