"""The loss under FSDP 2, modules grouped as Accelerate groups them, in each of two ranks."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from test_loss import a_batch
from torch.distributed.fsdp import fully_shard

from endprompt.train.loss import weighted_loss
from tiny_families import tiny_model


def main() -> None:
    """Gradients of a sharded model against those of a whole one, twice."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for tied in (False, True):
        model = tiny_model(tie_word_embeddings=tied)
        whole = copy.deepcopy(model)
        batch = a_batch()
        weighted_loss(whole, batch).weighted.backward()
        for layer in model.model.layers:
            fully_shard(layer)
        ends = [model.model.embed_tokens] if tied else []
        if not tied:
            fully_shard(model.model.embed_tokens)
        fully_shard([model.model.norm, *ends, model.lm_head], reshard_after_forward=False)
        fully_shard(model)
        for _ in range(2):
            model.zero_grad()
            weighted_loss(model, batch).weighted.backward()
        for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.full_tensor(), theirs.grad, rtol=1e-4, atol=1e-6)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
