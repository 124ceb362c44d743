"""Bars, estimates and the plan of `endprompt extend` on a terminal, or lines in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from endprompt import rope
from endprompt.cli.console import Console
from endprompt.io.secrets import redact
from endprompt.units import short

if TYPE_CHECKING:
    from endprompt.extension.plan import Plan
    from endprompt.io.jobs import Job
    from endprompt.recipe import Rope

QUARTERS = 4


class Screen:
    """A bar for every job and one for the whole run; lines where there is no terminal."""

    def __init__(self) -> None:
        self._console = Console()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._told: dict[str, int] = {}
        self._first: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Screen:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, *lines: str) -> None:
        """Lines above the bars, without secrets."""
        for line in lines:
            self._console.print(redact(line), markup=False, highlight=False, soft_wrap=True)

    def plan(self, plan: Plan) -> None:
        """What will be done, what it costs, and what is done already."""
        from endprompt.extension.devices import in_words
        from endprompt.extension.suites import in_words as suites_in_words

        total, model = plan.costs["total"], plan.model
        finished = [job.label for job in plan.jobs if job.result.exists()]
        waiting = [job for job in plan.jobs if not job.result.exists()]
        left = sum(job.seconds * job.takes for job in waiting) / plan.devices.places
        copied = plan.text["copied_tokens"]
        without = f", {copied:,} left out (copies of held-out text)" if copied else ""
        self.say(
            f"model    {model['name']} ({model['type']}, {model['parameters'] / 1e6:.0f}M "
            f"parameters), window {model['window_tokens']:,} tokens",
            f"method   {plan.recipe.name}, {_scaling(plan.recipe.rope)}",
            f"text     {plan.text['name']} ({plan.text['licence']}): {plan.text['tokens']:,} "
            f"tokens to train on, {plan.text['holdout_tokens']:,} held out{without}",
            f"training {total['steps']} steps, {total['rows']} rows of {total['row_tokens']:,} "
            f"tokens = {total['tokens']:,} tokens, {short(total['flops'])}FLOP, in "
            f"{plan.recipe.training.dtype}; "
            f"{total['trainings']} training(s), about {plan.costs['train_seconds'] / 60:.1f} min "
            f"and {total['memory_gib']:.1f} GiB each",
            f"then     {total['evaluations']} evaluations at {_joined(plan.lengths)} tokens, "
            f"about {plan.costs['eval_seconds'] / 60:.1f} min each",
            *(
                [
                    f"suites   {suites_in_words(plan.suites)} for each arm, about "
                    f"{sum(plan.costs['suite_seconds']) / 60:.1f} min each"
                ]
                if plan.suites
                else []
            ),
            f"devices  {in_words(plan.devices, plan.ranks, total['trainings'])}",
            f"in all   about {left / 60:.0f} min",
        )
        passed = sum(check["passed"] for check in plan.checks)
        self.say(f"position check: {passed} of {len(plan.checks)} passed")
        if finished:
            self.say(f"done already: {', '.join(finished)}")

    def watch(self, job: Job, state: dict[str, Any] | None) -> None:
        """Show how far a job is; None says that it is finished."""
        if job.name not in self._tasks:
            self._tasks[job.name] = self._bars.add_task(job.label, total=None, detail="")
        if state is None:
            self._bars.update(self._tasks[job.name], total=1, completed=1, detail="done")
            self._line(job, QUARTERS, "done")
            return
        if not state:
            return
        detail = "  ".join(
            f"{key.removesuffix('_loss')} {state[key]:.3f}"
            for key in ("prefix_loss", "terminal_loss")
            if key in state
        )
        self._bars.update(
            self._tasks[job.name], total=state["total"], completed=state["done"], detail=detail
        )
        share, now = state["done"] / max(state["total"], 1e-9), time.monotonic()
        # a resumed job starts ahead: its speed is that since the first report
        began, had = self._first.setdefault(job.name, (now, share))
        if had < share < 1:
            left = (now - began) * (1 - share) / (share - had) / 60
            self._line(job, int(share * QUARTERS), f"{share:.0%}, {left:.1f} min left  {detail}")

    def part(self, name: str, done: float, total: float) -> None:
        """Show how far something is that this process does itself."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, detail="")
        self._bars.update(self._tasks[name], total=total, completed=done)

    def _line(self, job: Job, quarter: int, what: str) -> None:
        """Without a terminal: a line at every quarter of a job."""
        if not self._console.is_terminal and self._told.get(job.name, -1) < quarter:
            self._told[job.name] = quarter
            self.say(f"{job.label}: {what}")


def _scaling(settings: Rope) -> str:
    """The rule of a resolved recipe and its factor."""
    title = rope.TITLES.get(settings.scaling, settings.scaling)
    if settings.scaling == "none":
        return "RoPE unscaled"
    if settings.factor:
        return f"{title} by {settings.factor:g}"
    times = "" if settings.headroom == 1 else f"{settings.headroom} x "
    return f"{title} by {times}L / L0 (rope.headroom)"


def _joined(lengths: list[int]) -> str:
    return ", ".join(f"{length:,}" for length in lengths)
