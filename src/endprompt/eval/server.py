"""A client of OpenAI-compatible servers (vLLM, SGLang, llama.cpp): patient, and honest on failure.

A request that times out, is refused or answered with nonsense is tried again, later each time.
What still fails raises; it never becomes an empty answer.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from endprompt.errors import EvaluationError
from endprompt.io import records
from endprompt.io.secrets import redact

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
HOPELESS = frozenset({401, 403, 404, 405})
"""Statuses that every other request would get as well: the run stops."""


class ServerError(EvaluationError):
    """One request failed for good."""


class ServerUnusable(EvaluationError):
    """No request can succeed: wrong address, model or key."""


class Address:
    """The root of a server's API; what is secret in it is sent and never shown.

    url  http or https, with user info and a query where the server wants them
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EvaluationError(
                f"server {redact(url)!r}: give its address as http://host:port/v1"
            )
        user, _, host = parts.netloc.rpartition("@")
        self.shown = f"{parts.scheme}://{host}{parts.path}".rstrip("/")
        """The address without user info and query."""
        self._query = f"?{parts.query}" if parts.query else ""
        self._headers = {"Content-Type": "application/json"}
        key = os.environ.get("OPENAI_API_KEY")
        if user:
            token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        elif key:
            self._headers["Authorization"] = f"Bearer {key}"

    def request(self, path: str, body: dict[str, Any]) -> urllib.request.Request:
        """A request that posts JSON to a path below the root."""
        return urllib.request.Request(
            self.shown + path + self._query,
            data=json.dumps(body).encode(),
            headers=self._headers,
            method="POST",
        )


class Server:
    """Asks a server for greedy completions.

    url       the API's root, such as http://127.0.0.1:8000/v1
    model     the name under which it serves the model
    chat      send the prompt as a user's message (the server applies its chat template)
    timeout   seconds to wait for one answer
    tries     how often a request is sent at most
    pause     seconds before the second try; doubled for each further one, at most a minute. A
              server's own Retry-After is kept
    The key, where one is needed, is read from OPENAI_API_KEY. Usable from several threads.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        chat: bool = False,
        timeout: float = 600.0,
        tries: int = 5,
        pause: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._address = Address(url)
        self.url = self._address.shown
        self.model = model
        self.chat = chat
        self.timeout = timeout
        self.tries = tries
        self.pause = pause
        self._sleep = sleep
        self._lock = threading.Lock()
        self.troubles: Counter[str] = Counter()
        """What went wrong so far, by kind, retried or not."""

    def answer(self, prompt: str, max_new_tokens: int, stop: Sequence[str] = ()) -> str:
        """The greedy continuation. Raises ServerError, or ServerUnusable."""
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_new_tokens,
            "temperature": 0,
        }
        if self.chat:
            request["messages"] = [{"role": "user", "content": prompt}]
        else:
            request["prompt"] = prompt
        if stop:
            request["stop"] = list(stop)
        path = "/chat/completions" if self.chat else "/completions"
        wait = self.pause
        for attempt in range(1, self.tries + 1):
            trouble, retry_after = "", None
            try:
                return self._send(path, request)
            except urllib.error.HTTPError as error:
                trouble = f"status {error.code}"
                detail = _excerpt(error)
                self._count(trouble)
                if error.code in HOPELESS:
                    raise ServerUnusable(
                        f"{self.url}{path} answers {error.code}{detail}: check the address, "
                        f"the model's name {self.model!r} and OPENAI_API_KEY"
                    ) from error
                if error.code not in RETRIED:
                    raise ServerError(
                        f"{self.url} refused the request: {error.code}{detail}"
                    ) from (error)
                retry_after = _seconds(error.headers.get("Retry-After"))
            except TimeoutError:
                trouble = f"no answer in {self.timeout:g} s"
                self._count("timeout")
            except _Nonsense as error:
                trouble = str(error)
                self._count("nonsense")
            except OSError as error:
                reason = getattr(error, "reason", error)
                late = isinstance(reason, TimeoutError)
                trouble = f"no answer in {self.timeout:g} s" if late else str(reason)
                self._count("timeout" if late else "connection")
            if attempt < self.tries:
                self._sleep(min(retry_after if retry_after is not None else wait, 60.0))
                wait = min(2 * wait, 60.0)
        raise ServerError(f"{self.url} failed {self.tries} times, last: {trouble}")

    def _send(self, path: str, body: dict[str, Any]) -> str:
        request = self._address.request(path, body)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                raw = response.read()
        except (ConnectionError, TimeoutError, urllib.error.URLError):
            raise
        except Exception as error:  # a broken status line, an early end
            raise _Nonsense(f"broken HTTP ({type(error).__name__})") from error
        try:
            choice = records.parse(raw)["choices"][0]
            text = choice["message"]["content"] if self.chat else choice["text"]
        except (ValueError, LookupError, TypeError) as error:
            raise _Nonsense(f"not a completion: {raw[:60]!r}") from error
        if not isinstance(text, str):
            raise _Nonsense(f"not a completion: its text is {type(text).__name__}")
        return text

    def _count(self, kind: str) -> None:
        with self._lock:
            self.troubles[kind] += 1


class _Nonsense(Exception):
    """An answer that is no completion."""


def _excerpt(error: urllib.error.HTTPError) -> str:
    try:
        text = redact(" ".join(error.read(400).decode("utf-8", "replace").split()))
    except OSError:
        return ""
    return f" ({text[:160]})" if text else ""


def _seconds(header: str | None) -> float | None:
    try:
        return max(float(header), 0.0) if header else None
    except ValueError:
        return None
