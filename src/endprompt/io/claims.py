"""What run a folder belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from endprompt.errors import OutputError
from endprompt.io.files import write_json


def claim(path: Path, settings: dict[str, Any], *, alone: bool = False) -> None:
    """Note in a run's folder what the run is; refuse a folder whose run is another.

    alone  a run that begins has to find its folder empty

    Raises OutputError that names the settings which differ.
    """
    folder = path.parent
    if not path.is_file():
        if alone and folder.is_dir() and any(folder.iterdir()):
            raise OutputError(f"{folder} holds other files: choose another --out")
        write_json(path, settings)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise OutputError(f"{path} is not a run's record: choose another --out")
    now = json.loads(json.dumps(settings))
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        raise OutputError(
            f"{folder} holds a run with another {', '.join(differing)}: "
            "choose another --out, or remove the folder"
        )
