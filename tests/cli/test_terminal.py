"""Nothing from outside reaches a terminal that it would obey, and no secret is shown or written."""

from __future__ import annotations

import ast
import json
import logging
import os
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

import endprompt
from endprompt.cli import app, terminal
from endprompt.cli.app import run
from endprompt.cli.console import Console, Table

HOSTILE = "x\x1b[2J\rall is well\u202e\x9b31m"
FORGED = "x\nendprompt: all is well"
OBEYED = ("\x1b", "\r", "\u202e", "\x9b")


def assert_harmless(printed: str) -> None:
    assert not [character for character in OBEYED if character in printed]
    assert "endprompt: all is well" not in printed.splitlines()


@given(st.text())
def test_no_character_that_a_terminal_obeys_passes(text: str) -> None:
    stream = StringIO()
    terminal.Visible(stream).write(text)
    shown = stream.getvalue()
    assert all(c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) for c in shown)
    assert terminal.visible(shown) == shown
    assert "\n" not in terminal.one_line(text)
    shown.encode()


def test_bars_of_other_libraries_may_move(monkeypatch) -> None:
    stream = StringIO()
    errors = terminal.Visible(stream, errors=True)
    for text in ("\r 50%|#####", "\n\x1b[A", "\r\x1b[2Jcleared", "\x1b[A and text"):
        errors.write(text)
    assert stream.getvalue() == "\r 50%|#####\n\x1b[A\r\\x1b[2Jcleared\\x1b[A and text"


def test_rich_prints_what_it_adds_and_nothing_else(monkeypatch) -> None:
    stream = StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    console = Console(force_terminal=True, width=120, color_system="standard")
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(FORGED)
    console.print("[bold]bold[/bold]")
    assert "\x1b[1mbold" in stream.getvalue()
    for printed in (HOSTILE, FORGED, table):
        stream.truncate(0)
        console.print(printed, style=None, highlight=False)
        text = stream.getvalue()
        assert "\x1b[2J" not in text
        assert not [character for character in OBEYED[1:] if character in text]
        assert "endprompt: all is well" not in text.splitlines()
    stream.truncate(0)
    with Progress(console=console) as bar:
        bar.add_task(HOSTILE, total=1)
    assert "\x1b[2J" not in stream.getvalue()


def test_every_verb_prints_through_the_terminal_module() -> None:
    folder = Path(endprompt.__file__).parent / "cli"
    for path in sorted(folder.glob("*.py")):
        if path.name in ("terminal.py", "console.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                assert not names & {"rich.console.Console", "rich.table.Table"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "typer.echo", "typer.secho"), path


@pytest.fixture
def hostile_server():
    """Refuses every request with an error that holds escape sequences, and echoes its headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told = f"{HOSTILE} {FORGED} {self.headers} {self.path}"
            self.send_response(404)
            self.end_headers()
            self.wfile.write(told.encode())

        do_GET = do_HEAD = do_POST

        def log_message(self, format: str, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def hostile_texts(tmp_path: Path) -> list[list[str]]:
    """Sources that fail or are read, with names and keys from outside."""
    folder = tmp_path / "texts"
    folder.mkdir()
    broken = folder / f"{HOSTILE}.parquet"
    broken.write_bytes(b"PAR1")
    keys = folder / "keys.jsonl"
    keys.write_text(json.dumps({HOSTILE: "one", FORGED: "two"}) + "\n")
    forged = folder / f"{FORGED}.jsonl"
    forged.write_text("{}\n")
    absent = str(folder / f"{FORGED}{HOSTILE}.txt")
    wanted = ["--column", FORGED + HOSTILE]
    plain = folder / f"{FORGED}{HOSTILE}.py"
    plain.write_text("good text " * 50)
    latin = folder / os.fsdecode(b"caf\xe9.csv")
    latin.write_text("n,m\n")
    named = [[str(path)] for path in (broken, keys, forged, plain, latin)]
    return [*named, [absent], [str(keys), *wanted]]


def test_prepare_shows_what_is_hostile(
    tmp_path: Path, hostile_texts: list[list[str]], tiny: Path, capsys
) -> None:
    for number, words in enumerate(hostile_texts):
        out = tmp_path / f"out{number}{FORGED}{HOSTILE}"
        run(["prepare", *words, "-t", str(tiny), "-o", str(out)])
        printed = capsys.readouterr()
        assert printed.out + printed.err
        assert_harmless(printed.out + printed.err)


def test_other_verbs_show_what_is_hostile(
    tmp_path: Path, hostile_server: str, tiny: Path, capsys
) -> None:
    name = f"{FORGED}{HOSTILE}"
    bad = tmp_path / name
    bad.mkdir()
    (bad / "config.json").write_text(json.dumps({"model_type": HOSTILE, FORGED: HOSTILE}))
    (bad / "run.json").write_text(json.dumps({FORGED + HOSTILE: 1}))
    (bad / "recipe.yaml").write_text(f'{{"{name!r}": 1}}'.replace("'", ""))
    server = ["--server", f"http://{hostile_server}/v1"]
    commands = [
        ["extend", str(bad), "--out", str(tmp_path / "run")],
        ["extend", "--method", name],
        ["doctor", str(bad)],
        ["plan", str(bad)],
        ["report", str(bad)],
        ["export", str(bad), "-o", str(tmp_path / "exported")],
        ["export", "verify", str(bad)],
        ["inspect", "run", str(bad)],
        ["methods", name],
        ["prepare", "verify", str(bad)],
        ["prepare", "show", str(bad)],
        ["study", str(bad / "recipe.yaml")],
        ["lab", "--out", str(bad)],
        ["chat", str(bad), "--text", str(bad / name)],
        ["eval", "run", name, "--suite", "ruler", "--tokenizer", str(tiny), *server],
        ["train", str(bad / "recipe.yaml"), "--model", str(bad), "--data", str(bad), "--to", "64k"],
        [name],
    ]
    for command in commands:
        assert run(command) != 0, command
        printed = capsys.readouterr()
        assert printed.err, command
        assert_harmless(printed.out + printed.err)


def test_what_others_print_is_visible_too(capsys, monkeypatch) -> None:
    def verb(**_: object) -> None:
        print(HOSTILE, end="")  # as the streamer of a model's answer does
        logging.getLogger("any library").warning(HOSTILE)
        warnings.warn(HOSTILE, stacklevel=1)

    monkeypatch.setattr(app, "app", verb)
    assert run([]) == 0
    printed = capsys.readouterr()
    assert "x\\x1b[2J\\rall is well" in printed.out
    assert_harmless(printed.out + printed.err)


SECRETS = {
    "HF_TOKEN": "hf_plantedplantedplanted",
    "OPENAI_API_KEY": "sk-planted-openai-key-0001",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
}
IN_URLS = ("hunter2", "plantedsignature")


def test_no_secret_is_written_or_printed(
    tmp_path: Path,
    hostile_server: str,
    tiny: Path,
    served_text: str,
    capsys,
    monkeypatch,
) -> None:
    for key, value in SECRETS.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("ENDPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    secret = "X-Amz-Signature=plantedsignature"
    good = f"http://me:hunter2@{served_text}/a.jsonl?{secret}"
    gone = f"http://me:hunter2@{hostile_server}/a.jsonl?{secret}"
    server = f"http://me:hunter2@{hostile_server}/v1?{secret}"
    suite = ["--suite", "ruler", "--lengths", "1k", "--samples", "1", "--tokenizer"]
    model = ["-t", str(tiny)]
    commands = {
        "read": ["prepare", good, *model, "-o", "read"],
        "gone": ["prepare", gone, *model, "-o", "gone"],
        "mixture": ["prepare", "--mixture", "mixture.yaml", *model, "-o", "mixture"],
        "show": ["prepare", "show", gone],
        "server": ["eval", "run", "name", *suite, str(tiny), "--server", server],
        "needle": ["eval", "needle", str(tiny), "--text", gone],
        "train": ["train", "pose", "--model", str(tiny), "--data", gone, "--to", "64k"],
        "extend": ["extend", str(tiny), "--text", gone, "--out", "extended"],
        "usage": ["extend", "--texts", gone],
    }
    Path("mixture.yaml").write_text(f"sources: [{{source: '{good}'}}]")
    codes = {}
    for name, command in commands.items():
        monkeypatch.setattr(sys, "argv", ["endprompt", *command])
        codes[name] = run(command)
        printed = capsys.readouterr()
        for word in (*SECRETS.values(), *IN_URLS):
            assert word not in printed.out + printed.err, (name, word)
    assert codes["read"] == codes["mixture"] == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    for path in written:
        if path.name == "mixture.yaml":
            continue
        for word in (*SECRETS.values(), *IN_URLS):
            assert word.encode() not in path.read_bytes(), path
        assert not [word for word in IN_URLS if word in str(path)]


@pytest.fixture
def served_text():
    """Serves one jsonl file to whoever gives the right user info and query."""
    body = b"".join(json.dumps({"text": f"{n} words " * 40}).encode() + b"\n" for n in range(9))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization", "").startswith("Basic ")
            allowed = allowed and "plantedsignature" in self.path
            self.send_response(200 if allowed else 403)
            self.send_header("Content-Length", str(len(body)) if allowed else "0")
            self.end_headers()
            if allowed and self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
