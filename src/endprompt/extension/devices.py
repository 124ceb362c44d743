"""What a run's jobs run on: the processes of a training, and the jobs side by side."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from endprompt.cost import memory
from endprompt.cost.flops import Decoder
from endprompt.cost.plan import GPU_RUNTIME, MARGIN
from endprompt.errors import TrainingError
from endprompt.io import files, jobs
from endprompt.recipe import Recipe
from endprompt.train import launch

WORKERS = 2
"""Jobs side by side on a CPU, each with its share of the cores."""
FILE = "accelerate.yaml"
"""The config of Accelerate that a run makes for its trainings, in its folder."""


@dataclass(frozen=True)
class Devices:
    """What this machine has, and what was asked for.

    gpus       names for CUDA_VISIBLE_DEVICES; none: a CPU
    places     jobs side by side, of those that take one: GPUs, or shares of the CPU
    threads    of a process
    processes  of one training, as asked; None: as fits
    config     the user's for Accelerate
    """

    gpus: tuple[str, ...]
    places: int
    threads: int
    processes: int | None = None
    config: launch.Config | None = None

    @property
    def for_gpus(self) -> bool:
        """Whether recipes are resolved for GPUs: there are some here, or where the config runs."""
        return bool(self.gpus) or bool(self.config and self.config.kind not in launch.ON_A_CPU)


@dataclass(frozen=True)
class Ranks:
    """How each training of a run is started.

    processes  on all machines
    config     of Accelerate; None: one process, or DDP
    engine     in words
    """

    processes: int = 1
    machines: int = 1
    config: Path | None = None
    engine: str = "one process"

    @property
    def takes(self) -> int:
        """Places that a training takes on this machine."""
        return self.processes // self.machines

    @property
    def sharded(self) -> bool:
        """Whether ranks share weights, gradients and optimizer, by a config of this package."""
        return self.engine in (SHARDED, ROWS_CUT)

    def options(self) -> list[str]:
        """Of `endprompt train`."""
        if self.config is not None:
            return ["--accelerate-config", str(self.config)]
        return ["--processes", str(self.processes)] if self.processes > 1 else []


DDP, SHARDED, ROWS_CUT = "DDP", "FSDP 2", "FSDP 2, rows cut among them"


def here(processes: int | None, config: Path | None) -> Devices:
    """Devices of this machine. Raises RecipeError for what it doesn't have."""
    read = launch.read_config(config) if config else None
    if read and processes:
        read = replace(read, processes=processes * read.machines)
    asked = read.processes // read.machines if read else processes
    gpus = _gpus()
    cores = os.cpu_count() or 1
    if not gpus:
        shared = asked if asked and (read is None or read.kind in launch.ON_A_CPU) else 1
        places = max(shared, min(WORKERS, cores))
        return Devices((), places, max(1, cores // places), processes, read)
    if asked and (read is None or read.machines == 1):
        launch.require_devices(asked, len(gpus), read)
    return Devices(gpus, len(gpus), max(1, cores // len(gpus)), processes, read)


def ranks_of(
    devices: Devices,
    recipe: Recipe,
    decoder: Decoder,
    *,
    trainings: int,
    gpu_bytes: float,
    out: Path,
    cuttable: bool,
) -> Ranks:
    """How the trainings of a run are started.

    recipe     resolved
    trainings  that are to be made
    gpu_bytes  memory of a GPU, 0 without
    out        folder of the run, which a config of Accelerate is written to
    cuttable   whether a row may be cut among ranks

    Weights that fit are held by every rank (DDP), others are sharded (FSDP 2); rows that no GPU
    holds, or that are fewer in a step than the GPUs, are cut among them. Trainings whose step
    fits in one pass of one GPU share the GPUs and run side by side. Raises RecipeError for rows
    that do not divide among the processes that were asked for.
    """
    if devices.config is not None:
        config = devices.config
        words = f"{config.kind} of {config.path.name}"
        return Ranks(config.processes, config.machines, config.path, words)
    if not devices.gpus:
        count = devices.processes or 1
        return Ranks(count, engine="DDP by gloo") if count > 1 else Ranks()
    amounts, held = recipe.amounts, recipe.memory()
    tokens = memory.tokens_at_once(decoder, gpu_bytes, **held) if gpu_bytes else 0
    count = devices.processes or len(devices.gpus)

    def fits(processes: int, engine: str) -> bool:
        return (
            not gpu_bytes
            or needed_bytes(recipe, decoder, Ranks(processes, engine=engine), gpu_bytes)
            <= MARGIN * gpu_bytes
        )

    small = amounts.rows_per_step * amounts.row_tokens <= tokens
    if devices.processes is None and small and fits(1, DDP):
        count = max(1, count // max(1, trainings))
    rows_cut = (
        cuttable and count > 1 and (amounts.rows_per_step < count or not fits(count, SHARDED))
    )
    if rows_cut:
        return _configured(Ranks(count, engine=ROWS_CUT), "fsdp2-cp", recipe, out)
    if devices.processes is None:
        count = _divisor(amounts.rows_per_step, count)
    amounts.batches(count, max(tokens, 1))
    if count == 1:
        return Ranks()
    if fits(count, DDP):
        return Ranks(count, engine=DDP)
    return _configured(Ranks(count, engine=SHARDED), "fsdp2", recipe, out)


def _divisor(rows: int, most: int) -> int:
    """The most ranks that the rows of a step divide among."""
    return max(count for count in range(1, most + 1) if rows % count == 0)


def _configured(ranks: Ranks, name: str, recipe: Recipe, out: Path) -> Ranks:
    """With a shipped config for this number of processes, in the run's folder."""
    values = yaml.safe_load((launch.SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
    values["num_processes"] = ranks.processes
    values["mixed_precision"] = "bf16" if recipe.training.dtype == "bfloat16" else "no"
    if "parallelism_config" in values:
        values["parallelism_config"]["parallelism_config_cp_size"] = ranks.processes
    path = out / FILE
    files.write_text(path, yaml.safe_dump(values, sort_keys=False))
    return replace(ranks, config=path)


def needed_bytes(recipe: Recipe, decoder: Decoder, ranks: Ranks, gpu_bytes: float) -> float:
    """Memory of a device at the peak of a training step.

    gpu_bytes  memory of a GPU, 0 without
    """
    amounts, held = recipe.amounts, recipe.memory()
    row_tokens, readers, tokens = amounts.row_tokens, ranks.processes, memory.TOKENS_AT_ONCE
    if ranks.engine == ROWS_CUT:
        row_tokens, readers = -(-row_tokens // ranks.processes), 1
    if gpu_bytes:
        tokens = memory.tokens_at_once(decoder, gpu_bytes, **held)
    if amounts.rows_per_step % readers:
        readers = 1
    rows_at_once, passes = amounts.batches(readers, tokens)
    return memory.train_memory_bytes(
        decoder,
        row_tokens=row_tokens,
        rows_at_once=rows_at_once,
        accumulates=passes > 1,
        devices=ranks.processes,
        sharded=ranks.sharded,
        **held,
        runtime=GPU_RUNTIME if gpu_bytes else memory.CPU_RUNTIME,
    ).total


def require_startable(devices: Devices, waiting: int) -> None:
    """Refuse trainings that this machine can't start, where any are left.

    waiting  trainings that are not finished. Raises TrainingError or RecipeError
    """
    config = devices.config
    if not waiting or config is None:
        return
    if config.machines > 1:
        raise TrainingError(
            f"Accelerate config {config.path} names {config.machines} machines: --dry-run prints "
            "the command of each job, and this command, given again, continues from what they left"
        )
    launch.require_devices(config.processes, len(devices.gpus), config)


def require_divisible(devices: Devices, recipe: Recipe) -> None:
    """Refuse processes that the rows of a step do not divide among, where they were asked for."""
    asked, rows = devices.processes, recipe.amounts.rows_per_step
    if asked is None or devices.config is not None or not recipe.trained:
        return
    if not devices.gpus or rows >= asked:  # fewer rows may be cut among GPUs
        recipe.amounts.batches(asked, memory.TOKENS_AT_ONCE)


def cut_allowed(recipe: Recipe, local_span: int | None) -> bool:
    """Whether rows of a recipe may be cut among ranks (`train.context_parallel`)."""
    rows, training = recipe.rows, recipe.training
    plain = training.attention != "shifted" and not rows.document_mask and rows.gaps == "empty"
    by_text = training.prefix_loss == "text" and training.label_weights == "rows"
    return plain and by_text and local_span is None


def shell(job: jobs.Job, devices: Devices, machines: int) -> str:
    """A job as a scheduler runs it; on several machines, MACHINE_RANK is the machine's number."""
    threads = f"OMP_NUM_THREADS={devices.threads}"
    if machines > 1 and devices.config is not None and job.arguments[0] == "train":
        config = shlex.quote(str(devices.config.path))
        ranks = f'accelerate launch --config_file {config} --machine_rank "$MACHINE_RANK"'
        return f"{threads} {ranks} -m {job.line}"
    return f"{threads} {job.line}"


def in_words(devices: Devices, ranks: Ranks, trainings: int) -> str:
    """Who runs where, in one line."""
    unit = f"{len(devices.gpus)} GPU(s)" if devices.gpus else "this CPU"
    side = max(1, devices.places // max(1, ranks.takes))
    parts = []
    if trainings:
        count = f"{ranks.processes} processes ({ranks.engine})"
        if ranks.machines > 1:
            count += f" on {ranks.machines} machines"
        how = count if ranks.processes > 1 else "one process"
        at_once = min(side, trainings)
        parts.append(f"each training in {how}" + (f", {at_once} at once" if at_once > 1 else ""))
    parts.append(
        f"evaluations {'one to a GPU' if devices.gpus else 'in one process each'}, "
        f"{devices.places} at once"
    )
    return f"{unit}: {'; '.join(parts)}; {devices.threads} thread(s) a process"


def gpu_memory() -> float:
    """Bytes of the first GPU, 0 without."""
    if not _gpus():
        return 0.0
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory)


def _gpus() -> tuple[str, ...]:
    """GPUs that torch sees, by their names for CUDA_VISIBLE_DEVICES; torch is loaded only where a
    driver is there."""
    if not Path("/dev/nvidia0").exists() and not Path("/dev/kfd").exists():
        return ()
    import torch

    count: Any = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(named[:count] if named else map(str, range(count)))
