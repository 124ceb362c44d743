"""What the command says when it is interrupted."""

from __future__ import annotations

import pytest

from endprompt.cli import app


def test_interrupt_from_the_keyboard_says_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @app.app.command(name="endless", hidden=True)
    def endless() -> None:
        raise KeyboardInterrupt

    assert app.run(["endless"]) == 130
    assert capsys.readouterr().err == "endprompt: stopped; give the same command again to resume\n"
