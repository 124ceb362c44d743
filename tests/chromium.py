"""A real Chromium, driven over chromedriver's HTTP interface."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


class Browser:
    """One WebDriver session."""

    def __init__(self, port: str, profile: Path) -> None:
        self._root = f"http://127.0.0.1:{port}"
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = self.send("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._root += f"/session/{session['sessionId']}"

    def send(self, path: str, body: dict[str, Any] | None) -> Any:
        """POST a command (DELETE when there is no body) and give its value."""
        request = urllib.request.Request(
            self._root + path,
            data=None if body is None else json.dumps(body).encode(),
            method="DELETE" if body is None else "POST",
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def devtools(self, command: str, **arguments: Any) -> Any:
        """One command of the DevTools protocol."""
        return self.send("/goog/cdp/execute", {"cmd": command, "params": arguments})

    def open(self, address: str, *, width: int = 1280, dark: bool = False) -> None:
        """Show a page at a width, in light or dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.send("/url", {"url": address})

    def ask(self, script: str) -> Any:
        """What a script returns in the page."""
        return self.send("/execute/sync", {"script": script, "args": []})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Entries of a log since it was last asked for."""
        return self.send("/se/log", {"type": kind})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert driver.stdout is not None
    line = next(line for line in driver.stdout if "started successfully on port" in line)
    port = line.rstrip().rstrip(".").rpartition(" ")[2]
    session = None
    try:
        session = Browser(port, tmp_path_factory.mktemp("profile"))
        yield session
    finally:
        if session is not None:
            session.send("", None)
        driver.terminate()
        driver.communicate(timeout=30)
