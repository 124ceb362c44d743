"""`endprompt sft`: supervised fine-tuning of an extended model."""

from __future__ import annotations

from pathlib import Path

import typer

from endprompt.cli.terminal import echo


def register(app: typer.Typer) -> None:
    """Add the verb `sft`."""

    @app.command()
    def sft(
        model: str = typer.Argument(
            ..., metavar="RUN_OR_MODEL", help="Folder of a finished run, a checkpoint or hub name."
        ),
        data: list[str] = typer.Option(
            ...,
            "--data",
            help="jsonl or parquet file, URL or hub data set with messages, or prompt and "
            "completion; may be repeated.",
        ),
        out: Path = typer.Option(..., "--out", "-o", help="Folder of the run; resumes one in it."),
        recipe: Path | None = typer.Option(
            None, "--recipe", help="YAML file of settings, as {epochs: 2, trainable: lora}."
        ),
        settings: list[str] = typer.Option(
            [],
            "--set",
            metavar="KEY=VALUE",
            help="Override one: epochs=1, steps, rows_per_step=8, max_tokens (the window), "
            "packing=false, attention=sdpa, learning_rate=2e-5, schedule=cosine, trainable=all "
            "(lora, lora+), save_steps=50, ...",
        ),
        split: str = typer.Option("train", "--split", help="Of a hub data set."),
        report_to: str = typer.Option(
            "none", "--report-to", help="tensorboard, trackio or wandb, as Transformers has them."
        ),
    ) -> None:
        """Fine-tune an extended model on conversations.

        Its window and RoPE stay as they are.

        TRL trains. The tokenizer's own chat template writes the conversations, and only answers
        are learnt. Rows longer than the window are left out and counted. The model is saved
        under OUT/model, what was done in OUT/run.json. A killed run resumes when the same
        command is given again.

        Examples:

            endprompt sft runs/64k --data chats.jsonl --out runs/64k-chat

            endprompt sft my-llama-64k --data owner/name --set packing=true --out runs/chat
        """
        from endprompt.recipe import parse_overrides
        from endprompt.sft import settings as tuning

        chosen = tuning.load(recipe, parse_overrides(settings))
        from endprompt.io.silence import silence_libraries

        silence_libraries()
        from accelerate import PartialState

        from endprompt.sft import record

        def show(state: dict[str, float]) -> None:
            left = (state["total"] - state["done"]) * state["seconds"] / 60
            echo(
                f"step {state['done']:.0f}/{state['total']:.0f}  loss {state['loss']:.3f}  "
                f"{state['seconds']:.1f} s a step, {left:.1f} min left"
            )

        done = record.tune(
            model,
            data,
            chosen,
            out=out,
            split=split,
            report_to=report_to,
            progress=show,
            say=echo,
        )
        PartialState().destroy_process_group()  # its threads can abort a rank that ends with it
        echo(
            "",
            f"model   {out / 'model'} (window {done.window:,}, {done.steps:,} steps)",
            f"record  {out / 'run.json'}",
        )
