"""A real Chromium, driven over chromedriver's HTTP interface."""

from __future__ import annotations

import base64
import json
import os
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

CONTRAST = """
const light = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = light(getComputedStyle(document.body).backgroundColor);
const ratios = [];
const kinds = "p, li, td, th, caption, a, small, summary, text";
for (const one of document.querySelectorAll(kinds)) {
  if (one.matches("%s")) continue;
  const style = getComputedStyle(one);
  const ink = light(one.tagName === "text" ? style.fill : style.color);
  ratios.push((Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05));
}
return Math.min(...ratios);
"""


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

    def asked_elsewhere(self) -> list[str]:
        """Addresses outside of files that were asked for since the log was last read."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith(("file:", "data:"))]

    def fits(self) -> bool:
        """Whether the page is no wider than the screen."""
        return self.ask(
            "const page = document.documentElement; return page.scrollWidth <= page.clientWidth"
        )

    def least_contrast(self, *, leaving_out: str = ".skip") -> float:
        """Smallest contrast of text against the page's ground; WCAG wants 4.5."""
        return self.ask(CONTRAST % leaving_out)

    def keep_picture(self, name: str, *, whole: bool = False) -> None:
        """A screenshot into $SCREENSHOTS, for a person to look at; `whole`: of all the page."""
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            data = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(data))


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
