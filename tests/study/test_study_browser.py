"""The page of studies in a real Chromium: a shipped study, and one whose words are hostile."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import Planted, study

from chromium import Browser
from endprompt.study import compare, definition, page

pytestmark = pytest.mark.browser

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
SHARES = {"endprompt-pose": 0.7, "endprompt": 0.4, "pose": 0.75, "short": 0.1}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ours = {recipe: dict.fromkeys((0.5, 1, 2, 4, "target"), s) for recipe, s in SHARES.items()}
    hostile = study({"a": 2, "b": 1}, title=HOSTILE, claim=HOSTILE, notes=[HOSTILE])
    hostile.arms["a"] = hostile.arms["a"].model_copy(update={"note": HOSTILE})
    found = compare.everything(
        [definition.load("structure"), hostile, definition.load("longbench")],
        "lab", Planted(ours), missing=3, seeds=3, command=f"endprompt study {HOSTILE}",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("study")
    page.write(found, folder)
    return folder / "study.html"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_has_no_error_asks_no_network_fits_and_can_be_read(
    browser: Browser, file: Path, width: int, dark: bool
) -> None:
    browser.log("browser"), browser.log("performance")
    browser.open(file.as_uri(), width=width, dark=dark)
    browser.keep_picture(f"study-{width}-{'dark' if dark else 'light'}", whole=True)
    browser.ask("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.log("browser") == []
    assert browser.asked_elsewhere() == []
    assert browser.fits()
    assert browser.least_contrast() >= 4.5
    browser.keep_picture(f"study-{width}-{'dark' if dark else 'light'}-open", whole=True)


def test_hostile_title_and_note_stay_text(browser: Browser, file: Path) -> None:
    browser.open(file.as_uri())
    assert browser.ask("return document.title") == "The paper's tables and figures, run"
    for place in ("h2", "section li", "nav a", "td", ".facts", "pre"):
        found = f"return [...document.querySelectorAll('{place}')].map(one => one.textContent)"
        assert any(HOSTILE in text for text in browser.ask(found)), place
    assert browser.ask("return document.images.length + document.scripts.length") == 1


@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_differences_sort_by_number_where_there_are_numbers_and_back(
    browser: Browser, file: Path, column: int
) -> None:
    browser.open(file.as_uri())
    click = f"""
    const table = [...document.querySelectorAll("#study-structure table")]
      .find(one => one.caption.textContent.includes("less every other arm"));
    const head = table.tHead.rows[0].cells[{column}];
    head.querySelector("button").click();
    return [head.ariaSort, [...table.tBodies[0].rows].map(row => {{
      const cell = row.cells[{column}];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    }})];
    """
    for direction, reverse in (("ascending", False), ("descending", True)):
        said, shown = browser.ask(click)
        assert said == direction
        numbers = [value for value in shown if not isinstance(value, str)]
        words = [value for value in shown if isinstance(value, str)]
        assert len(numbers) in ((0,) if column in (0, 3) else range(2, len(shown) + 1))
        if numbers:
            assert shown == [*sorted(numbers, reverse=reverse), *words], "what has none comes last"
        else:
            assert shown == sorted(words, reverse=reverse, key=str.lower)
