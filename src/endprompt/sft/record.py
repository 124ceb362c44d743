"""Fine-tune a run or a model, and leave `run.json`: what it was, from what, with what result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endprompt.errors import DependencyError
from endprompt.io import files, provenance
from endprompt.models import embedded
from endprompt.sft.settings import Tuning

if TYPE_CHECKING:
    from endprompt.sft.run import Tuned

CARRIED = ("model", "recipe", "recipe_hash", "target", "text", "licence")
"""Of the run that extended the model: what `endprompt export` asks for."""


def tune(start: str, data: Sequence[str], settings: Tuning, *, out: Path, **given: Any) -> Tuned:
    """`sft.run.tune` on the checkpoint of a run, or on a model; writes `out/run.json`.

    start  folder of a finished run, a checkpoint folder, a GGUF file or a hub name
    given  further arguments of `sft.run.tune`

    Raises DependencyError without TRL.
    """
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"sft needs TRL ({error}): pip install 'endprompt[sft]'") from error
    from endprompt.sft import run

    model, carried = _find(start)

    def record(done: Tuned) -> None:
        values = {
            **provenance.provenance(),
            **carried,
            "kind": "sft",
            "command": provenance.command(),
            "started_from": start,
            "checkpoint": "model",
            "arms": [],
            "sft": done.__dict__,
        }
        files.write_json(out / run.RESULT, values)

    return run.tune(model, data, settings, out=out, reads=[start], record=record, **given)


def _find(start: str) -> tuple[str, dict[str, Any]]:
    folder = Path(start)
    if any((folder / name).is_file() for name in ("run.json", "train.json")):
        from endprompt.export import checkpoint

        source = checkpoint.find(folder)
        carried = {key: source.record[key] for key in CARRIED if key in source.record}
        carried.setdefault("model", {})
        carried["model"] = {**carried["model"], "path": source.base}
        command = source.record.get("extended_by") or source.record.get("command")
        if command:
            carried["extended_by"] = command
        return str(source.model), carried
    return embedded.resolve(start), {}
