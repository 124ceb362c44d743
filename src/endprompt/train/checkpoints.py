"""Checkpoints of a training: which of them are whole, and the disk that they need.

Each holds `complete.json`, written last, with a digest of every file of it. One that does not
agree is passed over for the one before it, so that a resumed run ends with the same weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from endprompt.io import digests, files

COMPLETE = "complete.json"
KEPT = 2
"""Checkpoints that stay. One more is there while it is written."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Whole:
    """A checkpoint all of whose bytes are those that were written.

    resumed_at  steps at which the run was resumed, this one last
    """

    folder: Path
    resumed_at: list[int]


class MarkComplete(TrainerCallback):
    """Write what makes a checkpoint count, when all of its files are there."""

    def __init__(self, resumed_at: list[int]) -> None:
        self._resumed_at = resumed_at

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        PartialState().wait_for_everyone()  # each rank writes files of its own
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        (folder / COMPLETE).unlink(missing_ok=True)
        mark = {"files": digests.of_folder(folder, fresh=True), "resumed_at": self._resumed_at}
        files.write_json(folder / COMPLETE, mark | {"checksum": files.sha256_of(mark)})


def last_whole(folder: Path) -> Whole | None:
    """The latest whole checkpoint; a warning for each that is passed over, and for none left."""
    checkpoints = [
        path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path) is not None
    ]
    for checkpoint in sorted(checkpoints, key=lambda path: _step(path) or 0, reverse=True):
        resumed_at = _verified(checkpoint)
        if resumed_at is not None:
            return Whole(checkpoint, [*resumed_at, _step(checkpoint) or 0])
        log.warning("checkpoint %s is not whole: it is passed over", checkpoint.name)
    if checkpoints:
        log.warning("no whole checkpoint is left in %s: training starts at step 0", folder)
    return None


def _verified(checkpoint: Path) -> list[int] | None:
    """Steps before it at which the run was resumed, None where it is not as it was written."""
    try:
        mark = json.loads((checkpoint / COMPLETE).read_bytes())
        checksum = mark.pop("checksum")
        now = digests.of_folder(checkpoint, fresh=True)
        if checksum == files.sha256_of(mark) and mark["files"].items() <= now.items():
            return mark["resumed_at"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None


def _step(path: Path) -> int | None:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isascii() and number.isdigit() else None


def require_room(out: Path, network: Any, *, steps: int, save_steps: int) -> None:
    """Refuse a training whose checkpoints and model do not fit on the disk of `out`.

    AdamW keeps two moments of each weight that is trained; with LoRA, checkpoints hold the
    adapters alone. Raises OutputError with what is free and what is needed.
    """
    everything = _bytes(network.parameters())
    trained = _bytes(weight for weight in network.parameters() if weight.requires_grad)
    bytes_each = (trained if hasattr(network, "peft_config") else everything) + 2 * trained
    count = steps // save_steps
    needed = max(min(count, KEPT + 1) * bytes_each, min(count, KEPT) * bytes_each + everything)
    there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    files.require_room(out, needed - there, "checkpoints and the model")


def _bytes(weights: Iterable[Any]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)
