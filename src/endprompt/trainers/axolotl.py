"""The guard as a plugin of Axolotl: `plugins: [endprompt.trainers.axolotl.GuardPlugin]`.

Only Axolotl imports this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin  # ty: ignore[import-not-found]

from endprompt.data import row_files
from endprompt.errors import DataError
from endprompt.io import records
from endprompt.record import RowFiles
from endprompt.trainers.guard import GuardCallback


class GuardPlugin(BasePlugin):
    """Stops Axolotl before its first step where the rows' jump would be lost.

    Rows and target are those of the first data set of the configuration that `endprompt rows`
    wrote; DataError where there is none.
    """

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:  # noqa: ARG002
        """The guard's callback, for the rows that the configuration names."""
        paths = [Path(dataset["path"]) for dataset in cfg.datasets or []]
        for rows in paths:
            if (rows / row_files.MANIFEST).is_file():
                target = records.read(rows / row_files.MANIFEST, RowFiles).target
                return [GuardCallback(target=target, rows=rows)]
        raise DataError(
            f"no rows of `endprompt rows` in datasets ({', '.join(map(str, paths))}): name their "
            "folder as a path there"
        )
