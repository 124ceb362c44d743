"""Start the ranks of a training on this machine, and end all of them when one ends.

Ranks are started by Accelerate's launcher where there is a config of it, else by torchrun's: DDP
on GPUs, or by gloo on a CPU. Both are torch's elastic agent, which watches every rank.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endprompt import errors
from endprompt.errors import RecipeError, TrainingError
from endprompt.io import jobs
from endprompt.models import precision
from endprompt.recipe import Recipe, read_yaml

STARTED_HERE = "ENDPROMPT_RANK"
"""Set in the environment of ranks that `run` started, which reports their errors."""
SHIPPED = Path(__file__).parents[1] / "accelerate"
"""Configs of Accelerate that ship."""
ON_A_CPU = ("NO", "MULTI_CPU")
"""Types of a config that need no GPU."""
AGENT = "torch.distributed.elastic"


@dataclass(frozen=True)
class Config:
    """The part of an Accelerate config that decides where ranks run."""

    path: Path
    kind: str
    """`distributed_type`."""
    processes: int
    """On all machines."""
    machines: int


def read_config(path: Path) -> Config:
    """Read a config of `accelerate config`. Raises RecipeError where it can't be used."""
    values = read_yaml(path, "Accelerate config")
    counts = [values.get(key, 1) for key in ("num_processes", "num_machines")]
    if not all(isinstance(count, int) and count >= 1 for count in counts):
        raise RecipeError(
            f"Accelerate config {path}: num_processes {counts[0]} and num_machines {counts[1]} "
            "have to be whole numbers above 0"
        )
    processes, machines = counts
    if processes % machines:
        raise RecipeError(
            f"Accelerate config {path}: {processes} processes do not divide among {machines} "
            "machines"
        )
    return Config(path, str(values.get("distributed_type", "NO")), processes, machines)


def is_rank() -> bool:
    """Whether this process is one of several that train together, by whatever launcher."""
    return "RANK" in os.environ


def require_devices(processes: int, gpus: int, config: Config | None = None) -> None:
    """Refuse ranks that this machine has no devices for, before anything runs.

    processes  on this machine. Raises RecipeError
    """
    if processes < 1:
        raise RecipeError(f"{processes} processes: give at least one")
    if gpus and processes > gpus:
        raise RecipeError(
            f"{processes} processes, and this machine has {gpus} GPU(s), one for each: "
            f"give {gpus} or fewer"
        )
    if config and not gpus and config.kind not in ON_A_CPU:
        raise RecipeError(
            f"Accelerate config {config.path} is of type {config.kind}, and this machine has no "
            f"GPU: give one of type {' or '.join(ON_A_CPU)}, or --processes"
        )


def fast_in_bf16(dtype: str) -> bool:
    """Whether `training.dtype: fast` is bf16 on this CPU.

    Raises RecipeError in a rank that was started elsewhere: others may measure otherwise.
    """
    if dtype != "fast":
        return False
    if is_rank():
        raise RecipeError(
            "training.dtype fast is measured in each rank: set it to bfloat16 or float32"
        )
    return precision.fast_in_bf16("cpu")


def start(
    words: Sequence[str], recipe: Recipe, processes: int | None, config_file: Path | None
) -> bool:
    """Train in several processes if that is asked for and this is not one of them.

    words      what follows `endprompt`
    recipe     resolved
    processes  on this machine; None: as the config says, or one

    False: this process is to train. Raises RecipeError for what the machine or the recipe doesn't
    have, and as `run` does.
    """
    import torch

    if is_rank() or not (processes or config_file):
        return False
    config = read_config(config_file) if config_file else None
    count = processes or (config.processes if config else 1)
    here = count // (config.machines if config else 1)
    require_devices(here, torch.cuda.device_count(), config)
    if config is None and recipe.trained:
        recipe.amounts.batches(count, 1)  # refuses rows that do not divide
    if count == 1 and config is None:
        return False
    words = [*words, "--set", f"training.dtype={recipe.training.dtype}"]  # measured once for all
    run(words, processes=count, config=config)
    return True


def run(words: Sequence[str], *, processes: int, config: Config | None = None) -> None:
    """Run an `endprompt` command in several processes of this machine, to its end.

    words      what follows `endprompt`; each rank is given the same
    processes  ranks; with a config, of all machines that it names

    Raises TrainingError with the first rank that failed and its error; the others are ended.
    """
    import torch

    gpu = torch.cuda.is_available()
    os.environ.update({STARTED_HERE: "1", jobs.PARENT: str(os.getpid())})
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        with tempfile.TemporaryDirectory(prefix="endprompt-ranks-") as logs:
            if config is not None and config.kind not in ON_A_CPU:
                _accelerate(words, processes, config, logs)
            else:
                if not gpu:
                    os.environ["ACCELERATE_USE_CPU"] = "true"
                _torchrun(words, processes, logs)
    except ChildFailedError as error:
        raise TrainingError(failure(error.failures, processes)) from None
    except SignalException as ended:
        sys.exit(128 + ended.sigval)


def _torchrun(words: Sequence[str], processes: int, logs: str) -> None:
    from torch.distributed import run as torchrun

    _silence_agent()
    options = ["--standalone", "--nproc_per_node", str(processes), "--log-dir", logs]
    torchrun.run(torchrun.parse_args([*options, "-m", "endprompt", *words]))


def _accelerate(words: Sequence[str], processes: int, config: Config, logs: str) -> None:
    from accelerate.commands import launch
    from torch.distributed import run as _  # noqa: F401  its loggers are there from here on

    _silence_agent()
    options = ["--config_file", str(config.path), "--num_processes", str(processes)]
    options += ["--log_dir", logs]
    if config.machines == 1:
        options += ["--main_process_port", "0"]
    parser = launch.launch_command_parser()
    launch.launch_command(parser.parse_args([*options, "-m", "endprompt", *words]))


def _silence_agent() -> None:
    """Stop the agent's logs of a failure, which `failure` says in one line."""
    for name in [AGENT, *logging.root.manager.loggerDict]:
        if name.startswith(AGENT):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def failure(failures: dict[int, Any], processes: int) -> str:
    """One line about the rank that failed first; those that were ended for it come last.

    failures  torch's ProcessFailure by rank

    The traceback of an error that is not the user's goes to standard error.
    """

    def order(item: tuple[int, Any]) -> tuple[int, float, int]:
        rank, failed = item
        killed = failed.exitcode < 0 and failed.exitcode != -signal.SIGTERM
        ended = failed.exitcode == -signal.SIGTERM
        in_words = isinstance(failed.message, dict)
        return (0 if killed else 3 if ended else 1 if in_words else 2, failed.timestamp, rank)

    rank, failed = min(failures.items(), key=order)
    who = f"rank {rank} of {processes}"
    if failed.exitcode < 0:
        name = signal.Signals(-failed.exitcode).name
        return (
            f"{who} (process {failed.pid}) was killed by {name}, and the others were ended: give "
            "the same command again to resume"
        )
    if isinstance(failed.message, dict):
        kind, _, said = failed.message["message"].partition(": ")
        if hasattr(errors, kind):
            return f"{said} ({who})"
        sys.stderr.write(failed.message["extraInfo"]["py_callstack"])
    return (
        f"{who} (process {failed.pid}) failed with code {failed.exitcode}, and the others were "
        "ended: its error stands above"
    )


def report(error: Exception) -> bool:
    """In a rank: leave an error to the process that started it, which speaks for all ranks.

    False where no process does.
    """
    if STARTED_HERE not in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return True
