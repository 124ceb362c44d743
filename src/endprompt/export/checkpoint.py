"""Write a run's checkpoint so that Transformers, vLLM, SGLang and llama.cpp see its window."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from endprompt import __version__, rope
from endprompt.errors import DataError, ModelError, RopeError
from endprompt.export import card, engines, reference
from endprompt.io import claims, files, records
from endprompt.models import adapters, weights
from endprompt.models import checkpoint as models
from endprompt.recipe import Recipe, build_recorded
from endprompt.record import RowFiles, Training

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Source:
    """A finished run: its checkpoint, and what it was made of.

    record  what run.json holds; of `endprompt train`, what its two files say
    """

    model: Path
    base: str
    target: int
    recipe: Recipe
    record: dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """What was written, and how each engine is given it."""

    folder: Path
    served: list[engines.Served]
    reference: reference.Reference


def find(run: Path, rows: Path | None = None) -> Source:
    """The checkpoint of a run of `endprompt extend` or `endprompt train`.

    rows  folder of `endprompt rows`: then `run` is a checkpoint or an adapter that another
          trainer made of them

    Raises DataError when the folder holds no finished run, ModelError for a checkpoint that has
    another scaling than its rows.
    """
    if rows is not None:
        return _of_rows(run, rows)
    folder = run.parent if run.name == "run.json" else run
    if (folder / "run.json").is_file():
        from endprompt.report.run_files import read

        record = read(folder)
        missing = [key for key in ("checkpoint", "model", "recipe", "target") if key not in record]
        if missing:
            raise DataError(f"{folder}/run.json is of another kind: no {missing[0]} in it")
        recipe = build_recorded(record["recipe"], f"the recipe of {folder}")
        # the folder may have been moved since
        inside = folder.joinpath(*Path(record["checkpoint"]).parts[-3:])
        model = inside if inside.is_dir() else Path(record["checkpoint"])
        return Source(model, record["model"]["path"], int(record["target"]), recipe, record)
    claimed = claims.settings_of(folder)
    if (folder / "train.json").is_file() and claimed is not None:
        trained = records.read(folder / "train.json", Training).plain()
        base = claimed["model"]
        record = {**trained.get("provenance", {}), "recipe": trained["recipe"], "arms": []}
        record |= {"target": trained["target"], "tokens": trained["tokens"]}
        recipe = build_recorded(trained["recipe"], f"the recipe of {folder}")
        return Source(folder / "model", base, int(trained["target"]), recipe, record)
    if adapters.is_adapter(folder) or (folder / "config.json").is_file():
        raise DataError(
            f"{folder} is a checkpoint and no run of endprompt: give --rows, the folder of "
            "`endprompt rows` that it was trained on"
        )
    raise DataError(f"no finished run in {folder}: it has neither run.json nor train.json")


def _of_rows(model: Path, rows: Path) -> Source:
    """What another trainer made of rows; their manifest says what they were made of."""
    made_of = records.read(rows / "rows.json", RowFiles)
    recipe = build_recorded(made_of.recipe, f"the recipe of {rows}")
    scaling = dict(rope.of_global_layers(models.load_config(str(model))))
    if scaling != made_of.rope_parameters:
        raise ModelError(
            f"{model} has RoPE {scaling}, and the rows of {rows} were made for "
            f"{made_of.rope_parameters}: it was trained on another base, or on other rows"
        )
    record: dict[str, Any] = {
        "recipe": made_of.recipe,
        "recipe_hash": made_of.recipe_hash,
        "arms": [],
        "target": made_of.target,
        "tokens": made_of.rows * made_of.row_tokens,
        "model": {"name": Path(made_of.base).name, "source": made_of.base},
    }
    return Source(model, made_of.base, made_of.target, recipe, record)


def export(
    run: Path,
    out: Path,
    *,
    rows: Path | None = None,
    wanted: list[str] | None = None,
    dtype: str | None = None,
    tokens: int | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the checkpoint of `run` to `out`, whole or not at all.

    rows    folder of `endprompt rows`: `run` is what another trainer made of them, an adapter too
    wanted  engines that have to be able to serve it; None: whichever can
    dtype   of the weights written: float32, bfloat16, float16; None: that of the run's
    tokens  length of the text by which the checkpoint can be checked; None: 1,024 past the window

    Raises RopeError before anything is written when a wanted engine can't express the scaling,
    OutputError for a folder that is there already; with `force`, for one that is not the whole
    and unchanged export of before.
    """
    source = find(run, rows)
    config = models.scaled_config(source.base, source.recipe, source.target)
    base = models.load_config(source.base)
    window = models.family_of(source.base, base).base.window
    names = engines.checked(list(wanted or engines.ENGINES))
    values = engines.read_of(config)
    for name in names if wanted else ():
        why_not = engines.obstacle(name, values)
        if why_not:
            raise RopeError(
                f"{name} can't serve scaling {source.recipe.rope.scaling!r}: {why_not}; leave it "
                f"out of --for, or train with another rope.scaling"
            )
    served = [engines.serve(name, values, source.target, out.name) for name in names]
    lengths = reference.prompt_lengths(window, source.target, tokens)
    folder = run.parent if run.name == "run.json" else run
    reads = [folder, source.model, source.base]
    with claims.product(out, "export", reads=reads, force=force) as partial:
        tokenizer = models.load_tokenizer(str(source.model))
        dtype = dtype or models.check(str(source.model), config).precision
        say(f"reading {lengths[-1]:,} tokens with the model as trained, and with RoPE unscaled")
        trained = models.load(str(source.model), config)
        unscaled = models.load(str(source.model), base)
        probe = reference.probe_tokens(tokenizer, lengths[-1])
        places = reference.places(trained, unscaled, tokenizer, probe, lengths)
        del unscaled

        say(f"writing {out} in {dtype}")
        if not weights.fit(trained, dtype):
            raise ModelError(f"weights of {source.model} are too large for {dtype}: choose another")
        import torch

        models.write(trained.to(getattr(torch, dtype)), tokenizer, partial, source.target)
        max_positions = _complete(partial, dtype)
        _carry_licence(source.base, partial)
        for path in partial.glob("*.safetensors"):
            # safetensors makes it the owner's alone: a server is often another user
            path.chmod((partial / "config.json").stat().st_mode)
        template = getattr(tokenizer, "chat_template", None)
        expected = reference.Reference(
            endprompt=__version__,
            window=window,
            target=source.target,
            dtype=dtype,
            rope_parameters=config.rope_parameters,
            max_position_embeddings=max_positions,
            chat_template_sha256=sha256(template) if isinstance(template, str) else None,
            tokens=probe,
            places=places,
        )
        files.write_text(partial / reference.FILE, expected.model_dump_json() + "\n")
        text = card.write(source.record, source.recipe, window, source.target, out.name, served)
        files.write_text(partial / "README.md", text)
    return Exported(out, served, expected)


def _complete(folder: Path, dtype: str) -> int:
    """Add what older readers look for to config.json; returns its max_position_embeddings."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["torch_dtype"] = dtype
    parameters = rope.of_global_layers(SimpleNamespace(**config))
    if parameters.get("rope_type") == "llama3":
        # llama.cpp's converter reads it here, and takes 8192 where it is missing
        original = parameters["original_max_position_embeddings"]
        config["original_max_position_embeddings"] = original
    files.write_json(file, config)
    return int(config["max_position_embeddings"])


def _carry_licence(base: str, folder: Path) -> None:
    if Path(base).is_dir():
        for pattern in LICENCES:
            for path in Path(base).glob(pattern):
                shutil.copyfile(path, folder / path.name)


def sha256(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
