"""Every error that a user can cause. Each message is one line: the thing, the numbers, the remedy.

EndPromptError
├── RecipeError       a recipe or a setting that cannot be used
├── PositionError     positions that do not fit the target
├── RopeError         RoPE scaling that cannot be applied or written
├── ModelError        a model that cannot be found, read or extended
├── TextError         text that cannot be found, read or is too short
├── DataError         prepared data that is broken or does not belong to the run
├── OutputError       an output folder that cannot be used, a disk that is full
├── ProbeError        the position check failed: training would be void
├── TrainingError     training had to stop (loss not finite, a rank lost)
├── EvaluationError   an evaluation that cannot be made or scored
└── DependencyError   an optional package is missing
"""

from __future__ import annotations

from collections.abc import Iterable


class EndPromptError(Exception):
    """Base of all errors that the command line prints in one line, without a traceback."""


class RecipeError(EndPromptError, ValueError):
    """A recipe or a setting that cannot be used."""


class PositionError(EndPromptError, ValueError):
    """Positions that do not fit the target."""


class RopeError(EndPromptError, ValueError):
    """RoPE scaling that cannot be applied or written."""


class ModelError(EndPromptError):
    """A model that cannot be found, read or extended."""


class TextError(EndPromptError):
    """Text that cannot be found, read or is too short."""


class DataError(EndPromptError):
    """Prepared data that is broken or does not belong to the run."""


class OutputError(EndPromptError):
    """An output folder that cannot be used, or a disk that is full."""


class ProbeError(EndPromptError):
    """The position check failed: training would not see the far distances."""


class TrainingError(EndPromptError):
    """Training had to stop."""


class EvaluationError(EndPromptError):
    """An evaluation that cannot be made or scored."""


class DependencyError(EndPromptError, ImportError):
    """An optional package is missing."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known name closest to `name`, or '' when none is close.

    >>> nearest("recal", ["recall", "pose"])
    " (did you mean 'recall'?)"
    """
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
