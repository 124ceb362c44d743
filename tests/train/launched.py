"""What `accelerate launch` does before a script runs, for ranks that have no GPU."""

from __future__ import annotations

import os
from typing import Any

from accelerate import state
from accelerate.commands import launch
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from ring import ring
from transformers import AttentionInterface

from endprompt.train.launch import SHIPPED

OF_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def as_launched(config: str, *flags: str) -> None:
    """Put a shipped config in the environment, as `accelerate launch` does, with flags over it.

    In float32, so that a run is comparable with one that is not sharded.
    """
    given = ["--config_file", str(SHIPPED / f"{config}.yaml"), "--num_processes", "2"]
    given += ["--mixed_precision", "no", "--num_cpu_threads_per_process", "1", *flags]
    words = launch.launch_command_parser().parse_args([*given, "script"])
    found: list[Any] = []
    launch.deepspeed_launcher = launch.multi_gpu_launcher = found.append  # it would start ranks
    launch.launch_command(words)
    (words,) = found
    kept = {name: os.environ[name] for name in OF_RANK}
    if words.use_deepspeed:
        _, variables = prepare_deepspeed_cmd_env(words)
        os.environ.update(variables | kept | {"DS_ACCELERATOR": "cpu"})
        _shard_on_cpu(state.DistributedType.DEEPSPEED)
    else:
        os.environ.update(prepare_multi_gpu_env(words) | kept)
        _shard_on_cpu(state.DistributedType.MULTI_GPU)
    if words.use_parallelism_config:
        AttentionInterface.register("sdpa", ring)


def _shard_on_cpu(kind: state.DistributedType) -> None:
    """Accelerate shards on GPUs only: let it take the ranks of a CPU for those of GPUs."""
    del os.environ["ACCELERATE_USE_CPU"]
    make = state.AcceleratorState.__init__

    def made(self: Any, *given: Any, **named: Any) -> None:
        if not self._shared_state:
            state.PartialState(cpu=True)
            state.PartialState._shared_state["distributed_type"] = kind
        make(self, *given, **named)

    state.AcceleratorState.__init__ = made
