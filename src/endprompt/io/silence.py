"""Keep libraries from writing between the lines of the command."""

from __future__ import annotations

import os
import warnings


def silence_libraries() -> None:
    """Silence Transformers' notes and bars; errors still raise."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
