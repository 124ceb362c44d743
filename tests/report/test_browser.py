"""The page in a real Chromium.

`make check-browser` runs these; they need `chromium` and `chromedriver` on the path.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_sample import sample

from chromium import Browser
from endprompt.report import page

pytestmark = pytest.mark.browser

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = json.loads(json.dumps(sample()))
    run["model"]["name"] = run["text"]["name"] = run["arms"][2]["label"] = HOSTILE
    run["example_row"]["segments"][0]["text"] = HOSTILE
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.render(run), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_has_no_error_asks_no_network_and_is_no_wider_than_the_screen(
    browser: Browser, file: Path, width: int, dark: bool
) -> None:
    browser.log("browser"), browser.log("performance")
    browser.open(file.as_uri(), width=width, dark=dark)
    assert browser.log("browser") == []
    assert browser.asked_elsewhere() == []
    assert browser.fits()


def test_hostile_title_stays_text(browser: Browser, file: Path) -> None:
    browser.open(file.as_uri())
    assert HOSTILE in browser.ask("return document.title")
    assert HOSTILE in browser.ask("return document.querySelector('h1').textContent")
    assert browser.ask("return document.images.length") == 0


def test_text_stands_out_from_its_ground_in_light_and_dark(browser: Browser, file: Path) -> None:
    for dark in (False, True):
        browser.open(file.as_uri(), dark=dark)
        least = browser.least_contrast(leaving_out="#needles-figure_1 text, .skip")
        assert least >= 4.5


def test_tables_sort_by_number_and_back_with_the_unmeasured_last(
    browser: Browser, file: Path
) -> None:
    browser.open(file.as_uri())
    column = """
    const table = document.querySelector("#results table");
    table.tHead.rows[0].cells[%d].querySelector("button").click();
    return [[...table.tBodies[0].rows].map(row => row.cells[%d].dataset.value ?? ""),
            table.tHead.rows[0].cells[%d].getAttribute("aria-sort")];
    """
    for direction, reverse in (("ascending", False), ("descending", True)):
        values, said = browser.ask(column % (3, 3, 3))
        assert values == sorted(values, key=float, reverse=reverse)
        assert said == direction
    values, said = browser.ask(column % (4, 4, 4))
    assert values == [""] * 5


def test_tables_are_reached_and_sorted_by_keyboard(browser: Browser, file: Path) -> None:
    browser.open(file.as_uri())
    browser.ask("document.querySelector('#results th button').focus()")
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    browser.devtools("Input.dispatchKeyEvent", type="keyDown", **key)
    browser.devtools("Input.dispatchKeyEvent", type="keyUp", **key)
    assert browser.ask("return document.querySelector('#results th').ariaSort") == "ascending"


def test_print_opens_what_is_folded(browser: Browser, file: Path) -> None:
    browser.open(file.as_uri())
    count = "return document.querySelectorAll('details:not([open])').length"
    assert browser.ask(count) > 0
    browser.ask("dispatchEvent(new Event('beforeprint'))")
    assert browser.ask(count) == 0
    browser.ask("dispatchEvent(new Event('afterprint'))")
    assert browser.ask(count) > 0
