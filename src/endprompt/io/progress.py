"""How a long command tells another process how far it is: one small file, replaced each time."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from endprompt.io import files


def tell(path: Path | None, done: float, total: float, **detail: Any) -> None:
    """Write {"done", "total", ...} for whoever reads `path`; nothing without a path."""
    if path is not None:
        files.write_json(path, {"done": done, "total": total, **detail})


def read(path: Path) -> dict[str, Any] | None:
    """What was written last, None before the first time."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None
