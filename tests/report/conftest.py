from __future__ import annotations

import json
from typing import Any

import pytest
from run_sample import sample


@pytest.fixture
def run() -> dict[str, Any]:
    """The record as it comes back from its JSON file."""
    return json.loads(json.dumps(sample()))
