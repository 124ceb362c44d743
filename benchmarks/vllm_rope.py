"""Hold vLLM's cos and sin against ours for every scaling rule, inside and past the old window.

    python benchmarks/vllm_rope.py --python VENV/bin/python     # the environment of in_vllm.py

vLLM's rotary embedding is made as its models make it, from the `rope_parameters` and the window
that an export writes, and read at six positions. No weights, no server: seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from endprompt import rope
from endprompt.export import engines
from endprompt.io import files, provenance

WINDOW, TARGET, HEAD = 2048, 8192, 64
INSIDE, PAST = [1, 700, 2047], [2048, 5000, 8191]
CHILD = """
import json, sys, types, torch, vllm
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope
found = []
for each in json.load(sys.stdin):
    config = VllmConfig()
    config.model_config = types.SimpleNamespace(max_model_len=each["target"])
    with set_current_vllm_config(config):
        held = get_rope(each["head"], each["window"], True, each["parameters"], torch.float32)
    places = torch.tensor(each["places"])
    if hasattr(held, "long_short_cos_sin_cache"):
        table = held.long_short_cos_sin_cache
        places = places + (held.original_max_position_embeddings if held.use_long_rope else 0)
    else:
        table = held.cos_sin_cache
    found.append([table[place].tolist() if place < len(table) else None for place in places])
print("FOUND" + json.dumps({"vllm": vllm.__version__, "rows": found}))
"""


def cases() -> dict[str, tuple[rope.Base, rope.Parameters]]:
    """Each rule on an unscaled base, with its settings, and on bases that are scaled already."""
    plain = rope.Base(1e4, HEAD, WINDOW)
    llama3 = rope.Base(5e5, HEAD, WINDOW, parameters={
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 256})  # fmt: skip
    yarn = rope.Base(1e6, HEAD, WINDOW, parameters={
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
        "original_max_position_embeddings": 512})  # fmt: skip
    made = {name: (plain, rope.parameters(plain, name, 4.0)) for name in rope.RULES}
    for name in ("yarn", "longrope"):
        made[f"{name}, headroom 2"] = plain, rope.parameters(plain, name, 8.0)
        made[f"{name}, attention_factor 1.5"] = (
            plain, rope.parameters(plain, name, 4.0, attention_factor=1.5))  # fmt: skip
    made["yarn, betas 16 and 2"] = (
        plain, rope.parameters(plain, "yarn", 4.0, beta_fast=16, beta_slow=2))  # fmt: skip
    made["llama3 on llama3"] = llama3, rope.parameters(llama3, "llama3", 4.0)
    made["yarn on yarn"] = yarn, rope.parameters(yarn, "yarn", 4.0)
    made["pi on llama3"] = llama3, rope.parameters(llama3, "pi", 4.0)
    made["pi on yarn"] = yarn, rope.parameters(yarn, "pi", 4.0)
    return made


def difference(parameters: rope.Parameters, places: list[int], rows: list[Any]) -> float | None:
    """Largest difference of cos and sin; None: vLLM's table ends before these positions."""
    if any(row is None for row in rows):
        return None
    length = WINDOW if max(places) < WINDOW else TARGET
    turns, size = rope.inverse_frequencies(parameters, HEAD, length=length, window=WINDOW)
    angles = np.outer(places, turns)
    return float(np.abs(np.hstack([np.cos(angles), np.sin(angles)]) * size - np.array(rows)).max())


def main() -> int:
    """Compare, print, write; 1 where vLLM differs and `endprompt export` doesn't say so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="of vLLM's environment")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/vllm_rope.json"))
    given = parser.parse_args()
    made, windows = cases(), {"dynamic": WINDOW}
    asked = [
        {"head": HEAD, "window": windows.get(name, TARGET), "target": TARGET,
         "parameters": parameters, "places": INSIDE + PAST}
        for name, (_, parameters) in made.items()
    ]  # fmt: skip
    surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([given.python, "-c", CHILD], input=json.dumps(asked), text=True,
                          capture_output=True, check=False, env=surroundings)  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    if not lines:
        raise SystemExit(f"vllm_rope.py: {done.stderr[-2000:]}")
    found, results, unsaid = json.loads(lines[0].removeprefix("FOUND")), [], []
    for (name, (_, parameters)), rows in zip(made.items(), found["rows"], strict=True):
        config = {"rope_parameters": parameters, "model_type": "llama"}
        said = engines.serve("vllm", config, TARGET, "DIR")
        inside = difference(parameters, INSIDE, rows[: len(INSIDE)])
        past = difference(parameters, PAST, rows[len(INSIDE) :])
        results.append({"rule": name, "inside": inside, "past": past,
                        "export_says": said.obstacle or said.note})  # fmt: skip
        print(f"{name:<28} inside {inside} past {past}  {said.obstacle or said.note}")
        if (past is None or past > 1e-2) and not said.obstacle:
            unsaid.append(name)
    versions = provenance.versions() | {"vllm": found["vllm"]}
    files.write_json(given.json, {"versions": versions, "window": WINDOW, "target": TARGET,
                                  "results": results})  # fmt: skip
    return int(bool(unsaid))


if __name__ == "__main__":
    raise SystemExit(main())
