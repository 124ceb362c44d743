"""Save a model whose weights FSDP 2 has spread over two ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from endprompt.train import model as models


def main(source: str, out: Path) -> None:
    """Shard, gather on every rank, save on the first."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    config = models.load_config(source)
    model = models.load(source, config)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    state = models.gathered(model)
    assert state is not None
    if dist.get_rank() == 0:
        whole = models.load(source, config)
        for parameter in whole.parameters():
            torch.nn.init.zeros_(parameter)
        whole.load_state_dict(state)
        models.save(whole, models.load_tokenizer(source), out / "model", 512)
    else:
        assert not state
    assert models.gathered(models.load(source, config)) is None
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
