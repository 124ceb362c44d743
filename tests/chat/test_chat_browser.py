"""The chat's page in a real Chromium: what a person does with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chromium import Browser
from endprompt.chat import Conversation
from endprompt.chat.server import ChatServer
from endprompt.models import checkpoint as models
from tiny_checkpoint import save_tiny

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


class Talk(Conversation):
    """Says what it is told to, word by word, and can be held in the middle."""

    answer = f"It was {HOSTILE} that opened the gate."
    held = threading.Event()

    def ask(self, question: str, *, streamer: Any = None, stop: Any = None, **_: Any) -> str:
        said = ""
        for word in self.answer.split(" "):
            said += f"{word} "
            streamer.on_finalized_text(f"{word} ")
            if word == "that":
                while not self.held.wait(0.05):
                    streamer.on_finalized_text(".")
                    if stop():
                        return said
        self.messages += [{"role": "user", "content": question},
                          {"role": "assistant", "content": said}]  # fmt: skip
        self._read = list(range(90))
        return said


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChatServer]:
    folder = str(save_tiny(tmp_path / "m"))
    model = models.load(folder, models.load_config(folder))
    talk = Talk(model, models.load_tokenizer(folder), "")
    Talk.held.clear()
    with ChatServer(talk, name=HOSTILE, file=f"{HOSTILE}.txt", tokens=16, port=0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def until(browser: Browser, script: str) -> None:
    """Wait for a script to give a true value."""
    for _ in range(300):
        if browser.ask(f"return {script}"):
            return
        time.sleep(0.1)
    raise AssertionError(f"never true: {script}\n{browser.ask('return document.body.innerText')}")


def type_and_enter(browser: Browser, text: str) -> None:
    browser.ask("document.getElementById('question').focus()")
    browser.devtools("Input.insertText", text=text)
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    browser.devtools("Input.dispatchKeyEvent", type="keyDown", **key)
    browser.devtools("Input.dispatchKeyEvent", type="keyUp", **key)


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_question_is_answered_as_text_while_it_streams(
    browser: Browser, server: ChatServer, width: int, dark: bool
) -> None:
    browser.log("browser")
    browser.open(server.url, width=width, dark=dark)
    until(browser, "document.getElementById('use').textContent.startsWith('0 of 128 tokens')")
    type_and_enter(browser, f"Who? {HOSTILE}")
    until(browser, "document.querySelector('.answer')?.textContent.includes('that')")
    assert (
        browser.ask("return document.querySelector('.question').textContent") == f"Who? {HOSTILE}"
    )
    assert not browser.ask("return document.getElementById('stop').hidden")
    assert browser.ask("return document.getElementById('send').disabled")
    assert not browser.ask("return document.getElementById('use').textContent.startsWith('0 ')")
    browser.keep_picture(f"chat-{width}-streaming")
    Talk.held.set()
    until(browser, "document.getElementById('status').textContent.startsWith('answered in')")
    said = browser.ask("return document.querySelector('.answer').textContent")
    assert said.strip() == Talk.answer
    assert browser.ask("return document.getElementById('use').textContent") == (
        "90 of 128 tokens, 70 %"
    )
    assert "taken" not in browser.ask("return document.title").partition(" · ")[2]
    assert browser.ask("return document.images.length + document.scripts.length") == 1
    assert browser.fits()
    assert browser.log("browser") == []
    browser.keep_picture(f"chat-{width}")
    browser.open(server.url, width=width, dark=dark)
    until(browser, "document.querySelectorAll('.answer').length === 1")


def test_a_question_typed_before_the_page_knows_what_was_said_is_kept(
    browser: Browser, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, state = threading.Event(), server.state
    monkeypatch.setattr(server, "state", lambda: (asked.wait(20), state())[1])
    browser.open(server.url)
    type_and_enter(browser, "Who?")
    asked.set()
    until(browser, "document.querySelector('.answer')?.textContent.includes('that')")
    assert browser.ask("return document.querySelector('.question').textContent") == "Who?"


def test_an_answer_is_stopped_by_its_button(browser: Browser, server: ChatServer) -> None:
    browser.open(server.url)
    type_and_enter(browser, "Who?")
    until(browser, "document.querySelector('.answer')?.textContent.includes('that')")
    browser.ask("document.getElementById('stop').click()")
    until(browser, "document.getElementById('status').textContent === 'stopped'")
    assert browser.ask("return document.getElementById('stop').hidden")
    for _ in range(100):
        if not server.busy.locked():
            break
        time.sleep(0.1)
    assert not server.busy.locked(), "the model went on for nobody"


def test_another_text_is_asked_about(browser: Browser, server: ChatServer) -> None:
    browser.open(server.url)
    until(browser, "document.getElementById('use').textContent !== ''")
    browser.ask("document.getElementById('another').open = true")
    browser.ask("document.getElementById('text').value = 'grain and cloth'")
    browser.ask("document.querySelector('#start button').click()")
    until(browser, "document.getElementById('about').textContent === 'about a text'")
    assert server.talk.text == "grain and cloth"
    assert browser.ask("return document.activeElement.id") == "question"


def test_a_refusal_is_shown_in_place_of_the_answer(browser: Browser, server: ChatServer) -> None:
    browser.open(server.url)
    until(browser, "document.getElementById('use').textContent !== ''")
    with server.busy:
        type_and_enter(browser, "Who?")
        until(browser, "document.querySelector('.problem') !== null")
    assert "busy" in browser.ask("return document.querySelector('.problem').textContent")
    assert not browser.ask("return document.getElementById('send').disabled")
