"""What an evaluation is asked to do: one typed configuration, from Python, options or YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from endprompt import units
from endprompt.errors import EvaluationError, nearest
from endprompt.eval import longbench, ruler, untaught
from endprompt.recipe import Count, Settings, faults, read_yaml

SUITES = ("ruler", "needle", "passkey", "key-value", *untaught.TASKS, "longbench", "short")


def _names(value: Any) -> Any:
    """`a,b` as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _lengths(value: Any) -> Any:
    """`4k,8k`, a number, or a list of either, as rising numbers."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    return units.lengths(",".join(map(str, parts)))


def _depths(value: Any) -> Any:
    """A number of depths, `0,0.5,1`, or a list of them."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    text = ",".join(map(str, parts))
    return units.depths(f"{text}," if isinstance(value, (list, tuple)) else text)


Names = Annotated[tuple[str, ...], BeforeValidator(_names), Field(min_length=1)]


class EvalConfig(Settings):
    """An evaluation of one model; keys are the options of `endprompt eval run`.

    >>> EvalConfig(model="my-llama", tasks="ruler,passkey", lengths="4k,8k").lengths
    (4096, 8192)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    model: str
    """Checkpoint folder, GGUF file or hub name; with `server`, its name there."""
    tasks: Names
    """Suites to run: `SUITES`."""
    lengths: Annotated[tuple[Count, ...], BeforeValidator(_lengths), Field(min_length=1)] = (4096,)
    """Tokens, rising."""
    samples: Count = 50
    """Of a RULER task at one length, of a LongBench data set, of a short task."""
    seed: int = 42
    template: Literal["base", "chat"] = "base"
    """`chat`: prompts in the tokenizer's chat template."""
    ruler_tasks: Names = ("all",)
    essays: Path | None = None
    squad: Path | None = None
    hotpotqa: Path | None = None
    """Data of RULER; None: from the hub, or made up where that cannot be had."""
    depths: Annotated[tuple[float, ...], BeforeValidator(_depths)] = tuple(units.depths("10"))
    """Of needles, passkeys and key-value pairs: 0 at the start of the text, 1 at its end. Of tasks
    that no row teaches, as many questions at even depths."""
    text: str | None = None
    """Where needles and facts are hidden: what `endprompt.data.sources` reads; None: Python's
    manual."""
    texts: Count = 1
    """Texts with needles; samples of passkeys and key-value pairs at one depth."""
    datasets: Names = ("english",)
    """Of LongBench: names, or one of english, all, e."""
    longbench: Path | None = None
    """Folder of LongBench's JSONL files; None: from the hub."""
    short: Names = ("mmlu", "gsm8k", "hellaswag")
    """Tasks of lm-eval."""
    include: Path | None = None
    """Folder of more tasks of lm-eval."""
    run_code: bool = False
    """Let tasks run code that the model wrote."""
    server: str | None = None
    """Address of an OpenAI-compatible server; None: the model is run here."""
    tokenizer: str | None = None
    """With `server`: sizes the prompts; None: the model's own."""
    workers: Count = 4
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds for one answer of a server."""
    tries: Count = 5
    dtype: str = "auto"

    @field_validator("tasks")
    @classmethod
    def _are_suites(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in SUITES:
                raise EvaluationError(
                    f"no task {name!r}{nearest(name, SUITES)}: one of {', '.join(SUITES)}"
                )
        return names

    @field_validator("ruler_tasks")
    @classmethod
    def _are_of_ruler(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names == ("all",):
            return tuple(ruler.TASKS)
        return tuple(ruler.find_task(name).name for name in names)

    @field_validator("datasets")
    @classmethod
    def _are_of_longbench(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        groups = {
            "english": longbench.ENGLISH,
            "all": longbench.DATASETS,
            "e": [f"{known}_e" for known in longbench.EXTENDED],
        }
        if len(names) == 1 and names[0] in groups:
            return tuple(groups[names[0]])
        for name in names:
            longbench.find_dataset(name)
        return names

    @property
    def chat(self) -> bool:
        """Whether prompts are put in the chat template."""
        return self.template == "chat"

    @property
    def reads(self) -> list[str | Path | None]:
        """What is read from disk: results may not be written there."""
        data = [self.essays, self.squad, self.hotpotqa, self.longbench, self.include]
        return [self.model, self.tokenizer, self.text, *data]


def load(path: Path | None, overrides: dict[str, Any]) -> EvalConfig:
    """Configuration of a YAML file, the defaults without one, with `overrides` on top.

    Raises EvaluationError for a value that can't be, an unknown key (with the nearest) and a
    missing one, RecipeError for a broken file.
    """
    values = {} if path is None else read_yaml(path, "evaluation")
    try:
        return EvalConfig.model_validate({**values, **overrides})
    except ValidationError as error:
        said = (
            f"{fault}: give {_option(fault.split()[0])}" if fault.endswith(" is missing") else fault
            for fault in faults(error, EvalConfig)
        )
        raise EvaluationError(f"evaluation: {'; '.join(said)}") from None


def _option(key: str) -> str:
    return "MODEL" if key == "model" else f"--{key}"
