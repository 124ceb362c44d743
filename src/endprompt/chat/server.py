"""A page on this machine for a conversation: bound to 127.0.0.1, answers streamed as they come.

    GET  /        the page; it shows everything as text, and loads its own files alone
    GET  /state   what was said, and the window's use
    POST /ask     {"question"}: JSON lines {"reading"}, {"text"} ..., {"done"} or {"error"}
    POST /start   {"text", "name"}: a new conversation about another text

Requests that a foreign page makes a browser send are refused: by the name they come under (Host),
by their origin, and by their type.
"""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, cast

from endprompt.chat.conversation import Conversation
from endprompt.errors import EndPromptError, EvaluationError
from endprompt.io import records

ADDRESS = "127.0.0.1"
LARGEST_BODY = 2**26
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class ChatServer(ThreadingHTTPServer):
    """One conversation, one question at a time.

    name, file  of the model and of the text, for the page
    tokens      longest answer
    port        0: any that is free

    Raises EvaluationError for a port that is taken.
    """

    daemon_threads = True

    def __init__(self, talk: Conversation, *, name: str, file: str, tokens: int, port: int) -> None:
        self.talk, self.name, self.file, self.tokens = talk, name, file, tokens
        self.busy = threading.Lock()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise EvaluationError(f"port {port} is taken: give another with --port") from None

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{ADDRESS}:{self.server_port}"

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        return {
            "model": self.name,
            "file": self.file,
            "tokens": self.tokens,
            "window": self.talk.window,
            "used": self.talk.used,
            "turns": self.talk.turns,
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error of the server's."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    @property
    def chat(self) -> ChatServer:
        """The server with its conversation."""
        return cast(ChatServer, self.server)

    def do_GET(self) -> None:
        if not self._from_here():
            return
        if self.path == "/state":
            self._reply(HTTPStatus.OK, self.chat.state())
        elif self.path in FILES:
            name, kind = FILES[self.path]
            body = resources.files("endprompt.chat").joinpath(name).read_bytes()
            self._send(HTTPStatus.OK, kind, body)
        else:
            self._reply(HTTPStatus.NOT_FOUND, {"error": "no such page"})

    def do_POST(self) -> None:
        if not self._from_here():
            return
        asked = self._body()
        if asked is None:
            return
        if self.path not in ("/ask", "/start"):
            self._reply(HTTPStatus.NOT_FOUND, {"error": "no such page"})
            return
        if not self.chat.busy.acquire(blocking=False):
            self._reply(HTTPStatus.CONFLICT, {"error": "busy with the question before: wait"})
            return
        try:
            if self.path == "/ask":
                last_word = self._ask(asked.get("question"))
            else:
                last_word = self._start(asked.get("text"), asked.get("name"))
        finally:
            self.chat.busy.release()
        last_word()  # the next question may come as soon as this one's answer is whole

    def _start(self, text: Any, name: Any) -> Callable[[], None]:
        if not (isinstance(text, str) and isinstance(name, str)):
            said = {"error": "text and name have to be strings"}
            return lambda: self._reply(HTTPStatus.BAD_REQUEST, said)
        before = self.chat.talk
        self.chat.talk = Conversation(before.model, before.tokenizer, text)
        self.chat.file = name
        return lambda: self._reply(HTTPStatus.OK, self.chat.state())

    def _ask(self, question: Any) -> Callable[[], None]:
        from transformers import TextStreamer

        if not (isinstance(question, str) and question.strip()):
            return lambda: self._reply(HTTPStatus.BAD_REQUEST, {"error": "no question"})
        lines = _Lines(self)
        talk = self.chat.talk

        class Words(TextStreamer):
            """Gives words to the browser as they are whole."""

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
                if text:
                    lines.write({"text": text})

        used, tokens_read = talk.prompt(question)
        lines.write({"reading": tokens_read, "used": used, "window": talk.window})
        try:
            answer = talk.ask(
                question,
                max_new_tokens=self.chat.tokens,
                streamer=Words(talk.tokenizer, skip_prompt=True, skip_special_tokens=True),
                stop=lambda: lines.gone,
            )
        except EndPromptError as error:
            last: dict[str, Any] = {"error": str(error)}
        except Exception as error:  # out of memory, say: the page has to hear of it
            last = {"error": f"the model failed: {error}"}
        else:
            last = {"done": {"answer": answer, **self.chat.state()}}
        return lambda: lines.end(last)

    def _from_here(self) -> bool:
        port = self.chat.server_port
        hosts = {f"{ADDRESS}:{port}", f"localhost:{port}"}
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if host in hosts and (origin is None or origin == f"http://{host}"):
            return True
        self.close_connection = True
        self._reply(HTTPStatus.FORBIDDEN, {"error": "only for pages of this address"})
        return False

    def _body(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length", "")
        self.close_connection = True  # until the body was read
        if self.headers.get("Content-Type") != "application/json":
            self._reply(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"error": "send application/json"})
            return None
        digits = len(str(LARGEST_BODY))
        if not (length.isascii() and length.isdecimal()) or len(length) > digits:
            length = str(LARGEST_BODY + 1)  # more digits than int() takes, or no number at all
        if int(length) > LARGEST_BODY:
            said = {"error": f"send at most {LARGEST_BODY:,} bytes, and say how many"}
            self._reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, said)
            return None
        try:
            body = records.parse(self.rfile.read(int(length)))
        except ValueError:
            body = None
        self.close_connection = False
        if not isinstance(body, dict):
            self._reply(HTTPStatus.BAD_REQUEST, {"error": "that is no JSON object"})
            return None
        return body

    def _reply(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.begin(status, {"Content-Type": kind, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def begin(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        """Send the head of an answer."""
        self.send_response(status)
        for name, value in (HEADERS | headers).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def version_string(self) -> str:
        """Name of the server, without versions."""
        return "endprompt"

    def log_message(self, format: str, *args: Any) -> None:
        """What is asked stays between the page and the model."""


class _Lines:
    """JSON lines in chunks, until the browser is gone."""

    def __init__(self, handler: _Handler) -> None:
        self.gone = False
        self._out = handler.wfile
        handler.begin(
            HTTPStatus.OK,
            {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"},
        )

    def write(self, value: dict[str, Any]) -> None:
        """Send one line at once."""
        line = json.dumps(value).encode() + b"\n"
        self._raw(b"%x\r\n%b\r\n" % (len(line), line))

    def end(self, value: dict[str, Any]) -> None:
        """Send the last line and close the answer."""
        self.write(value)
        self._raw(b"0\r\n\r\n")

    def _raw(self, chunk: bytes) -> None:
        if self.gone:
            return
        try:
            self._out.write(chunk)
            self._out.flush()
        except OSError:
            self.gone = True
