"""What each engine reads of a RoPE scaling, what it can't express, and how it is started.

vLLM's table of `dynamic` ends at the old window, SGLang turns it at one fixed frequency where
Transformers follows the length met. Both multiply `max_position_embeddings` by the factor of
`linear` (vLLM not for Gemma 3). vLLM turns `longrope` by the long factors at every length and
takes its factor on cos and sin from the windows. Some older readers of `yarn` hold
factor and window to be one: Transformers 4.51 to 4.55 take window / original window for the factor
(4.56 and later don't), vLLM took original window * factor for the window (0.32 doesn't). They
differ where `rope.headroom` isn't 1 (read in their sources). What vLLM 0.32 makes of each rule is
measured by `benchmarks/vllm_rope.py`. llama.cpp's converter writes
type and factor of `linear` and `yarn`, nothing of `dynamic`, and LongRoPE's factors for few
architectures only.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from endprompt import rope
from endprompt.errors import RecipeError, nearest

ENGINES = ("transformers", "vllm", "sglang", "llama.cpp")
SERVERS = frozenset({"vllm", "sglang"})


@dataclass(frozen=True)
class Served:
    """How an engine is given a checkpoint, or why it can't be.

    command   a command line, or a line of Python for Transformers
    note      what has to be known beside it
    obstacle  why the engine can't hold this scaling; "" where it can
    """

    engine: str
    command: str = ""
    note: str = ""
    obstacle: str = ""


def checked(names: list[str]) -> list[str]:
    """The names, when all are known. Raises RecipeError with the nearest."""
    for name in names:
        if name not in ENGINES:
            raise RecipeError(
                f"unknown engine {name!r}{nearest(name, ENGINES)}: one of {', '.join(ENGINES)}"
            )
    return names


def serve(engine: str, config: Mapping[str, Any], target: int, folder: str) -> Served:
    """How `engine` is given the checkpoint in `folder` with its window of `target` tokens.

    config  the checkpoint's config.json
    """
    config = {"max_position_embeddings": target, **config}
    why_not = obstacle(engine, config)
    if why_not:
        return Served(engine, obstacle=why_not)
    parameters = rope.of_global_layers(SimpleNamespace(**config))
    kind = parameters.get("rope_type", "default")
    where = shlex.quote(folder)
    if engine == "transformers":
        command = f"AutoModelForCausalLM.from_pretrained({folder!r})"
        return Served(engine, command, _note(engine, config, target))
    if engine in SERVERS:
        command = (
            f"vllm serve {where} --max-model-len {target}"
            if engine == "vllm"
            else f"python -m sglang.launch_server --model-path {where} --context-length {target}"
        )
        return Served(engine, command, _note(engine, config, target))
    flags = ""
    betas = parameters.get("beta_fast") or 32.0, parameters.get("beta_slow") or 1.0
    if kind == "yarn" and betas != (32.0, 1.0):
        flags = f" --yarn-beta-fast {betas[0]:g} --yarn-beta-slow {betas[1]:g}"
    return Served(
        engine,
        f"python convert_hf_to_gguf.py {where} --outfile model.gguf && "
        f"llama-server -m model.gguf -c {target}{flags}",
        "the converter is a file of llama.cpp's source",
    )


def _note(engine: str, config: Mapping[str, Any], target: int) -> str:
    """What an engine, or an older version of it, would make of factor and window, or ""."""
    parameters = rope.of_global_layers(SimpleNamespace(**config))
    kind, s = parameters.get("rope_type", "default"), float(parameters.get("factor") or 1.0)
    excepted = engine == "vllm" and str(config.get("model_type")).startswith("gemma3")
    if kind == "linear" and engine in SERVERS and not excepted:
        return (
            f"without the flag it takes the window for {int(target * s)} tokens, the factor twice"
        )
    if kind == "longrope" and engine == "vllm":
        return (
            "it turns prompts inside the old window by the factors of the extended one too; "
            "without the flag it serves the old window only"
        )
    original = parameters.get("original_max_position_embeddings")
    if kind != "yarn" or not original or target == original * s:
        return ""
    if engine == "transformers":
        return (
            f"versions 4.51 to 4.55 would scale by {target / original:g} in place of {s:g}, in "
            "silence: load it with 4.56 or later"
        )
    if engine == "vllm":
        return f"older versions take the window for {int(original * s)} tokens without the flag"
    return ""


def read_of(config: Any) -> dict[str, Any]:
    """What `obstacle` and `serve` read of a config.json, from Transformers' config."""
    keys = ("rope_parameters", "model_type", "max_position_embeddings")
    return {key: getattr(config, key) for key in keys}


def obstacle(engine: str, config: Mapping[str, Any]) -> str:
    """Why an engine can't express the RoPE scaling of a config.json, or ""."""
    parameters = rope.of_global_layers(SimpleNamespace(**config))
    window = int(config["max_position_embeddings"])
    return rope.obstacle(engine, parameters, str(config.get("model_type")), window)
