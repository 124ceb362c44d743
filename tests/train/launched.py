"""What `accelerate launch` does before a script runs, for ranks that have no GPU."""

from __future__ import annotations

import os
from typing import Any

from accelerate import state
from accelerate.commands import launch
from accelerate.utils.launch import prepare_multi_gpu_env

from endprompt.cli.accelerate import CONFIGS


def as_launched(config: str) -> None:
    """Put a shipped config in the environment, as `accelerate launch` does.

    In float32, so that a run is comparable with one that is not sharded.
    """
    given = ["--config_file", str(CONFIGS / f"{config}.yaml"), "--num_processes", "2"]
    given += ["--mixed_precision", "no", "--num_cpu_threads_per_process", "1"]
    words = launch.launch_command_parser().parse_args([*given, "script"])
    words, *_ = launch._validate_launch_command(words)
    started = {key: os.environ[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    started |= {key: os.environ[key] for key in ("MASTER_ADDR", "MASTER_PORT")}
    os.environ.update(prepare_multi_gpu_env(words))
    os.environ.update(started)
    _shard_on_cpu()


def _shard_on_cpu() -> None:
    """Accelerate shards on GPUs only: let it take the ranks of a CPU for those of GPUs."""
    make = state.AcceleratorState.__init__

    def made(self: Any, *given: Any, **named: Any) -> None:
        if not self._shared_state:
            state.PartialState(cpu=True)
            state.PartialState._shared_state["distributed_type"] = state.DistributedType.MULTI_GPU
        make(self, *given, **named)

    state.AcceleratorState.__init__ = made
