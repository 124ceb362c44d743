"""Models in and out: found, scaled, loaded, saved so that they load elsewhere."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endprompt import rope
from endprompt.errors import ModelError
from endprompt.io import files
from endprompt.models import adapters, families, weights
from endprompt.models.checkpoint_files import (
    is_number,
    local_folder,
    model_errors,
    one_line,
    read_headers,
    require_model,
    weight_files,
)
from endprompt.models.tokenizer import load_tokenizer
from endprompt.recipe import Recipe

MOST_LAYERS = 10_000
"""Far above any model's; Transformers makes lists of so many items from a config."""
log = logging.getLogger(__name__)
ROPE_NUMBERS = {
    "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor",
    "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor",
}  # fmt: skip
"""Keys of `rope_parameters` that hold one number."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def load_config(model: str) -> Any:
    """Transformers config of a checkpoint folder, an adapter's, or a hub name.

    Raises ModelError.
    """
    from transformers import AutoConfig

    require_model(model)
    source = adapters.config_folder(model)
    require_model(source)
    _require_layers(source)
    with model_errors(model):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        # A file may ask for kernels from a hub here; the caller of `load` chooses.
        config._attn_implementation = None
    _require_rope_numbers(config, model)
    return config


def _require_layers(model: str) -> None:
    """Raise ModelError for a config with more layers than a list of them should be made for."""
    from transformers import PreTrainedConfig

    with model_errors(model):
        written, _ = PreTrainedConfig.get_config_dict(model)
        inner = written.get("text_config")
    for part in (written, inner if isinstance(inner, dict) else {}):
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if is_number(part.get(key)) and part[key] > MOST_LAYERS:
                raise ModelError(f"{key} of {model} is {part[key]:,}: at most {MOST_LAYERS:,}")


def _require_rope_numbers(config: Any, model: str) -> None:
    """Raise ModelError for RoPE settings of another type, which Transformers lets pass."""
    settings = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    for kind in (settings, *settings.values()):
        for key in (ROPE_NUMBERS & set(kind)) if isinstance(kind, dict) else ():
            if kind[key] is not None and not is_number(kind[key]):
                raise ModelError(f"{key} of {model} is no number: {one_line(kind[key])}")
        if isinstance(kind, dict) and not isinstance(kind.get("rope_type", ""), str):
            raise ModelError(f"rope_type of {model} is no name: {one_line(kind['rope_type'])}")


def family_of(model: str, config: Any = None) -> families.Family:
    """Layers and RoPE of a checkpoint. Raises RopeError for a model that can't be extended.

    Where the config doesn't say how far its scaling reaches, the tokenizer's length does.
    """
    config = load_config(model) if config is None else config
    kind = rope.of_global_layers(config).get("rope_type", "default")
    named = load_tokenizer(model).model_max_length if kind in ("linear", "dynamic") else 0
    return families.read(config, named)


def scaled_parameters(family: families.Family, recipe: Recipe, target: int) -> rope.Parameters:
    """`rope_parameters` of the layers that a recipe scales, for a window of `target` tokens.

    Raises RopeError for a rule that the family or the base's own scaling doesn't allow, for a
    target that is not above the window, and for one that no layer sees.
    """
    settings = recipe.rope
    rope.check_scaling(family.model_type, settings.scaling)
    if settings.scaling == "none":
        return family.base.own
    family.require_reach(target)
    s = _factor(family.base, recipe, target)
    given = settings.model_dump(exclude={"scaling", "factor", "headroom"})
    return rope.parameters(family.base, settings.scaling, s, **given)


def _factor(base: rope.Base, recipe: Recipe, target: int) -> float:
    settings, times = recipe.rope, target / base.window
    return settings.factor or rope.factor(base.window, target, settings.multiple(times, base))


def scaled_config(model: str, recipe: Recipe, target: int) -> Any:
    """Config of `model` with the recipe's RoPE scaling and a window of `target` tokens.

    Raises RopeError as `family_of` and `scaled_parameters` do.
    """
    config = load_config(model)
    family = family_of(model, config)
    parameters = scaled_parameters(family, recipe, target)
    if recipe.rope.scaling == "none":
        return config
    base = family.base
    headroom = _factor(base, recipe, target) / rope.factor(base.window, target)
    return families.scaled_config(config, parameters, base, target, base.headroom * headroom)


@dataclass(frozen=True)
class Stored:
    """What a checkpoint's files hold, known to fit its config before any weight is read.

    precision   that of most weights: float32, bfloat16 or float16
    tied        names of weights that are those of the embedding
    """

    folder: Path
    precision: str
    tied: frozenset[str]


def check(model: str, config: Any) -> Stored:
    """Hold a checkpoint's files against its config and tokenizer; takes no memory.

    Raises ModelError for weights that are missing, unexpected, of another shape or stored as a
    pickle, and for a tokenizer beside them with more tokens than the embedding has rows.
    """
    if adapters.is_adapter(model):
        adapters.require_weights(model)
        load_tokenizer(model)
        return check(adapters.base_of(model), config)
    folder = local_folder(model)
    headers = read_headers(weight_files(folder, model), model)
    if not Path(model).is_dir() or any(folder.glob("*token*")):
        load_tokenizer(model)
    with model_errors(model), weights.unheard():
        tied = weights.require_complete(headers, config, model)
    return Stored(folder, weights.precision(headers, config), tied)


def load(model: str, config: Any, *, attention: str | None = None, dtype: str = "float32") -> Any:
    """A causal language model with `config`, its weights read from safetensors only.

    attention  Transformers' name; None: sdpa where the family has it, else eager
    dtype      float32, bfloat16, float16; "auto": the precision that the weights are stored in

    Each tensor is read into its place: the memory needed is that of the model in `dtype`. An
    adapter's base is read, and the adapter merged into it.
    Raises ModelError as `check` does, and for weights that are NaN or infinite.
    """
    import torch
    from transformers import AutoModelForCausalLM

    stored = check(model, config)
    with model_errors(model), weights.unheard():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            stored.folder,
            config=config,
            attn_implementation=attention,
            dtype=getattr(torch, stored.precision if dtype == "auto" else dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        network, report = loaded
        weights.require_same(report, model)
        weights.require_tied(network, stored.tied, model)
        if adapters.is_adapter(model):
            network = adapters.merged(network, model)
        weights.require_finite(network, model)
    ends = getattr(network.generation_config, "eos_token_id", None)
    for token in ends if isinstance(ends, list) else [ends]:
        if token is not None and not isinstance(token, int):
            raise ModelError(f"eos_token_id of {model} is no token: {one_line(token)}")
    return network


def under(network: Any, config: Any, *, attention: str | None = None) -> Any:
    """A model of the same weights under another config: what `load` gives with it, in no time.

    config     of the same sizes, RoPE scaled otherwise
    attention  as `load` takes it

    Weights are shared, in the precision and on the device that they have; nothing else is, so
    that frequencies, and factors that a family makes of them, are the new config's.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        other = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=network.dtype
        )
    with torch.no_grad():
        other.load_state_dict(network.state_dict(), assign=True)
    return other.to(network.device).train(network.training)


def gathered(model: Any, accelerator: Any = None, wrapped: Any = None) -> dict[str, Any] | None:
    """All weights on the first rank where ranks hold parts of them; None where each has all.

    Every rank has to call this: it gathers. Other ranks get an empty dictionary.

    accelerator, wrapped  the run's, which DeepSpeed's weights are asked from
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.tensor import DTensor

    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(model, options=whole)
    if accelerator is not None and str(accelerator.distributed_type).endswith("DEEPSPEED"):
        return accelerator.get_state_dict(wrapped)
    return None


def save(model: Any, tokenizer: Any, folder: Path, target: int, *, dtype: str = "float32") -> str:
    """Write a checkpoint with its tokenizer and chat template, whole or not at all.

    dtype  precision of the weights written, to which the model is cast

    A checkpoint that is there is replaced: the caller holds the folder that it is in. Returns the
    precision written: float32, with a warning, where weights have outgrown float16.
    """
    import torch

    if not weights.fit(model, dtype):
        log.warning("weights have outgrown %s: %s is written in float32", dtype, folder)
        dtype = "float32"
    model.to(getattr(torch, dtype))
    with files.building(folder, replace=True) as partial:
        write(model, tokenizer, partial, target)
    return dtype


def write(model: Any, tokenizer: Any, folder: Path, target: int) -> None:
    """Write a checkpoint with its tokenizer and chat template into an empty folder."""
    model.config.use_cache = True  # the Trainer had switched it off
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.model_max_length = target
    tokenizer.save_pretrained(folder)
    _write_older_layout(folder / "config.json")


def link(model: str, config: Any, tokenizer: Any, folder: Path, target: int) -> None:
    """An untrained checkpoint: new config and tokenizer, the base's weights by link.

    Those of an adapter are merged, and written.
    """
    if adapters.is_adapter(model):
        save(
            load(model, config, dtype="auto"),
            tokenizer,
            folder,
            target,
            dtype=check(model, config).precision,
        )
        return
    source = local_folder(model)
    with files.building(folder, replace=True) as partial:
        config.save_pretrained(partial)
        tokenizer.model_max_length = target
        tokenizer.save_pretrained(partial)
        _write_older_layout(partial / "config.json")
        for path in [*(match for pattern in WEIGHTS for match in source.glob(pattern)),
                     *source.glob("generation_config.json")]:  # fmt: skip
            (partial / path.name).symlink_to(path.resolve())


def _write_older_layout(config_file: Path) -> None:
    """Add the keys of the older layout: its readers fall to theta 10000 without them."""
    config = json.loads(config_file.read_text())
    config |= families.older_layout(config)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
