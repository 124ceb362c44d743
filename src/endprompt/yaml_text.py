"""The one reader of YAML: safe, and with one type of error."""

from __future__ import annotations

from typing import Any

import yaml


def load(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Value of a YAML text.

    Raises yaml.YAMLError, also where PyYAML raises something else: for nesting deeper than
    Python's stack, a number of thousands of digits, an impossible date.
    """
    try:
        return yaml.load(text, loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deep") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise yaml.YAMLError(str(error).partition(";")[0]) from None
