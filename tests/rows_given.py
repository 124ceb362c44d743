"""What tests of other trainers start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET, ROW_TOKENS, STEPS = 512, 64, 20
SETTINGS: dict[str, Any] = {
    "rows.tokens": ROW_TOKENS,
    "training.tokens": ROW_TOKENS * STEPS,
    "training.tokens_per_step": ROW_TOKENS,
    "training.learning_rate": 1e-3,
}


@dataclass(frozen=True)
class Given:
    """What `endprompt prepare` and `endprompt rows` wrote."""

    base: Path
    data: Path
    rows: Path
    scaled: Path
