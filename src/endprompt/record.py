"""Types of the files that this package writes, for the one reader of them (`io.records.read`).

A type names what readers use; further keys are kept. Every record may carry `schema_version`;
one that is above `SCHEMA_VERSION` was written by a later version.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Json = dict[str, Any]


class Exact(BaseModel):
    """A frozen value whose unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(BaseModel):
    """A JSON file of ours. `remedy` ends the message about one that can't be read."""

    model_config = ConfigDict(extra="allow", frozen=True)
    remedy: ClassVar[str] = "make it again"

    schema_version: int = SCHEMA_VERSION

    def plain(self) -> Json:
        """What stands in the file, as plain values."""
        return self.model_dump(exclude_unset=True)


class Claim(Record):
    """claim.json: which command a folder belongs to.

    settings  what decides about the result; None while its checks run
    files     digest of every file of a folder that was built at once
    """

    remedy: ClassVar[str] = "choose another --out"

    endprompt: str
    settings: Json | None = None
    files: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, values: Any) -> Any:
        """Claims of `train` held the settings alone."""
        if isinstance(values, dict) and {"recipe_hash", "model"} <= values.keys():
            return {"endprompt": "train", "settings": values}
        return values


class Training(Record):
    """train.json: what a training was and took, seconds by the clock."""

    remedy: ClassVar[str] = "train again in another folder"

    recipe: Json
    target: Count
    tokens: Count
    flops: Amount
    seconds: Amount
    peak_memory_bytes: Count
    curve: list[Json]
    resumed_at: list[Count]
    computation: Json | None = None
    saved_precision: str | None = None


class Needle(Record):
    """A needle of a window check."""

    length: Count
    depth: Annotated[float, Field(ge=0, le=1)]
    nll_per_token: float
    digits_right: float
    hit: bool


class Nats(Record):
    """A loss at a length."""

    length: Count
    nll: float


class Key(Record):
    """A token before a length that gains from far context, and the loss on it."""

    document: Count
    length: Count
    position: Count
    nll: float


class Bin(Record):
    """The loss of positions start .. end-1."""

    start: Count
    end: Count
    nll: float


class Window(Record):
    """window.json: loss, needles and verbatim recall by length.

    key_tokens  with their loss, where `key_search` says what looked for them
    """

    remedy: ClassVar[str] = "evaluate again"

    lengths: list[Count]
    last: Count
    seed: int
    texts: list[str]
    seconds: Amount = 0.0
    peak_memory_bytes: Count = 0
    computation: Json | None = None
    losses: list[Nats]
    curve: list[Bin]
    needles: list[Needle]
    quotes: list[Nats]
    key_tokens: list[Key] = []
    key_search: Json | None = None


class Arm(Record):
    """One arm of a run."""

    name: str
    trained: bool = False
    label: str | None = None
    recipe: Json | None = None
    evaluation: Json | None = None


class ScalingProbe(Record):
    """A RoPE scaling on the short rows of `tune-scaling`.

    answers  depth of what a row asks for, and the loss of its answers, nats per token
    """

    remedy: ClassVar[str] = "remove it: the scaling is probed again"

    scaling: str
    headroom: float
    settings: dict[str, float]
    rope_parameters: Json
    answers: list[tuple[float, float]]
    seconds: Amount
    computation: Json


class Run(Record):
    """run.json: the record of `extend`, and of `sft`."""

    remedy: ClassVar[str] = "make the run again"

    arms: list[Arm]
    model: Json | None = None
    recipe: Json | None = None
    target: Count | None = None
    sft: Json | None = None


class Checks(Record):
    """doctor.json: the position check, and the calibration where it was asked for."""

    remedy: ClassVar[str] = "remove it and run again"

    checks: list[Json]


class Timings(Record):
    """timings.json: seconds of each job of a run and of all."""

    remedy: ClassVar[str] = "remove it"

    total: Amount = 0.0

    @model_validator(mode="after")
    def _all_are_seconds(self) -> Self:
        if not all(isinstance(value, int | float) for value in (self.model_extra or {}).values()):
            raise ValueError("every value is a number of seconds")
        return self


class Base(Record):
    """base.json: a base model of the laboratory."""

    remedy: ClassVar[str] = "remove its folder: it is trained again"

    seed: int
    base: Json
    warm_start: str
    seconds: Amount
    cpu_seconds: Amount
    tokens: Count
    parameters: Count


class LabResult(Record):
    """One arm on one base: answers by length and kind, losses by length, text and quarter."""

    remedy: ClassVar[str] = "remove it: the arm is done again"

    arm: str
    scaling: str
    factor: Count
    seed: int
    trained: bool
    recipe: Json
    tokens: Count
    flops: Amount
    train_seconds: Amount
    curve: list[Json]
    gradient: list[Json]
    answers: dict[str, dict[str, list[tuple[float, int]]]]
    loss: dict[str, list[tuple[float, float, float, float]]]
    base: Base
    provenance: Json


class UntaughtAnswer(Record):
    """A question of a task that no row teaches."""

    task: str
    length: Count
    depth: Annotated[float, Field(ge=0, le=1)]
    nll: float
    right: float


class Untaught(Record):
    """untaught.json: tasks that no row teaches, by length and distance."""

    remedy: ClassVar[str] = "evaluate again"

    lengths: list[Count]
    answers: list[UntaughtAnswer]


class Answers(Record):
    """summary.json: what a suite of `eval run` gave.

    notes  what a reader of the scores has to know
    """

    remedy: ClassVar[str] = "remove its folder: it is asked again"

    cells: list[Json]
    asked: Count
    answered: Count
    failed: Count
    notes: list[str]


class StudyArm(Record):
    """One arm of a study on one text with one training seed, on a real model."""

    remedy: ClassVar[str] = "remove it: the arm is run again"

    arm: str
    text: str
    seed: Count | None
    target: Count
    recipe: Json
    training: Training
    window: Window | None = None
    untaught: Untaught | None = None
    other_texts: dict[str, list[float]] = {}
    """Losses of texts that it was not trained on, up to the window, bin by bin."""
    provenance: Json


class Piece(Record):
    """Tokens start .. stop-1 of a document."""

    document: Count
    start: Count
    stop: Count


class Split(Record):
    """split.json: what of prepared text is trained on, and what is held out.

    copied_documents  left out of training whole, as copies of held-out text
    copied_tokens     left out of training, those of such documents and of parts of others
    """

    remedy: ClassVar[str] = "remove it and run again"

    train: list[Piece]
    held_out: list[list[Piece]]
    copied_documents: Count = 0
    copied_tokens: Count = 0


KINDS = (
    Training,
    Window,
    ScalingProbe,
    Run,
    Checks,
    Timings,
    Base,
    LabResult,
    Untaught,
    Answers,
    StudyArm,
    Split,
)
"""Every type of file."""


class RowFiles(Record):
    """rows.json: rows for other trainers, and what they were made of.

    base, base_digests  the checkpoint's name and the digests of its files
    tokenizer           digest of the tokenizer
    rope_parameters     of the scaled base, as Transformers writes them
    files               SHA-256 of every file that the rows are in
    configurations      SHA-256 of every trainer's configuration, as it was written
    """

    remedy: ClassVar[str] = "write the rows again"

    recipe: Json
    recipe_hash: str
    base: str
    tokenizer: str
    rope_parameters: Json
    target: Count
    row_tokens: Count
    rows: Count
    loss_weights: bool
    files: dict[str, str]
    configurations: dict[str, str] = {}
