"""The page's server: streams what the model says, one question at a time, to this machine alone."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from endprompt.chat import Conversation
from endprompt.chat.server import LARGEST_BODY, ChatServer
from endprompt.cli.app import run
from endprompt.errors import EvaluationError
from endprompt.models import checkpoint as models
from tiny_checkpoint import WINDOW, save_tiny

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("chat") / "m", initializer_range=0.4))


def talk(folder: str, text: str = "") -> Conversation:
    network = models.load(folder, models.load_config(folder))
    return Conversation(network, models.load_tokenizer(folder), text)


@contextmanager
def serving(asked: Conversation, **settings: Any) -> Iterator[ChatServer]:
    given = {"name": HOSTILE, "file": "book.txt", "tokens": 6, "port": 0} | settings
    with ChatServer(asked, **given) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(folder: str) -> Iterator[ChatServer]:
    with serving(talk(folder, "old mills")) as running:
        yield running


def send(
    server: ChatServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    kind = {} if body is None else {"Content-Type": "application/json"}
    sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    link.request(method, path, sent, kind | named)
    answer = link.getresponse()
    return answer, answer.read()


def ask(server: ChatServer, question: str) -> list[dict[str, Any]]:
    answer, body = send(server, "POST", "/ask", {"question": question})
    assert answer.status == 200
    return [json.loads(line) for line in body.splitlines()]


def test_an_answer_comes_in_lines_and_is_that_of_the_terminal(
    server: ChatServer, folder: str
) -> None:
    lines = ask(server, "where")
    alone = talk(folder, "old mills")
    size, unread = alone.prompt("where")
    expected = alone.ask("where", max_new_tokens=6)
    assert lines[0] == {"reading": unread, "used": size, "window": WINDOW}
    assert "".join(line["text"] for line in lines[1:-1]) == expected
    done = lines[-1]["done"]
    assert done["answer"] == expected
    assert (done["used"], done["window"]) == (alone.used, WINDOW)
    assert done["turns"] == [["where", expected]], "the text before the question is not shown"
    state = json.loads(send(server, "GET", "/state")[1])
    assert state == {key: value for key, value in done.items() if key != "answer"}
    again = ask(server, "when")[0]["reading"]
    assert again < alone.prompt("when")[1] + unread, "what was read is not read again"


def test_words_are_sent_before_the_answer_is_whole(folder: str) -> None:
    asked = talk(folder)
    held = threading.Event()

    def words(question: str, *, streamer: Any, **_: Any) -> str:
        streamer.on_finalized_text("the river ")
        assert held.wait(60)
        return "the river ran"

    asked.ask = words  # ty: ignore[invalid-assignment]
    with serving(asked) as server:
        link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        link.request("POST", "/ask", b'{"question": "where"}', {"Content-Type": "application/json"})
        answer = link.getresponse()
        answer.readline()
        assert json.loads(answer.readline()) == {"text": "the river "}
        refused, said = send(server, "POST", "/ask", {"question": "when"})
        assert (refused.status, b"busy" in said) == (409, True)
        held.set()
        assert json.loads(answer.readline())["done"]["answer"] == "the river ran"


def test_a_browser_that_leaves_ends_the_answer(folder: str) -> None:
    asked = talk(folder)
    ended = threading.Event()
    heard: list[bool] = []

    def words(question: str, *, streamer: Any, stop: Any, **_: Any) -> str:
        for _ in range(10_000):
            streamer.on_finalized_text("word " * 500)
            if stop():
                break
        heard.append(stop())
        ended.set()
        return ""

    asked.ask = words  # ty: ignore[invalid-assignment]
    with serving(asked) as server:
        link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        link.request("POST", "/ask", b'{"question": "where"}', {"Content-Type": "application/json"})
        link.getresponse().readline()
        link.close()
        assert ended.wait(60)
        assert heard == [True]


def test_a_question_past_the_window_is_said_in_the_stream_and_the_next_is_answered(
    server: ChatServer,
) -> None:
    assert "exceed the window of 128" in ask(server, "x" * WINDOW)[-1]["error"]
    assert "done" in ask(server, "where")[-1]


def test_a_failure_of_the_model_is_said_and_the_server_lives(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(server.talk.model, "generate", fail)
        assert ask(server, "where")[-1] == {"error": "the model failed: out of memory"}
    assert "done" in ask(server, "where")[-1]


def test_another_text_begins_another_conversation(server: ChatServer) -> None:
    ask(server, "where")
    answer, body = send(server, "POST", "/start", {"text": "cloth", "name": HOSTILE})
    state = json.loads(body)
    assert answer.status == 200
    assert (state["turns"], state["used"], state["file"]) == ([], 0, HOSTILE)
    ask(server, "when")
    assert server.talk.messages[0]["content"] == "cloth\n\nwhen"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", None, {"Host": "evil.example"}, 403),
        ("GET", "/state", None, {"Origin": "http://evil.example"}, 403),
        ("POST", "/ask", {"question": "x"}, {"Origin": "null"}, 403),
        ("POST", "/ask", {"question": "x"}, {"Content_Type": "text/plain"}, 415),
        ("POST", "/ask", b"{", {}, 400),
        ("POST", "/ask", [], {}, 400),
        ("POST", "/ask", {"question": " "}, {}, 400),
        ("POST", "/start", {"text": 3}, {}, 400),
        ("POST", "/ask", b"", {"Content_Length": str(LARGEST_BODY + 1)}, 413),
        ("POST", "/ask", b"", {"Content_Length": "9" * 5000}, 413),
        ("POST", "/ask", b"", {"Content_Length": "-1"}, 413),
        ("POST", "/ask", b"[" * 100_000, {}, 400),
        ("POST", "/ask", b'{"question": "\\ud800"}', {}, 400),
        ("POST", "/ask", b'{"question": ' + b"9" * 5000 + b"}", {}, 400),
        ("POST", "/other", {}, {}, 404),
        ("GET", "/../chat/server.py", None, {}, 404),
    ],
)
def test_what_a_foreign_page_or_a_slip_could_send_is_refused(
    server: ChatServer, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    answer, said = send(server, method, path, body, **headers)
    assert answer.status == status
    assert "error" in json.loads(said)
    assert server.talk.messages == []


def test_the_page_and_its_files_name_a_policy_and_hold_nothing_of_the_model(
    server: ChatServer,
) -> None:
    for path in ("/", "/page.css", "/page.js"):
        answer, body = send(server, "GET", path)
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Server"] == "endprompt"
        assert HOSTILE.encode() not in body
        assert b"innerHTML" not in body
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_one_line(server: ChatServer, folder: str) -> None:
    with pytest.raises(EvaluationError, match="is taken: give another with --port"):
        ChatServer(talk(folder), name="m", file="", tokens=4, port=server.server_port)


def test_the_command_serves_until_it_is_stopped(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[dict[str, Any]] = []

    def stop(server: ChatServer) -> None:
        found.append(server.state())
        raise KeyboardInterrupt

    monkeypatch.setattr(ChatServer, "serve_forever", stop)
    assert run(["chat", folder, "--serve", "--port", "0", "--tokens", "9"]) == 0
    assert "http://127.0.0.1:" in capsys.readouterr().out
    assert (found[0]["model"], found[0]["tokens"], found[0]["turns"]) == ("m", 9, [])
    assert run(["chat", folder, "--port", "1"]) == 2
    assert "--port goes with --serve" in capsys.readouterr().err
