"""`endprompt chat`: ask a model about a long text, in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from endprompt.cli import eval_screen as screen
from endprompt.cli.terminal import echo, write

if TYPE_CHECKING:
    from endprompt.chat import Conversation

PORT = 8321


def register(app: typer.Typer) -> None:
    """Add the verb `chat`."""

    @app.command()
    def chat(
        model: str = typer.Argument(help="Checkpoint folder, GGUF file or hub name."),
        file: Path | None = typer.Option(
            None, "--file", "-f", help="Text to ask about; UTF-8. It is read once."
        ),
        tokens: int = typer.Option(
            512, "--tokens", min=1, metavar="N", help="Longest answer, in tokens."
        ),
        serve: bool = typer.Option(
            False, "--serve", help="Open a page for this machine alone, in place of the terminal."
        ),
        port: int | None = typer.Option(
            None, "--port", min=0, max=65535, help="Of the page; 0: any.", show_default=f"{PORT}"
        ),
        dtype: str = typer.Option("auto", "--dtype", help=screen.DTYPE),
    ) -> None:
        """Ask a model about a long text.

        Answers stream, and the use of the window is shown.

        A question a line; an empty line or the end of input leaves. Answers are greedy. With
        --serve the same in a browser, at http://127.0.0.1:8321; Ctrl-C ends it.

        Examples:

            endprompt chat runs/demo/arms/fact-anchors/model --file book.txt

            endprompt chat my-llama-64k --file book.txt --serve

            echo "Who is Naomi?" | endprompt chat my-llama-64k --file ruth.txt
        """
        from endprompt.errors import TextError

        if port is not None and not serve:
            raise typer.BadParameter("--port goes with --serve")
        try:
            text = file.read_text(encoding="utf-8") if file else ""
        except UnicodeDecodeError:
            raise TextError(f"{file} is no UTF-8 text: convert it first") from None
        from endprompt.io.silence import silence_libraries

        silence_libraries()
        from transformers import TextStreamer

        from endprompt.chat import Conversation
        from endprompt.models import checkpoint as models
        from endprompt.models import embedded
        from endprompt.models.precision import evaluated

        path = embedded.resolve(model)
        tokenizer = models.load_tokenizer(path)
        talk = Conversation(
            models.load(path, models.load_config(path), dtype=evaluated(dtype, "cpu")),
            tokenizer,
            text,
        )
        if serve:
            _serve(talk, Path(model).name, file.name if file else "", tokens, port)
            return
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        asking = sys.stdin.isatty()
        while True:
            if asking:
                write("> ")
            question = sys.stdin.readline().strip()
            if not question:
                return
            echo(f"[reading {talk.prompt(question)[1]:,} tokens]", err=True)
            talk.ask(question, max_new_tokens=tokens, streamer=streamer)
            share = talk.used / talk.window
            echo(f"[{talk.used:,} of {talk.window:,} tokens, {share:.0%}]", err=True)


def _serve(talk: Conversation, name: str, file: str, tokens: int, port: int | None) -> None:
    """The page, until Ctrl-C."""
    from endprompt.chat.server import ChatServer

    chosen = PORT if port is None else port
    with ChatServer(talk, name=name, file=file, tokens=tokens, port=chosen) as server:
        echo(f"{server.url}  (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            echo("ended")
