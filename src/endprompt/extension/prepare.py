"""Before the plan of a run: the request is checked, the text prepared in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endprompt import rope
from endprompt.cost import flops
from endprompt.errors import RecipeError
from endprompt.extension import devices, suites
from endprompt.extension.devices import Devices
from endprompt.extension.suites import RunSuite
from endprompt.io import claims, digests
from endprompt.io.secrets import redact
from endprompt.models import precision
from endprompt.recipe import Recipe

if TYPE_CHECKING:
    from endprompt.data.rows import Row

SHOWN_ROWS = 64
"""Rows of each arm that the report's example and distances are taken from."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Arm:
    """One model of the comparison."""

    name: str
    label: str
    recipe: Recipe

    @property
    def trained(self) -> bool:
        """False for the base and for untrained scaling."""
        return self.recipe.trained


@dataclass(frozen=True)
class Request:
    """What the user asked for, every amount a number, or left to `prepare_run`."""

    model: str | None
    target: int
    text: list[str]
    recipe: Recipe
    out: Path
    controls: bool = False
    lengths: list[int] | None = None
    documents: int | None = None
    needles: int = 16
    key_tokens: bool = False
    """The loss on tokens that gain from far context, by the base, is given too."""
    eval_dtype: str = "auto"
    chat: bool = False
    command: str = "endprompt extend"
    scaling_chosen: bool = False
    """False: a base with a rule of its own keeps that rule, whatever the recipe's."""
    processes: int | None = None
    """Of each training; None: as many as the devices and the weights ask for."""
    accelerate_config: Path | None = None
    suites: tuple[RunSuite, ...] | None = None
    """Suites that every arm is asked; None: RULER where GPUs make it cheap."""


@dataclass(frozen=True)
class Prepared:
    """What is known of a run before anything computes.

    settings   what the folder is claimed with
    precision  of the base's stored weights
    """

    config: Any
    base: rope.Base
    precision: str
    devices: Devices
    recipe: Recipe
    lengths: list[int]
    documents: int
    text: dict[str, Any]
    arms: list[Arm]
    suites: list[RunSuite]
    settings: dict[str, Any]
    rows_cuttable: bool

    @property
    def trainings(self) -> int:
        return sum(arm.trained for arm in self.arms)


def arms_of(recipe: Recipe, controls: bool, own_rule: str = "") -> list[Arm]:
    """Base and untrained scaling, then the method, then its two controls at equal tokens.

    own_rule  of a base that is scaled already
    """
    plain = recipe.untrained()
    base = plain.model_copy(
        update={"name": "base", "rope": plain.rope.model_copy(update={"scaling": "none"})}
    )
    scaled = rope.TITLES.get(plain.rope.scaling, plain.rope.scaling)
    own = rope.TITLES.get(own_rule, own_rule)
    arms = [
        Arm("base", f"base, its own {own}" if own else "base, unscaled", base),
        Arm("untrained", f"{scaled}, untrained", plain),
    ]
    if recipe.trained:
        arms.append(Arm(recipe.name, f"{scaled} + {recipe.name}", recipe))
        if controls:
            arms.append(Arm("short", f"{scaled} + plain short text (control)", recipe.plain()))
            if recipe.jumps:
                bare = recipe.without_jump()
                arms.append(Arm(bare.name, f"{scaled} + {recipe.name} without the jump", bare))
    return arms


def default_lengths(window: int, target: int) -> list[int]:
    """Half of the window, the window, and up to the target, which is always there."""
    past = [round(window + (target - window) * part / 2) for part in (1, 2)]
    return sorted({window // 2, window, *past, target})


def prepare_run(request: Request, model: str, say: Say, held: claims.Output) -> Prepared:
    """Refuse what can't be, prepare the text, and take the folder."""
    from endprompt.data import run_text
    from endprompt.eval.engine import Coder
    from endprompt.eval.window import require_room
    from endprompt.models import checkpoint as models

    machine = devices.here(request.processes, request.accelerate_config)
    config = models.load_config(model)
    family = models.family_of(model, config)
    base = family.base
    rope.factor(base.window, request.target)  # refuses a target that is not above the window
    asked = request.recipe if request.scaling_chosen else _suited(request.recipe, family, say)
    models.scaled_parameters(family, asked, request.target)  # refuses what has no form
    stored = models.check(model, config)
    precision.require_known(request.eval_dtype)
    recipe = asked.resolve(
        window=base.window,
        target=request.target,
        gpu=machine.for_gpus,
        base=base,
        fast_in_bf16=_fast_in_bf16(asked, held, gpu=machine.for_gpus),
    )
    if not recipe.trained and recipe.rope.scaling == "none":
        raise RecipeError(f"method {recipe.name!r} neither scales nor trains: nothing to extend")
    devices.require_divisible(machine, recipe)
    lengths = request.lengths or default_lengths(base.window, request.target)
    if max(lengths) > request.target:
        raise RecipeError(
            f"--lengths go to {max(lengths)}, past the target of {request.target} tokens"
        )
    tokenizer = models.load_tokenizer(model)
    documents = request.documents or (4 if machine.for_gpus else 1)
    settings = _claimed(request, model, recipe, lengths, documents)
    held.require(settings)
    _reserve(held)
    data = request.out / "data"
    text = run_text.prepare_text(
        request.text, tokenizer, data, chat=request.chat, tokens=max(lengths), count=documents,
        row_tokens=recipe.amounts.row_tokens, fresh=held.claimed is None, say=say,
    )  # fmt: skip
    own = rope.name_of(base.parameters) if base.parameters else ""
    arms = arms_of(recipe, request.controls, own)
    first_rows(request, arms, model)  # what can't be made is said before anything runs
    require_room(Coder(tokenizer), lengths, needles=request.needles)
    asked_suites = _suites(request, recipe, config, base.window, gpu=machine.for_gpus)
    suites.require_askable(asked_suites, tokenizer)
    return Prepared(
        config=config,
        base=base,
        precision=stored.precision,
        devices=machine,
        recipe=recipe,
        lengths=lengths,
        documents=min(documents, text["holdout_documents"]),
        text=text,
        arms=arms,
        suites=asked_suites,
        settings=settings,
        rows_cuttable=devices.cut_allowed(recipe, family.local_span(request.target)),
    )


def _fast_in_bf16(recipe: Recipe, held: claims.Output, *, gpu: bool) -> bool:
    """Whether `training.dtype: fast` is bf16 on this CPU; a run that is resumed has what it had."""
    if recipe.training.dtype != "fast" or gpu:
        return False
    if held.claimed is not None:
        return held.claimed.get("recipe", {}).get("training", {}).get("dtype") == "bfloat16"
    return precision.fast_in_bf16("cpu")


def _suites(
    request: Request, recipe: Recipe, config: Any, window: int, *, gpu: bool
) -> list[RunSuite]:
    decoder = flops.read(config)
    return suites.chosen(
        request.suites,
        window=window,
        target=request.target,
        decoder=decoder,
        for_gpus=gpu,
        training=flops.row(recipe, decoder).total * recipe.amounts.rows,
    )


def _suited(recipe: Recipe, family: Any, say: Say) -> Recipe:
    """The recipe with the scaling that suits the base; another than the recipe's is said."""
    suited = recipe.replace({"rope.scaling": family.suited(recipe.rope.scaling)})
    if suited.rope.scaling != recipe.rope.scaling:
        say(
            f"RoPE scaling: {suited.rope.scaling}, which the base has or its family asks for, "
            f"not the recipe's {recipe.rope.scaling} (--scaling sets another)"
        )
    return suited


def _claimed(
    request: Request, model: str, recipe: Recipe, lengths: list[int], documents: int
) -> dict[str, Any]:
    """What decides about every result of a run: a folder with others is another run's."""
    return {
        "model": model,
        **digests.of_model(model),
        "target": request.target,
        "text": [redact(spec) for spec in request.text],
        "recipe": recipe.digested(),
        "lengths": lengths,
        "documents": documents,
        "needles": request.needles,
        "eval_dtype": request.eval_dtype,
        **({"chat": True} if request.chat else {}),
        **({"key_tokens": True} if request.key_tokens else {}),
    }


def _reserve(held: claims.Output) -> None:
    """Take a folder that is not claimed; what a refused run left for its settings goes."""
    if held.claimed is None:
        held.reserve()
        for name in ("doctor.json", "data/split.json"):
            (held.folder / name).unlink(missing_ok=True)


def first_rows(request: Request, arms: Sequence[Arm], model: str) -> dict[str, list[Row]]:
    """The first rows of every arm that trains. Raises RecipeError where they can't be made."""
    from endprompt.cues import CueWriter
    from endprompt.data import holdout
    from endprompt.data.rows import RowSource
    from endprompt.models.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(model)
    documents, _ = holdout.training_documents(request.out / "data")

    def rows_of(recipe: Recipe) -> list[Row]:
        source = RowSource(
            documents,
            recipe.rows,
            CueWriter(tokenizer),
            target=request.target,
            seed=recipe.training.seed,
            count=SHOWN_ROWS,
        )
        return [source.row(index) for index in range(SHOWN_ROWS)]

    return {arm.name: rows_of(arm.recipe) for arm in arms if arm.trained}


def link(model: str, arm: Arm, request: Request) -> None:
    """Make the checkpoint of an untrained arm: the base's weights linked, its own config."""
    from endprompt.models import checkpoint as models

    folder = request.out / "arms" / arm.name / "model"
    if not folder.is_dir():
        config = models.scaled_config(model, arm.recipe, request.target)
        models.link(model, config, models.load_tokenizer(model), folder, request.target)
