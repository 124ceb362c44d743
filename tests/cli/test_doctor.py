"""`endprompt doctor`: what it checks, what it writes, how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_doctor_passes_on_a_sound_model_and_writes_every_check(
    tiny: Path, endprompt: Run, tmp_path: Path
) -> None:
    out = tmp_path / "checks.json"
    done = endprompt("doctor", tiny, "--to", "1k", "--scaling", "yarn", "--json", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["rope_parameters"]["rope_type"] == "yarn"
    assert found["target"] == 1024
    assert {check["backend"] for check in found["checks"]} == {
        "-", "eager", "eager+checkpointing", "sdpa", "sdpa+checkpointing"}  # fmt: skip
    assert done.stdout.count("ok  ") == len(found["checks"]) == 16


def test_doctor_fails_with_one_line_when_rope_is_not_scaled(
    tiny: Path, endprompt: Run, tmp_path: Path
) -> None:
    out = tmp_path / "checks.json"
    done = endprompt("doctor", tiny, "--to", "1k", "--scaling", "none", "--json", out)
    assert done.returncode == 1
    assert "FAIL  RoPE is scaled" in done.stdout
    assert done.stderr.startswith("endprompt: position check failed, training would be void: RoPE")
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()
