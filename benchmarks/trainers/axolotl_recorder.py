"""The recorder as a plugin of Axolotl, imported in Axolotl's environment."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin  # ty: ignore[unresolved-import]
from recorder import Recorder


class RecorderPlugin(BasePlugin):
    """Keeps the batches."""

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        """The recorder."""
        return [Recorder()]
