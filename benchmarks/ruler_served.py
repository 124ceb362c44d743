"""RULER through vLLM's server and through `endprompt eval run`, both on this CPU: answers, speed.

    python benchmarks/ruler_served.py --python VENV/bin/python     # VENV as in_vllm.py says

SmolLM2 as it is, the same samples on both sides, all cores. Seconds are of the clock, of the whole
command: ours loads the model, and vLLM's start is given beside them. Nothing else may run.
Each precision's figures are written as they come, and not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from in_vllm import starter
from served import NAME, answers, endprompt, stop_on_sigterm

from endprompt.io import files, provenance
from endprompt.models import embedded

RESULTS = Path(__file__).parent / "results" / "ruler_served.json"
TASKS = "niah_single_1,niah_multikey_2,vt,cwe,fwe"
"""Those of RULER that need no text from elsewhere."""


def evaluate(
    model: Path, url: str | None, out: Path, lengths: str, samples: int, dtype: str, seed: int = 42
) -> float:
    """Seconds of `eval run`, through the server or here."""
    where = (NAME, "--server", url, "--tokenizer", model) if url else (model,)
    began = time.monotonic()
    done = endprompt(
        "eval", "run", *where, "--tasks", "ruler", "--ruler-tasks", TASKS, "--lengths",
        lengths, "--samples", samples, "--seed", seed, "--dtype", dtype, "--out", out,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"eval run failed: {done.stderr or done.stdout}")
    return time.monotonic() - began


def measure(python: Path, lengths: str, samples: int, dtype: str, work: Path) -> dict[str, Any]:
    """Both sides in one precision."""
    model = embedded.model()
    here = evaluate(model, None, work / "here", lengths, samples, dtype)
    began = time.monotonic()
    with starter(python)(model, 8192, dtype, work) as url:
        up = time.monotonic() - began
        # other prompts: vLLM keeps what it has read
        evaluate(model, url, work / "warm", lengths, 1, dtype, seed=43)
        served = evaluate(model, url, work / "served", lengths, samples, dtype)
    mine, theirs = answers(work / "here"), answers(work / "served")
    return {
        "tasks": TASKS,
        "lengths": lengths,
        "samples": len(mine),
        "equal": sum(theirs[key] == answer for key, answer in mine.items()),
        "seconds": {"endprompt": round(here, 1), "vllm": round(served, 1)},
        "vllm_start_seconds": round(up, 1),
        "samples_per_minute": {
            "endprompt": round(60 * len(mine) / here, 2),
            "vllm": round(60 * len(theirs) / served, 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="of vLLM's environment")
    parser.add_argument("--lengths", default="2k,4k", help="tokens (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="a task and length")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    stop_on_sigterm()
    results = json.loads(options.out.read_text())["results"] if options.out.is_file() else {}
    for dtype in options.dtypes.split(","):
        if dtype in results:
            continue
        work = Path(tempfile.mkdtemp())
        results[dtype] = measure(options.python, options.lengths, options.samples, dtype, work)
        shutil.rmtree(work)
        files.write_json(options.out, {**provenance.provenance(), "results": results})
        print(dtype, json.dumps(results[dtype]), flush=True)


if __name__ == "__main__":
    main()
