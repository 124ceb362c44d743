"""What each engine reads of a RoPE scaling, what it can't express, and how it is started.

vLLM and SGLang turn `dynamic` at one fixed frequency where Transformers follows the length met,
and multiply `max_position_embeddings` by the factor of `linear`. Some older readers of `yarn` hold
factor and window to be one: Transformers 4.51 to 4.55 take window / original window for the factor
(4.56 and later don't), vLLM took original window * factor for the window (0.32 doesn't). They
differ where `rope.headroom` isn't 1 (read in their sources). llama.cpp's converter writes
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
    why_not = obstacle(engine, config)
    if why_not:
        return Served(engine, obstacle=why_not)
    parameters = rope.of_global_layers(SimpleNamespace(**config))
    kind = parameters.get("rope_type", "default")
    where = shlex.quote(folder)
    if engine == "transformers":
        command = f"AutoModelForCausalLM.from_pretrained({folder!r})"
        return Served(engine, command, _note(engine, parameters, target))
    if engine in SERVERS:
        command = (
            f"vllm serve {where} --max-model-len {target}"
            if engine == "vllm"
            else f"python -m sglang.launch_server --model-path {where} --context-length {target}"
        )
        return Served(engine, command, _note(engine, parameters, target))
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


def _note(engine: str, parameters: Mapping[str, Any], target: int) -> str:
    """What an engine, or an older version of it, would make of factor and window, or ""."""
    kind, s = parameters.get("rope_type", "default"), float(parameters.get("factor") or 1.0)
    if kind == "linear" and engine in SERVERS:
        return (
            f"without the flag it takes the window for {int(target * s)} tokens, the factor twice"
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


def obstacle(engine: str, config: Mapping[str, Any]) -> str:
    """Why an engine can't express the RoPE scaling of a config, or ""."""
    parameters = rope.of_global_layers(SimpleNamespace(**config))
    return rope.obstacle(engine, parameters, str(config.get("model_type")))
