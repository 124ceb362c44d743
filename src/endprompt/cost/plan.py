"""What a training run will cost, before it is started: operations, memory, hours, money.

docs/cost-model.md derives every term and holds it against measurements. Nothing here loads a
model or torch: sizes come from a config, the speed of a machine from its name or a measurement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from endprompt import recipe as recipes
from endprompt.cost import flops
from endprompt.cost.flops import Decoder
from endprompt.cost.memory import (
    CPU_RUNTIME,
    GIB,
    TOKENS_AT_ONCE,
    Memory,
    gap_bytes,
    tokens_at_once,
    train_memory_bytes,
)
from endprompt.errors import RecipeError, nearest
from endprompt.recipe import Recipe

UTILISATION = 0.45
"""Part of a GPU's peak that training reaches, recomputation counted as work; an assumption."""
CPU_UTILISATION = 0.8
"""Part of the timed peak of matmuls that the matmuls of a model reach on a CPU."""
HALF_SPEED_TOKENS = 620
"""Tokens at which attention on a CPU has half of the speed that it has on long rows."""
GPU_RUNTIME = 1.5 * GIB
"""Driver context, workspaces and what the allocator cannot hand out again."""
MARGIN = 0.94
"""Part of a device's memory that a plan may fill."""
NODE = 8
"""Devices that share the fast link."""
NETWORK = 50e9
"""Bytes a second and device between nodes: one 400 Gbit/s port each."""


@dataclass(frozen=True)
class Sized:
    """A model by its sizes alone."""

    decoder: Decoder
    window: int


SIZES = {
    "smollm2-135m": Sized(Decoder(30, 576, 1536, 9, 3, 64, 49152, tied=True), 8192),
    "mistral-7b": Sized(Decoder(32, 4096, 14336, 32, 8, 128, 32000), 32768),
    "llama-2-7b": Sized(Decoder(32, 4096, 11008, 32, 32, 128, 32000), 4096),
    "llama-3-8b": Sized(flops.LLAMA_3_8B, 8192),
    "llama-3-70b": Sized(Decoder(80, 8192, 28672, 64, 8, 128, 128256), 8192),
}
"""Models whose cost can be asked for without having them."""


@dataclass(frozen=True)
class Device:
    """One accelerator, or a CPU whose speed was measured."""

    name: str
    memory_bytes: float
    peak: float
    """Operations a second of dense matmuls, in the precision that trains."""
    link: float
    """Bytes a second to its neighbours, one way; 0 for a device that trains alone."""
    utilisation: float = UTILISATION
    attention: float | None = None
    """Operations a second of attention on long rows; None: what is assumed of the peak."""
    dtype: str = "bfloat16"
    runtime_bytes: float = GPU_RUNTIME


DEVICES = {
    "a100-40": Device("A100 40 GB", 39.4 * GIB, 312e12, 300e9),
    "a100-80": Device("A100 80 GB", 79.2 * GIB, 312e12, 300e9),
    "a800": Device("A800 80 GB", 79.2 * GIB, 312e12, 200e9),
    "h100": Device("H100 80 GB", 79.2 * GIB, 989e12, 450e9),
    "h200": Device("H200 141 GB", 139.8 * GIB, 989e12, 450e9),
    "b200": Device("B200 180 GB", 178.0 * GIB, 2250e12, 900e9),
    "l40s": Device("L40S 48 GB", 44.5 * GIB, 362e12, 28e9),
    "rtx4090": Device("RTX 4090 24 GB", 23.5 * GIB, 165e12, 28e9),
}
"""Makers' figures: memory that a program sees, dense bf16 peak, link in one direction."""


@dataclass(frozen=True)
class Machine:
    """Devices that train together."""

    device: Device
    count: int = 1

    @property
    def link(self) -> float:
        """Bytes a second and device on the slowest way between two of them."""
        return self.device.link if self.count <= NODE else min(self.device.link, NETWORK)


@dataclass(frozen=True)
class Settings:
    """What a plan may choose."""

    checkpointing: bool
    sharded: bool

    @property
    def short(self) -> str:
        """One word, for a table."""
        if self.sharded:
            return "both" if self.checkpointing else "shard"
        return "ckpt" if self.checkpointing else "plain"


ORDER = tuple(Settings(kept, sharded) for sharded in (False, True) for kept in (False, True))


@dataclass(frozen=True)
class Line:
    """One recipe on one machine."""

    method: str
    row_tokens: int
    rows_per_step: int
    steps: int
    tokens: int
    operations: float
    options: tuple[tuple[Settings, Memory, float], ...]
    """Settings, memory of a device, seconds of the run; fastest kind first."""
    fits: tuple[bool, ...]
    devices_needed: int | None
    """Fewest devices that hold it, sharded with checkpointing; None: no number of them does."""
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> int | None:
        """Index of the fastest option that fits; None where none does."""
        fitting = [index for index, fit in enumerate(self.fits) if fit]
        return min(fitting, key=lambda index: self.options[index][2], default=None)

    def as_dict(self, price: float | None = None, count: int = 1) -> dict[str, Any]:
        """For JSON; `price` is money for a device and hour, of `count` devices."""
        record: dict[str, Any] = {
            "method": self.method,
            "row_tokens": self.row_tokens,
            "rows_per_step": self.rows_per_step,
            "steps": self.steps,
            "tokens": self.tokens,
            "flops": self.operations,
            "devices_needed": self.devices_needed,
            "notes": list(self.notes),
            "chosen": self.chosen,
            "options": [],
        }
        for (settings, memory, seconds), fit in zip(self.options, self.fits, strict=True):
            option = {
                **asdict(settings),
                "fits": fit,
                "memory_bytes": asdict(memory) | {"total": memory.total},
                "hours": seconds / 3600,
            }
            if price is not None:
                option["money"] = seconds / 3600 * count * price
            record["options"].append(option)
        return record


def machine(text: str) -> Machine:
    """`h100:8` as a machine. Raises RecipeError for an unknown device.

    >>> machine("h100:8").count
    8
    """
    match = re.fullmatch(r"([a-z0-9-]+?)(?::(\d+))?", text.strip().lower())
    name, count = (match[1], int(match[2] or 1)) if match else (text, 0)
    if name not in DEVICES:
        known = ", ".join(DEVICES)
        raise RecipeError(f"unknown GPU {name!r}{nearest(name, DEVICES)}: one of {known}, or auto")
    if count < 1:
        raise RecipeError(f"{text!r} names no devices: write {name}:8")
    return Machine(DEVICES[name], count)


def cpu(name: str, *, memory_bytes: float, peak: float, attention: float, tokens: int) -> Machine:
    """A CPU that was timed in float32, in operations a second.

    peak       of matmuls
    attention  of attention forward and backward, on rows of so many tokens
    """
    device = Device(
        name,
        memory_bytes,
        peak,
        link=0.0,
        utilisation=CPU_UTILISATION,
        attention=attention * (1 + HALF_SPEED_TOKENS / tokens),
        dtype="float32",
        runtime_bytes=CPU_RUNTIME,
    )
    return Machine(device)


def train_seconds(
    recipe: Recipe, decoder: Decoder, where: Machine, *, checkpointing: bool | None = None
) -> float:
    """Seconds of computing of a resolved recipe on all devices of a machine.

    checkpointing  None: as the recipe has it
    """
    device, of_row = where.device, flops.row(recipe, decoder, checkpointing)
    matmuls = device.peak * device.utilisation
    attention = matmuls
    if device.attention:
        tokens = recipe.amounts.row_tokens
        if recipe.training.attention == "shifted":
            tokens //= recipe.training.attention_groups
        attention = device.attention / (1 + HALF_SPEED_TOKENS / tokens)
    row = of_row.matmuls / matmuls + of_row.attention / attention
    return row * recipe.amounts.rows / where.count


def communication_seconds(
    recipe: Recipe, decoder: Decoder, where: Machine, settings: Settings, passes: int
) -> float:
    """Seconds on the link: gathering weights twice and scattering gradients at every pass when
    sharded, one reduction of float32 gradients a step when not. Overlaps with computing.
    """
    if where.count == 1 or not where.link:
        return 0.0
    part = (where.count - 1) / where.count
    trained = flops.trained_weights(decoder, recipe.training.trainable, recipe.training.lora_rank)
    if settings.sharded:
        moved = passes * part * (2 * 2 * decoder.weights + 2 * trained)
    else:
        moved = 2 * part * 4 * trained
    return recipe.amounts.steps * moved / where.link


def line(
    recipe: Recipe,
    decoder: Decoder,
    where: Machine,
    *,
    window: int,
    target: int,
) -> Line:
    """Cost of a recipe with every setting that may be chosen, and which of them fit.

    A step of fewer rows than devices is raised to a row a device, as training would demand.
    """
    resolved = recipe.resolve(window=window, target=target, gpu=where.device.dtype != "float32")
    notes: tuple[str, ...] = ()
    rows = resolved.amounts.rows_per_step
    if recipe.trained and rows % where.count:
        step = -(-rows // where.count) * where.count * resolved.amounts.row_tokens
        resolved = recipe.replace({"training.tokens_per_step": step}).resolve(
            window=window, target=target, gpu=where.device.dtype != "float32"
        )
        notes = (f"--set training.tokens_per_step={step}: {where.count} devices share a step",)
    if resolved.rows.gaps == "filled" and recipe.trained:
        notes += (_said_of_gaps(resolved, decoder, where.device.dtype),)
    amounts, device = resolved.amounts, where.device

    def batches(settings: Settings) -> tuple[int, int]:
        if not recipe.trained:
            return 1, 1
        tokens = TOKENS_AT_ONCE
        if device.dtype != "float32":
            held = resolved.memory(checkpointing=settings.checkpointing)
            tokens = tokens_at_once(decoder, device.memory_bytes, **held)
        return amounts.batches(where.count, tokens)

    def memory(settings: Settings, devices: int) -> Memory:
        at_once, passes = batches(settings)
        return train_memory_bytes(
            decoder,
            row_tokens=amounts.row_tokens,
            rows_at_once=at_once,
            **resolved.memory(checkpointing=settings.checkpointing),
            devices=devices,
            sharded=settings.sharded,
            accumulates=passes > 1,
            runtime=device.runtime_bytes,
        )

    room = MARGIN * device.memory_bytes
    options, fits = [], []
    for settings in ORDER if where.count > 1 else ORDER[:2]:
        held = memory(settings, where.count)
        computing = train_seconds(resolved, decoder, where, checkpointing=settings.checkpointing)
        moving = communication_seconds(resolved, decoder, where, settings, batches(settings)[1])
        options.append((settings, held, max(computing, moving)))
        fits.append(held.total <= room)
    needed = next(
        (n for n in _counts() if memory(replace(ORDER[-1], sharded=n > 1), n).total <= room), None
    )
    return Line(
        method=recipe.name,
        row_tokens=amounts.row_tokens,
        rows_per_step=amounts.rows_per_step,
        steps=amounts.steps if recipe.trained else 0,
        tokens=amounts.tokens if recipe.trained else 0,
        operations=flops.row(resolved, decoder, False).total * amounts.rows,
        options=tuple(options),
        fits=tuple(fits),
        devices_needed=needed,
        notes=notes,
    )


def _said_of_gaps(recipe: Recipe, decoder: Decoder, dtype: str) -> str:
    """What fills the gaps of a resolved recipe, and what it takes of each device."""
    keys, bank = recipe.memory()["gap_keys"], recipe.memory()["gap_bank"]
    held = gap_bytes(decoder, recipe.amounts.row_tokens, keys, bank, dtype)
    return (
        f"gaps: up to {keys:,} keys a row from a bank of {bank:,} tokens, "
        f"{held / GIB:.1f} GiB of each device"
    )


def _counts() -> tuple[int, ...]:
    """Numbers of devices that are tried."""
    return (1, 2, 4, *range(8, 1025, 8))


PAPER = {
    "memory_gb": {"endprompt": 36.52, "full": 76.0},
    "speedup": {"full": 1.41, "longlora": 1.69, "lceg-pi": 1.77},
}
"""Figure 4 of the paper: Llama-3-8B to 64K on 8 A800, ZeRO-3, bf16, checkpointing."""


def paper() -> list[tuple[str, float, float]]:
    """(what, the paper's figure, the prediction) for each figure of PAPER.

    Memory in GB a device, sharded with checkpointing, a row at a time; speed as time of the
    method named over that of `endprompt`, from operations alone.
    """
    size, where = SIZES["llama-3-8b"], machine("a800:8")
    lines = {
        name: line(recipes.load(name), size.decoder, where, window=8192, target=65536)
        for name in ("endprompt", *PAPER["speedup"])
    }
    sharded = {name: costed.options[-1] for name, costed in lines.items()}
    ratios = [
        (f"GB a device, {name}", figure, sharded[name][1].total / 1e9)
        for name, figure in PAPER["memory_gb"].items()
    ]
    per_token = {name: sharded[name][2] / lines[name].tokens for name in lines}
    ratios += [
        (f"time of {name} / endprompt", figure, per_token[name] / per_token["endprompt"])
        for name, figure in PAPER["speedup"].items()
    ]
    return ratios


def sized(model: str, *, target: int) -> Sized:
    """Sizes of a known name, or from the config of a checkpoint folder or hub name.

    Raises RecipeError for a target that is not above the window.
    """
    known = SIZES.get(model)
    if known is None:
        from endprompt.models import embedded
        from endprompt.models.checkpoint import family_of, load_config

        path = embedded.resolve(model)
        config = load_config(path)
        known = Sized(flops.read(config), family_of(path, config).base.window)
    if target <= known.window:
        raise RecipeError(f"--to {target} is not above the window of {known.window} tokens")
    return known


def lines(
    model: Sized,
    where: Machine,
    *,
    target: int,
    methods: Sequence[str] | None = None,
    settings: dict[str, Any] | None = None,
    tokens: int | None = None,
) -> list[Line]:
    """What each recipe will cost for a model on a machine.

    methods   names or files; None: all shipped that train
    settings  dotted keys of every recipe
    tokens    to train on; None: the recipe's own
    """
    listed = []
    for name in methods or recipes.names():
        recipe = recipes.load(name).replace(settings or {})
        if tokens and recipe.trained:
            recipe = recipe.replace({"training.tokens": tokens})
        if methods or recipe.trained:
            listed.append(line(recipe, model.decoder, where, window=model.window, target=target))
    return listed


def record(
    lines: Sequence[Line],
    sized: Sized,
    where: Machine,
    *,
    model: str,
    target: int,
    price: float | None,
) -> dict[str, Any]:
    """A plan as plain values, for a file."""
    return {
        "kind": "plan",
        "model": model,
        "weights": sized.decoder.weights,
        "target": target,
        "devices": where.count,
        "device_name": where.device.name,
        "device_memory_bytes": where.device.memory_bytes,
        "peak_flops_per_second": where.device.peak,
        "utilisation": where.device.utilisation,
        "attention_flops_per_second": where.device.attention,
        "methods": [line.as_dict(price, where.count) for line in lines],
    }


def alike(lines: list[Line]) -> list[tuple[list[str], Line]]:
    """Methods whose costs are equal, under one of them."""
    groups: dict[Line, list[str]] = {}
    for line in lines:
        groups.setdefault(replace(line, method=""), []).append(line.method)
    return [(names, replace(line, method=names[0])) for line, names in groups.items()]


def remedy(line: Line) -> str:
    """What to do where no settings fit."""
    if line.devices_needed:
        return f"fits from {line.devices_needed} such devices on, sharded with checkpointing"
    return (
        f"one row of {line.row_tokens:,} tokens is too much for such a device whatever the number: "
        f"shorter rows (a method that jumps), or each row cut over devices (endprompt accelerate "
        f"fsdp2-cp)"
    )


def launch(lines: list[Line], where: Machine) -> str:
    """The words that start the proposed settings of the first line that fits."""
    for line in lines:
        if line.chosen is not None:
            settings = line.options[line.chosen][0]
            words = f"endprompt train {line.method}"
            words += f" --set training.gradient_checkpointing={str(settings.checkpointing).lower()}"
            if settings.sharded:
                words = (
                    f'accelerate launch --config_file "$(endprompt accelerate fsdp2)" '
                    f"--num_processes {where.count} -m {words}"
                )
            elif where.count > 1:
                words = f"torchrun --nproc_per_node {min(where.count, 8)} -m {words}"
            return f"as proposed: {words} ..."
    return "nothing fits: see the lines above"
