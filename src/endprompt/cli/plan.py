"""`endprompt plan`: what a run will cost, before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from endprompt.cli.terminal import echo

if TYPE_CHECKING:
    from endprompt.cost import plan as plans


def register(app: typer.Typer) -> None:
    """Add the verb `plan`."""

    @app.command()
    def plan(
        model: str = typer.Argument(
            "smollm2-135m",
            help="Checkpoint folder or hub name, or sizes that are known: smollm2-135m, "
            "mistral-7b, llama-2-7b, llama-3-8b, llama-3-70b. Only the config is read.",
        ),
        to: str = typer.Option("64k", "--to", metavar="TOKENS", help="Target window."),
        methods: str | None = typer.Option(
            None, "--methods", metavar="A,B", help="Recipes. Default: all shipped that train."
        ),
        gpu: str = typer.Option(
            "auto",
            "--gpu",
            metavar="NAME[:COUNT]",
            help="h100:8, a100-80:8, a800, h200, b200, l40s, rtx4090 ...; auto: this machine, "
            "whose speed is measured in two seconds.",
        ),
        tokens: str | None = typer.Option(
            None,
            "--tokens",
            help="Tokens to train on; k a thousand, m a million, b a billion. "
            "Default: the recipe's own.",
        ),
        price: float | None = typer.Option(
            None, "--price", min=0, help="Money for a device and hour, in a currency of yours."
        ),
        settings: list[str] = typer.Option(
            [], "--set", metavar="KEY=VALUE", help="Override a setting of every recipe."
        ),
        json: Path | None = typer.Option(None, "--json", help="Write everything to this file."),
        force: bool = typer.Option(False, "--force", help="Overwrite the JSON file."),
    ) -> None:
        """Count FLOPs, memory, hours and money before a run.

        Says which recipes fit the memory of one device, and proposes settings.

        Memory is that of one device at the peak of a step. Proposed is the fastest of: plain,
        activation checkpointing, weights and optimizer sharded over the devices (FSDP 2 or
        ZeRO-3), both. docs/cost-model.md says how each figure is made and how far it is off.

        Examples:

            endprompt plan

            endprompt plan llama-3-8b --to 64k --gpu h100:8 --tokens 1b --price 2.5
        """
        from endprompt import recipe as recipes
        from endprompt import units
        from endprompt.cost import plan as plans
        from endprompt.io import result_files

        result_files.require_replaceable(json, "plan", force=force)
        target = units.tokens(to)
        sized = plans.sized(model, target=target)
        if gpu == "auto":
            from endprompt.train.calibration import this_machine

            where = this_machine(sized.decoder)
        else:
            where = plans.machine(gpu)
        lines = plans.lines(
            sized,
            where,
            target=target,
            methods=[name.strip() for name in methods.split(",")] if methods else None,
            settings=recipes.parse_overrides(settings),
            tokens=units.amount(tokens) if tokens else None,
        )
        _show(lines, where, model, target, price)
        if json:
            record = plans.record(lines, sized, where, model=model, target=target, price=price)
            result_files.write(json, "plan", record)
            echo(f"record  {json}")


def _show(
    lines: list[plans.Line], where: plans.Machine, model: str, target: int, price: float | None
) -> None:
    """One line a method, then what to do for those that do not fit."""
    from endprompt.cli.console import Console, Table
    from endprompt.cost import plan as plans
    from endprompt.cost.memory import GIB
    from endprompt.units import short

    console = Console()
    device = where.device
    console.print(
        f"{model} to {target:,} tokens on {where.count} x {device.name}: "
        f"{device.memory_bytes / GIB:.0f} GiB and {short(device.peak)}FLOP/s each, "
        f"{device.utilisation:.0%} of it assumed"
        + (f", {short(device.attention)}FLOP/s in attention" if device.attention else ""),
        markup=False,
        soft_wrap=True,
    )
    paid = price is not None
    heads = [settings.short for settings, _, _ in lines[0].options] if lines else []
    table = Table(box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for head in ("row", "tokens", "FLOP", *heads, "hours", *(["money"] if paid else [])):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("proposed", no_wrap=True)
    for names, line in plans.alike(lines):
        memory = [
            f"{_gib(held.total)}{' ' if fits else '!'}"
            for (_, held, _), fits in zip(line.options, line.fits, strict=True)
        ]
        hours, money, proposed = "-", "-", "none fits"
        if line.chosen is not None:
            settings, _, seconds = line.options[line.chosen]
            hours, proposed = f"{seconds / 3600:.3g}", settings.short
            money = f"{seconds / 3600 * where.count * (price or 0):,.0f}"
        amount = f"{line.tokens / 1e6:,.0f}M" if line.tokens >= 1e6 else f"{line.tokens:,}"
        table.add_row(_counted(names), _length(line.row_tokens), amount,
                      short(line.operations).strip(), *memory, hours,
                      *([money] if paid else []), proposed)  # fmt: skip
    console.print(table, markup=False)
    console.print(
        "GiB of one device at the peak of a step: plain; ckpt: activation checkpointing"
        + ("; shard: FSDP 2 or ZeRO-3; both" if where.count > 1 else "")
        + f". !: more than {plans.MARGIN:.0%} of its memory",
        markup=False,
        soft_wrap=True,
    )
    for names, _ in plans.alike(lines):
        if len(names) > 1:
            line_below = f"{_counted(names)}: and {', '.join(names[1:])}"
            console.print(line_below, markup=False, soft_wrap=True)
    for names, line in plans.alike(lines):
        for note in line.notes:
            console.print(f"{_counted(names)}: {note}", markup=False, soft_wrap=True)
        if line.chosen is None:
            line_below = f"{_counted(names)}: {plans.remedy(line)}"
            console.print(line_below, markup=False, soft_wrap=True)
    console.print(plans.launch(lines, where), markup=False, soft_wrap=True)
    if model == "llama-3-8b" and target == 65536 and device.name.startswith("A800"):
        console.print()
        console.print("The paper's figure 4 (8 x A800, 64K) beside this model's prediction:")
        for what, figure, predicted in plans.paper():
            console.print(f"  {what}: {figure:g}, predicted {predicted:.3g}", markup=False)


def _gib(size: float) -> str:
    from endprompt.cost.memory import GIB

    return f"{size / GIB:.1f}" if size < 100 * GIB else f"{size / GIB:.0f}"


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def _counted(names: list[str]) -> str:
    return names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "")
