"""`endprompt train`: one recipe on prepared data."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from endprompt.cli.terminal import echo


def register(app: typer.Typer) -> None:
    """Add the verb `train`."""

    @app.command()
    def train(
        recipe: str = typer.Argument(
            ..., help="A method's name (`endprompt methods` lists them) or a YAML file."
        ),
        model: str = typer.Option(..., "--model", help="Checkpoint folder or hub name."),
        data: str = typer.Option(..., "--data", help="Folder or URL of `endprompt prepare`."),
        to: str = typer.Option(..., "--to", metavar="TOKENS", help="Target window, as 64k."),
        out: Path = typer.Option(..., "--out", help="Folder of the run; resumes one in it."),
        settings: list[str] = typer.Option(
            [], "--set", metavar="KEY=VALUE", help="Override a setting of the recipe."
        ),
        report_to: str = typer.Option(
            "none", "--report-to", help="tensorboard, trackio or wandb, as Transformers has them."
        ),
        processes: int | None = typer.Option(
            None,
            "--processes",
            min=1,
            help="Processes on this machine, a GPU each (DDP), or shares of its CPU. Default: 1, "
            "or as many as the config says.",
        ),
        accelerate_config: Path | None = typer.Option(
            None,
            "--accelerate-config",
            help="YAML of `accelerate config`, or a shipped one (`endprompt accelerate`).",
        ),
        progress: Path | None = typer.Option(
            None, "--progress", help="File to keep the progress in, for another process to read."
        ),
    ) -> None:
        """Train one recipe and save the extended model under OUT/model.

        A killed run resumes from its last whole checkpoint when the same command is given
        again. When one of several processes ends, all of them do. On several machines:
        `accelerate launch --config_file FILE -m endprompt train ...` on each, the same words.

        Examples:

            endprompt train fact-anchors --model my-llama --data tokens --to 64k --out runs/64k

            endprompt train fact-anchors --model my-llama --data tokens --to 64k --out runs/64k
            --processes 8
        """
        from endprompt import recipe as recipes
        from endprompt import units
        from endprompt.io import claims
        from endprompt.io.progress import tell

        target = units.tokens(to)
        overrides = recipes.parse_overrides(settings)
        chosen = recipes.load(recipe).replace(overrides)
        from endprompt.io.silence import silence_libraries

        silence_libraries()
        import torch
        from accelerate import PartialState

        from endprompt.data import holdout
        from endprompt.models import checkpoint as models
        from endprompt.train import launch, run

        family = models.family_of(model)
        base, gpu = family.base, torch.cuda.is_available()
        if not recipes.chooses_scaling(recipe, overrides):
            chosen = chosen.replace({"rope.scaling": family.suited(chosen.rope.scaling)})
        fast = not gpu and launch.fast_in_bf16(chosen.training.dtype)
        resolved = chosen.resolve(
            window=base.window, target=target, gpu=gpu, base=base, fast_in_bf16=fast
        )
        documents, fingerprint = holdout.training_documents(data, models.load_tokenizer(model))
        steps = resolved.amounts.steps
        if launch.start(sys.argv[1:], resolved, processes, accelerate_config):
            return
        before = run.finished(out)
        first = claims.first_rank()

        def show(state: dict[str, float]) -> None:
            if not first:
                return
            tell(
                progress,
                state["done"],
                state["total"],
                **{
                    key: state[key]
                    for key in ("loss", "prefix_loss", "terminal_loss", "seconds")
                    if key in state
                },
            )
            if progress is None:
                left = (state["total"] - state["done"]) * state["seconds"] / 60
                parts = [
                    f"{key.removesuffix('_loss')} {state[key]:.3f}"
                    for key in ("prefix_loss", "terminal_loss")
                    if key in state
                ]
                echo(
                    f"step {state['done']:.0f}/{steps}  loss {state['loss']:.3f} "
                    f"({', '.join(parts)})  {state['seconds']:.1f} s a step, {left:.1f} min left"
                )

        try:
            done = run.train(
                resolved,
                model=model,
                documents=documents,
                target=target,
                out=out,
                fingerprint=fingerprint,
                reads=[data],
                report_to=report_to,
                progress=show,
            )
        except Exception as error:
            if launch.report(error):
                raise typer.Exit(1) from None
            raise
        PartialState().destroy_process_group()  # its threads can abort a rank that ends with it
        if not first:
            return
        if before is not None:
            echo(f"{out} holds this run, finished: nothing to do")
        echo(
            f"{out / 'model'}: {done.tokens} tokens in {resolved.training.dtype}, "
            f"{done.seconds / 60:.1f} min"
        )
