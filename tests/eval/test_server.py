"""The client against a real server that errs, dawdles and talks nonsense."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from endprompt.eval.results import Question, answer_all
from endprompt.eval.server import Server, ServerError, ServerUnusable

Reply = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


class Fake:
    """Plays replies one after the other, the last one for ever."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    fake.requests.append({"path": self.path, **body})
                    fake.headers.append(dict(self.headers))
                    reply = fake.replies.pop(0) if len(fake.replies) > 1 else fake.replies[0]
                reply(self, body)

            def log_message(self, *_given: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def good(text: str = " 42") -> Reply:
    body = {"choices": [{"text": text, "message": {"content": text}}]}
    return lambda handler, _body: send(handler, 200, json.dumps(body).encode())


def status(code: int, **headers: str) -> Reply:
    return lambda handler, _body: send(handler, code, b'{"error": "busy"}', **headers)


def nonsense(body: bytes) -> Reply:
    return lambda handler, _body: send(handler, 200, body)


def slow(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    time.sleep(1.0)
    good()(handler, body)


def hang_up(handler: BaseHTTPRequestHandler, _body: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def client(fake: Fake, waits: list[float] | None = None, **more: Any) -> Server:
    waits = [] if waits is None else waits
    return Server(fake.url, "m", **{"timeout": 0.4, "sleep": waits.append, **more})


def test_a_completion_is_asked_greedily(fake, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    fake.replies = [good()]
    assert client(fake).answer("6 times 7 is", 5, ("\n",)) == " 42"
    assert fake.requests == [
        {
            "path": "/v1/completions",
            "model": "m",
            "prompt": "6 times 7 is",
            "max_tokens": 5,
            "temperature": 0,
            "stop": ["\n"],
        }
    ]
    assert fake.headers[0]["Authorization"] == "Bearer sesame"
    client(fake, chat=True).answer("hello", 5)
    assert fake.requests[1]["path"] == "/v1/chat/completions"
    assert fake.requests[1]["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (status(500), "status 500"),
        (status(429), "status 429"),
        (slow, "timeout"),
        (hang_up, "nonsense"),
        (nonsense(b"<html>gateway</html>"), "nonsense"),
        (nonsense(b'{"choices": []}'), "nonsense"),
        (nonsense(b'{"choices": [{"text": null, "message": {"content": null}}]}'), "nonsense"),
        (nonsense(b"\xff\xfe"), "nonsense"),
    ],
)
def test_each_trouble_is_retried_later_and_later_then_raised(fake, trouble, kind):
    waits: list[float] = []
    fake.replies = [trouble, trouble, good()]
    server = client(fake, waits, pause=0.5)
    assert server.answer("p", 5) == " 42"
    assert waits == [0.5, 1.0]
    assert server.troubles == {kind: 2}
    fake.replies = [trouble]
    with pytest.raises(ServerError, match="failed 3 times, last: "):
        client(fake, tries=3).answer("p", 5)


def test_retry_after_is_kept(fake):
    waits: list[float] = []
    fake.replies = [status(503, Retry_After="7"), status(503, Retry_After="soon"), good()]
    assert client(fake, waits, pause=2.0).answer("p", 5) == " 42"
    assert waits == [7.0, 4.0]


def test_an_empty_answer_is_an_answer(fake):
    fake.replies = [good("")]
    assert client(fake).answer("p", 5) == ""
    assert len(fake.requests) == 1


def test_what_cannot_get_better_is_not_retried(fake):
    fake.replies = [status(400)]
    with pytest.raises(ServerError, match="refused the request: 400"):
        client(fake).answer("p", 5)
    fake.replies = [status(404)]
    with pytest.raises(ServerUnusable, match="check the address, the model's name 'm'"):
        client(fake).answer("p", 5)
    assert len(fake.requests) == 2


def test_nobody_at_the_address_is_retried_and_named():
    waits: list[float] = []
    server = Server("http://127.0.0.1:9/v1", "m", tries=3, pause=1, sleep=waits.append)
    with pytest.raises(ServerError, match=r"failed 3 times, last: .*refused"):
        server.answer("p", 5)
    assert waits == [1, 2]
    assert server.troubles == {"connection": 3}


def test_a_run_on_a_bad_server_counts_failures_and_scores_none_of_them_zero(fake, tmp_path):
    def moody(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        number = int(body["prompt"])
        (status(500) if number % 3 == 0 else good(str(number)))(handler, body)

    fake.replies = [moody]
    questions = [
        Question(
            id=str(n), task="t", length=1, prompt=str(n), max_new_tokens=3, references=(str(n),)
        )
        for n in range(9)
    ]

    def score(question: Question, prediction: str) -> dict[str, float]:
        return {"hit": float(prediction == question.references[0])}

    server = client(fake, tries=2)
    summary = answer_all(
        tmp_path / "r", {}, questions, server, score, workers=4, survives=ServerError
    )
    assert (summary.asked, summary.answered, summary.failed) == (9, 6, 3)
    assert [(cell.mean, cell.samples, cell.failed) for cell in summary.cells] == [(1.0, 6, 3)]
    assert server.troubles["status 500"] == 6
    fake.replies = [lambda handler, body: good(body["prompt"])(handler, body)]
    summary = answer_all(
        tmp_path / "r", {}, questions, server, score, workers=4, survives=ServerError
    )
    assert (summary.answered, summary.failed) == (9, 0)
    assert len(fake.requests) == 6 + 3 * 2 + 3
