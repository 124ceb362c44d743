"""A recipe: all settings of a method, frozen, in one YAML file.

An unknown key is an error that names the nearest one. Methods differ in `rows` and `rope`;
everything else has one default for all of them, so that arms are compared at equal terms.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from endprompt import cues, plugins, positions, rope, yaml_text
from endprompt.errors import RecipeError, nearest
from endprompt.rope import Base

SHIPPED = Path(__file__).parent / "recipes"
Model = TypeVar("Model", bound=BaseModel)

Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Span = tuple[Count, Count]
MOST_IN_BANK = 8192
"""Tokens whose keys fill gaps, where the recipe names no number."""


def _scaling(name: str) -> str:
    return plugins.known("endprompt.scaling", name, ("none", *rope.RULES))


def _cue(name: str) -> str:
    return plugins.known("endprompt.cue", name, tuple(cues.CUES))


def _layout(name: str) -> str:
    return _listed(name, positions.LAYOUTS)


def _place(name: str) -> str:
    return _listed(name, positions.PLACES)


def _listed(name: str, table: Mapping[str, Any]) -> str:
    if name not in table:
        raise ValueError(f"{name!r}{nearest(name, table)} is none of {', '.join(table)}")
    return name


class Settings(BaseModel):
    """Frozen, and strict about keys; a key that was renamed is read until version 0.2."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    renamed: ClassVar[dict[str, str]] = {}
    """Earlier names of keys -> their names."""

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        earlier = [key for key in cls.renamed if key in values]
        for key in earlier:
            now = cls.renamed[key]
            warnings.warn(f"{key} is now called {now}", FutureWarning, stacklevel=2)
            values = {**values, now: values[key]}
            del values[key]
        return values


class Rope(Settings):
    """How RoPE is scaled; `factor` None means headroom * ceil(L / L0)."""

    renamed: ClassVar[dict[str, str]] = {"relative_factor": "headroom"}

    scaling: Annotated[str, AfterValidator(_scaling)] = "pi"
    factor: Annotated[float, Field(ge=1)] | None = None
    headroom: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Multiple of L / L0 that the factor is; `auto`: the scaling's own (`rope.RULES`). Above 1 the
    farthest distances fall inside of what the model knows; LCEG halves it for dynamic NTK."""
    beta_fast: Annotated[float, Field(gt=0)] = 32.0
    beta_slow: Annotated[float, Field(gt=0)] = 1.0
    attention_factor: Annotated[float, Field(gt=0)] | None = None
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
    long_factor: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """LongRoPE's divisors, one a pair; None: made from the frequencies (`rope.stretch`)."""
    short_factor: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _one_factor(self) -> Self:
        if self.factor is not None and self.headroom not in ("auto", 1.0):
            raise ValueError(
                f"factor {self.factor:g} and headroom {self.headroom:g} both set the factor: "
                "leave one out"
            )
        return self

    def multiple(self, times: float, base: Base | None = None) -> float:
        """The headroom as a number, for L / L0; base: which may have some of it already."""
        asked = self.headroom
        return rope.usual_headroom(self.scaling, times, base) if asked == "auto" else asked

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor has to be below high_freq_factor")
        if self.beta_slow >= self.beta_fast:
            raise ValueError("beta_slow has to be below beta_fast")
        return self


class Prefix(Settings):
    """Where the text of a row stands."""

    layout: Annotated[str, AfterValidator(_layout)] = "contiguous"
    chunks: Count = 2
    """Number of chunks of `pose`."""
    grows: bool = False
    """The range that the layout fills grows over the run, from the row's length to the target."""
    weight: Weight = 1.0
    """Loss weight of each prefix token."""


class Recall(Settings):
    """A terminal that asks for what stands in the prefix.

    verbatim  spans of the text: the question is a span's beginning, the answer what follows it
    facts     numbers that were planted in the text

    `answers_only` leaves the questions untrained.
    """

    renamed: ClassVar[dict[str, str]] = {"quotes": "verbatim"}

    verbatim: Annotated[int, Field(ge=0)] = 3
    facts: Annotated[int, Field(ge=0)] = 0
    cue_tokens: Span = (8, 12)
    answer_tokens: Span = (16, 24)
    answers_only: bool = True
    planted_weight: Weight = 1.0
    """Loss weight of the planted statements, as a multiple of the prefix's."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.verbatim + self.facts == 0:
            raise ValueError("verbatim and facts are both 0: the terminal would be empty")
        for name in ("cue_tokens", "answer_tokens"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} [{low}, {high}] is not a range")
        return self


class Terminal(Settings):
    """What a row ends with, and where it stands."""

    cue: Annotated[str, AfterValidator(_cue)] = "ep1"
    text: str | None = None
    pool: tuple[str, ...] = ()
    recall: Recall = Recall()
    tokens: Count = 20
    """Length S of a `continuation`; other cues are as long as their words."""
    place: Annotated[str, AfterValidator(_place)] = "end"
    anchors: Count = 1
    """Number of terminals in a row, each with a cue of its own."""
    pieces: Count = 2
    """Number of pieces that `split` cuts a terminal in."""
    weight: Weight = 1.0
    """Loss weight of each terminal token that is trained."""

    @model_validator(mode="after")
    def _cue_has_words(self) -> Self:
        needs = cues.CUES[self.cue].needs if self.cue in cues.CUES else ()
        for key in needs:
            if not getattr(self, key):
                raise ValueError(f"cue {self.cue!r} needs terminal.{key}")
        if self.anchors > 1 and self.place not in positions.SEVERAL:
            places = ", ".join(map(repr, positions.SEVERAL))
            raise ValueError(f"{self.anchors} anchors need one of the places {places}")
        return self


class Kind(Settings):
    """One kind of row and its share of all rows."""

    share: Share = 1.0
    prefix: Prefix = Prefix()
    terminal: Terminal | None = None

    @property
    def jumps(self) -> bool:
        """True when such a row has a step in positions other than +1."""
        placed = self.terminal is not None and self.terminal.place != "contiguous"
        return placed or self.prefix.layout != "contiguous"


class Rows(Settings):
    """Physical tokens of a row, and what rows are made of.

    tokens  a number, or `auto` (the window on a GPU, at most 1024 on a CPU), `window`, `target`
    """

    renamed: ClassVar[dict[str, str]] = {"isolate": "document_mask"}

    tokens: Count | Literal["auto", "window", "target"] = "auto"
    pack: Literal["none", "documents", "stream"] = "none"
    """Each row from one document; several whole documents, best fit; all joined and cut."""
    document_mask: bool = False
    """Tokens of the prefix attend to their own document only; a terminal still sees them all."""
    gaps: Literal["empty", "filled"] = "empty"
    """`filled`: between the segments of a row stand keys and values of other text, which the base
    reads once before training; what comes behind them attends to them. They have no gradient."""
    gap_keys: Count | Literal["auto"] = "auto"
    """Keys in the gaps of a row, spread evenly over its free positions; `auto`: one for each."""
    gap_bank: Count | Literal["auto"] = "auto"
    """Tokens of text whose keys are kept, in every layer; gaps that hold more repeat them.
    `auto`: as many as gap_keys, 8192 at most."""
    far_weight: Weight = 0.0
    """Loss weight, in the mean, that tokens with a quarter of the target and more before them have
    above their own; of the two octaves from there the rarer one gets more."""
    kinds: tuple[Kind, ...] = (Kind(),)

    @model_validator(mode="after")
    def _shares_add_up(self) -> Self:
        total = sum(kind.share for kind in self.kinds)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares of the kinds of rows add up to {total:g}, not 1")
        return self

    @model_validator(mode="after")
    def _gaps_are_seen(self) -> Self:
        if self.gaps == "filled" and self.document_mask:
            raise ValueError(
                "filled gaps show other text to every token behind them, and document_mask hides "
                "other documents: set one of them"
            )
        return self

    def gap_amounts(self, free: int) -> dict[str, int]:
        """Amounts of filled gaps as numbers, where a row leaves so many positions free."""
        if self.gaps == "empty":
            return {}
        keys = free if self.gap_keys == "auto" else min(self.gap_keys, free)
        return {
            "gap_keys": max(1, keys),
            "gap_bank": max(1, min(keys, MOST_IN_BANK))
            if self.gap_bank == "auto"
            else self.gap_bank,
        }


Divergence = Literal["forward", "reverse", "cosine"]


class Training(Settings):
    """Amount and optimizer. The defaults are the paper's but for the amount of tokens."""

    renamed: ClassVar[dict[str, str]] = {"trains": "trainable"}

    tokens: Count | Literal["auto"] = "auto"
    """Physical tokens in all; `auto`: a billion on a GPU, what a few minutes allow on a CPU."""
    tokens_per_step: Count | Literal["auto"] = "auto"
    """`auto`: 64 rows on a GPU, one row on a CPU."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    weight_decay: Weight = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    trainable: Literal["nothing", "all", "lora", "lora+", "attention"] = "all"
    """`lora+`: LoRA, and embeddings and norms as well, as in LongLoRA."""
    lora_rank: Count = 8
    lora_alpha: Count = 16
    prefix_loss: Literal["text", "base", "view"] = "text"
    """`base`: prefix tokens are held to what the base says of the row at contiguous positions
    (Kullback-Leibler divergence), in place of the text. The base is read beside the model.
    `view`: to the text, and to what the model itself says of the row at contiguous positions."""
    divergence: Divergence = "forward"
    """Of a teacher t and the model m: forward is KL(t || m), reverse KL(m || t), of what they say
    of a token. `cosine` compares their last hidden states (LongReD)."""
    label_weights: Literal["rows", "gain"] = "rows"
    """`gain`: beside the weight that a row gives it, each token weighs by how much likelier the row
    makes it than the last quarter of a row before it does, five times at most (LongCE). The model
    reads those short contexts as well, without a gradient."""
    attention: Literal["full", "shifted"] = "full"
    """`shifted`: LongLoRA's shifted sparse attention, in training only."""
    attention_groups: Count = 4
    """Number of groups that `shifted` cuts a row in."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    dtype: Literal["auto", "fast", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU. `fast`: bfloat16 on a CPU as well, where it is
    fast in that. Weights and optimizer are float32 all the same."""
    save_steps: Count | Literal["auto"] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0


class Amounts(NamedTuple):
    """Sizes of a run whose recipe names numbers only."""

    row_tokens: int
    rows_per_step: int
    steps: int
    save_steps: int

    @property
    def rows(self) -> int:
        """Rows in all."""
        return self.steps * self.rows_per_step

    @property
    def tokens(self) -> int:
        """Physical tokens in all."""
        return self.rows * self.row_tokens

    def batches(self, ranks: int, tokens_at_once: int) -> tuple[int, int]:
        """Rows in one forward pass of a rank, of so many tokens at most, and passes in a step.

        Raises RecipeError when the rows of a step do not divide among the ranks.
        """
        if self.rows_per_step % ranks:
            raise RecipeError(
                f"{self.rows_per_step} rows a step do not divide among {ranks} processes: "
                f"set training.tokens_per_step to a multiple of {ranks * self.row_tokens} tokens"
            )
        rows = self.rows_per_step // ranks
        at_once = max(
            n
            for n in range(1, rows + 1)
            if rows % n == 0 and (n == 1 or n * self.row_tokens <= tokens_at_once)
        )
        return at_once, rows // at_once


FIRST = ("fact-anchors", "recall-anchors", "distilled-anchors", "continuation")
"""Recipes of ours, the default in front."""
DEFAULT = FIRST[0]
WORDS = {"summary", "choose", "source", "departs"}
"""Keys of a recipe that are no settings."""


class Recipe(Settings):
    """All settings of a method."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")]
    summary: str = ""
    choose: str = ""
    """When to choose it."""
    source: str = ""
    departs: str = ""
    """Where the recipe leaves its source, or nothing."""
    rope: Rope = Rope()
    rows: Rows = Rows()
    training: Training = Training()

    @model_validator(mode="after")
    def _filled_gaps_need_full_attention(self) -> Self:
        if self.rows.gaps == "filled" and self.training.attention == "shifted":
            raise ValueError(
                "rows.gaps: filled needs training.attention full: shifted attention stays inside "
                "groups of the row"
            )
        return self

    @model_validator(mode="after")
    def _gains_are_of_whole_rows(self) -> Self:
        training = self.training
        if training.label_weights != "gain":
            return self
        for key, value, needed in (
            ("training.prefix_loss", training.prefix_loss, "text"),
            ("training.attention", training.attention, "full"),
            ("rows.document_mask", self.rows.document_mask, False),
        ):
            if value != needed:
                raise ValueError(
                    f"training.label_weights is gain, which compares losses on the text given "
                    f"all before it: {key} has to be {str(needed).lower()}"
                )
        return self

    @property
    def trained(self) -> bool:
        """False for the recipes that only scale RoPE, or not even that."""
        return self.training.trainable != "nothing"

    @property
    def jumps(self) -> bool:
        """True when any row has a step in positions other than +1."""
        return any(kind.jumps for kind in self.rows.kinds)

    def hash(self) -> str:
        """Hex digest of every setting but the words about them: equal hashes make equal runs."""
        settings = self.digested(exclude=WORDS)
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def digested(self, **options: Any) -> dict[str, Any]:
        """What digests are made of: settings under the keys that version 0.1 began with.

        A renamed key, and one that was added and has its default, therefore leave results where
        they are. `options` are `model_dump`'s.
        """
        return _as_before(self.model_dump(mode="json", **options))

    def plain(self) -> Recipe:
        """The control at equal tokens: the same scaling and training on plain short rows."""
        plain_rows = self._with_kinds("short", (Kind(),))
        weights = {"prefix_loss": "text", "label_weights": "rows"}
        training = self.training.model_copy(update=weights)
        return plain_rows.model_copy(update={"training": training})

    def without_jump(self) -> Recipe:
        """The control with the same content: every token at contiguous positions."""
        kinds = tuple(
            kind.model_copy(
                update={
                    "prefix": kind.prefix.model_copy(update={"layout": "contiguous"}),
                    "terminal": kind.terminal
                    and kind.terminal.model_copy(update={"place": "contiguous"}),
                }
            )
            for kind in self.rows.kinds
        )
        return self._with_kinds(f"{self.name}-no-jump", kinds)

    def untrained(self) -> Recipe:
        """The same scaling, nothing trained."""
        training = self.training.model_copy(update={"trainable": "nothing"})
        return self.model_copy(update={"name": self.rope.scaling, "training": training})

    def resolve(
        self,
        *,
        window: int,
        target: int,
        gpu: bool,
        base: Base | None = None,
        fast_in_bf16: bool = False,
    ) -> Recipe:
        """The same with every `auto` amount as a number, so that equal recipes make equal runs.

        window, target  tokens of the base and of the extended model
        fast_in_bf16    whether the CPU that trains is, for `training.dtype: fast`
        gpu             True where a GPU trains: a billion tokens in rows of the window, as in the
                        paper; on a CPU a demonstration of minutes
        base            RoPE of the base, which may have some headroom already; None: it has none

        Raises RecipeError when a step is not a whole number of rows, and where the base would have
        to read rows past its window.
        """
        rows, training = self.rows, self.training
        named = {"auto": window if gpu else min(window, 1024), "window": window, "target": target}
        row_tokens = rows.tokens if isinstance(rows.tokens, int) else named[rows.tokens]
        step = training.tokens_per_step
        if step == "auto":
            step = max(row_tokens, 64 * window) if gpu else row_tokens
            step -= step % row_tokens
        if step % row_tokens:
            raise RecipeError(
                f"training.tokens_per_step {step} is no multiple of rows of {row_tokens} tokens"
            )
        if training.prefix_loss == "base" and row_tokens > window:
            raise RecipeError(
                f"training.prefix_loss is base, and rows of {row_tokens} tokens are past the "
                f"window of {window} that the base reads: set rows.tokens to {window} or less, or "
                "prefix_loss to text"
            )
        if rows.gaps == "filled" and window < row_tokens < target:
            raise RecipeError(
                f"rows.gaps is filled, and rows of {row_tokens} tokens are past the window of "
                f"{window} that the base reads: set rows.tokens to {window} or less, or gaps to "
                "empty"
            )
        total = training.tokens
        if total == "auto":
            total = 10**9 if gpu else 24 * 1024
        steps = max(1, round(total / step))
        save = max(1, steps // 4) if training.save_steps == "auto" else training.save_steps
        headroom = 1.0 if self.rope.factor else self.rope.multiple(target / window, base)
        return self.model_copy(
            update={
                "rope": self.rope.model_copy(update={"headroom": headroom}),
                "rows": rows.model_copy(
                    update={"tokens": row_tokens, **rows.gap_amounts(target - row_tokens)}
                ),
                "training": training.model_copy(
                    update={
                        "tokens": steps * step,
                        "tokens_per_step": step,
                        "save_steps": save,
                        "warmup_steps": min(training.warmup_steps, max(1, steps // 8)),
                        "dtype": {
                            "auto": "bfloat16" if gpu else "float32",
                            "fast": "bfloat16" if gpu or fast_in_bf16 else "float32",
                        }.get(training.dtype, training.dtype),
                        "gradient_checkpointing": row_tokens > 2048
                        if training.gradient_checkpointing == "auto"
                        else training.gradient_checkpointing,
                    }
                ),
            }
        )

    def memory(self, **changes: Any) -> dict[str, Any]:
        """What `endprompt.cost.memory` asks of a resolved recipe, some of it changed."""
        rows, training = self.rows, self.training
        filled = rows.gaps == "filled" and self.trained
        return {
            "trainable": training.trainable,
            "lora_rank": training.lora_rank,
            "checkpointing": bool(training.gradient_checkpointing),
            "dtype": training.dtype,
            "shifted": training.attention == "shifted",
            "distilled": training.prefix_loss != "text",
            "own_teacher": training.prefix_loss == "view",
            "gap_keys": rows.gap_keys if filled else 0,
            "gap_bank": rows.gap_bank if filled else 0,
            **changes,
        }

    @property
    def amounts(self) -> Amounts:
        """The numbers of a resolved recipe."""
        values = (self.rows.tokens, self.training.tokens_per_step, self.training.tokens)
        row, step, total = (value for value in values if isinstance(value, int))
        save = self.training.save_steps
        assert isinstance(save, int), "amounts are resolved first"
        return Amounts(row, step // row, total // step, save)

    def _with_kinds(self, name: str, kinds: tuple[Kind, ...]) -> Recipe:
        """The same with rows that don't jump: no gaps to fill, no token far from others."""
        without = {"gaps": "empty", "gap_keys": "auto", "gap_bank": "auto", "far_weight": 0.0}
        rows = self.rows.model_copy(update={"kinds": kinds, **without})
        return self.model_copy(update={"name": name, "rows": rows})

    def replace(self, overrides: dict[str, Any]) -> Recipe:
        """A copy with dotted keys set, as `--set training.learning_rate=1e-4` does.

        `rows.kinds.0.terminal.cue` reaches into lists by index. Raises RecipeError.
        """
        values = self.model_dump()
        if overrides.get("rope.factor") is not None:  # the factor itself, in place of a multiple
            values["rope"]["headroom"] = "auto"
        for key, value in overrides.items():
            _assign(values, key, value)
        return build(values, f"recipe {self.name!r}")


FIRST_NAMES = {"trainable": "trains", "document_mask": "isolate", "verbatim": "quotes"}
"""Keys that had another name when the first results were written."""


ADDED = {
    "grows": False,
    "gaps": "empty",
    "gap_keys": "auto",
    "gap_bank": "auto",
    "divergence": "forward",
    "far_weight": 0.0,
    "label_weights": "rows",
    "planted_weight": 1.0,
}
"""Keys that came later, with their defaults."""


def _as_before(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            FIRST_NAMES.get(key, key): _as_before(v)
            for key, v in value.items()
            if key not in ADDED or v != ADDED[key]
        }
    return [_as_before(v) for v in value] if isinstance(value, (list, tuple)) else value


def names() -> list[str]:
    """Names of the shipped recipes; in front, those that a user should think of first."""
    rest = {path.stem for path in SHIPPED.glob("*.yaml")}.difference(FIRST)
    return [*FIRST, *sorted(rest)]


def load(name: str | Path) -> Recipe:
    """A shipped recipe by name, or one of the user's own by the path of its YAML file.

    `pose+cream` mixes the rows of several in equal parts, `0.8pose+0.2cream` in others; RoPE
    and training are the first one's.

    Raises RecipeError for an unknown name (with the nearest), a broken file, an unknown key.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if "+" in str(name):
            return _mixture(str(name))
        path = SHIPPED / f"{name}.yaml"
        if not path.is_file():
            raise RecipeError(
                f"unknown method {str(name)!r}{nearest(str(name), names())}: "
                f"one of {', '.join(names())}, or the path of a .yaml file"
            )
    return build({"name": path.stem, **read_yaml(path, "recipe")}, f"recipe {path.name}")


def chooses_scaling(name: str | Path, overrides: dict[str, Any]) -> bool:
    """Whether `rope.scaling` is the user's: set beside the recipe, or in a recipe of their own."""
    return "rope.scaling" in overrides or Path(name).suffix in (".yaml", ".yml")


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Settings of a YAML file; `what` it is called in errors. Raises RecipeError."""
    try:
        values = yaml_text.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no {what} file {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise RecipeError(f"cannot read {what} {path}: {first}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{what} {path} holds no settings")
    return values


def _mixture(name: str) -> Recipe:
    """Rows of several shipped recipes, each with its share. Raises RecipeError."""
    parts = name.split("+")
    matches = [re.fullmatch(r"(\d*\.?\d+)?([a-z][a-z0-9-]*)", part) for part in parts]
    if not all(matches):
        raise RecipeError(f"mixture {name!r}: write pose+cream or 0.8pose+0.2cream")
    shares = [float(part[1] or 1 / len(parts)) for part in matches if part]
    recipes = [load(part[2]) for part in matches if part]
    first = recipes[0]
    for recipe in recipes:
        if not recipe.trained or recipe.rows.tokens != first.rows.tokens:
            raise RecipeError(
                f"mixture {name!r}: {recipe.name!r} has no rows of the length of {first.name!r}"
            )
    kinds = [
        kind.model_copy(update={"share": kind.share * share})
        for share, recipe in zip(shares, recipes, strict=True)
        for kind in recipe.rows.kinds
    ]
    values = first.model_dump(exclude={"choose", "departs", "rows"})
    values |= {
        "name": name,
        "summary": "; ".join(
            f"{share:.0%} {recipe.summary}" for share, recipe in zip(shares, recipes, strict=True)
        ),
        "source": "; ".join(dict.fromkeys(recipe.source for recipe in recipes)),
        "rows": first.rows.model_dump(exclude={"kinds"}) | {"kinds": kinds},
    }
    return build(values, f"mixture {name!r}")


def build_recorded(values: dict[str, Any], what: str) -> Recipe:
    """A recipe from the record of a run, which may have earlier names. Raises RecipeError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return build(values, what)


def build(values: dict[str, Any], what: str) -> Recipe:
    """A recipe from plain values; every fault is named with its key. Raises RecipeError."""
    return validated(Recipe, values, what)


def validated(kind: type[Model], values: dict[str, Any], what: str) -> Model:
    """Settings from plain values; every fault is named with its key. Raises RecipeError."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{what}: {'; '.join(faults(error, kind))}") from None


def parse_overrides(assignments: list[str], option: str = "--set") -> dict[str, Any]:
    """`["training.seed=3"]` to `{"training.seed": 3}`; values are read as YAML."""
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise RecipeError(f"{option} {assignment}: write key=value, as in training.seed=3")
        try:
            overrides[key] = yaml_text.load(value)
        except yaml.YAMLError:
            raise RecipeError(f"{option} {assignment}: {value!r} is no YAML value") from None
        if isinstance(overrides[key], str):  # YAML 1.1 reads 1e-4 as text
            try:
                overrides[key] = float(value)
            except ValueError:
                continue
    return overrides


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    place: Any = values
    *parents, last = key.split(".")
    for word in parents:
        if isinstance(place, (list, tuple)):
            place = place[_index(word, place, key)]
        elif isinstance(place, dict) and word in place:
            if place[word] is None:
                place[word] = {}
            elif isinstance(place[word], tuple):
                place[word] = list(place[word])
            place = place[word]
        else:
            raise RecipeError(f"unknown key {key!r}{nearest(word, place or ())}")
    if isinstance(place, list):
        place[_index(last, place, key)] = value
    elif isinstance(place, dict):
        place[last] = value  # an unknown last word is refused, with a suggestion, by `build`
    else:
        raise RecipeError(f"key {key!r} reaches into a plain value")


def _index(word: str, place: Any, key: str) -> int:
    if not word.isdigit() or int(word) >= len(place):
        raise RecipeError(f"key {key!r}: {word!r} is no index below {len(place)}")
    return int(word)


def faults(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """Every fault of some settings in words: its key dotted, an unknown one with the nearest."""
    said = []
    for fault in error.errors():
        where = ".".join(str(word) for word in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _fields_at(kind, fault["loc"][:-1])
            said.append(f"unknown key {where!r}{nearest(str(fault['loc'][-1]), known)}")
        elif fault["type"] == "missing":
            said.append(f"{where} is missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            said.append(f"{where}: {message[:1].lower()}{message[1:]}" if where else message)
    return said


def _fields_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the settings that a path of keys leads to."""
    for word in path:
        field = kind.model_fields.get(word) if isinstance(word, str) else None
        kind = kind if field is None else next(_models(field.annotation), kind)
    return list(kind.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Classes of settings that stand in an annotation, such as `tuple[Kind, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
