"""Serve exports by llama.cpp and hold it against the model as trained, past the old window.

    python -m venv VENV
    VENV/bin/pip install xllamacpp           # llama.cpp's server, built
    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36    # its source has llama.cpp
    python benchmarks/in_llama_server.py --python VENV/bin/python \\
        --converter llama.cpp/convert_hf_to_gguf.py --work runs/llama.cpp

Each export of `tiny_exports.py` is converted to GGUF by llama.cpp's own converter in float32,
served by llama.cpp's server with its defaults (a cache in float16) and asked as `served.py` says.
The converter runs in this environment and needs `sentencepiece` there. Cases that stand in the
JSON file are not run again. Servers are stopped whatever happens.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from served import LOST, free_port, measure_all, running
from tiny_exports import EXPORTS, SMOLLM2

from endprompt.io import provenance

CASES = [
    *((name, "float32") for name in EXPORTS),
    *((name, LOST) for name in EXPORTS),
    (SMOLLM2, "float32"),
]
SERVER = """
import sys, threading, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port, p.n_ctx, p.n_parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 1
p.cpuparams.n_threads = 1
server = xllamacpp.Server(p)
threading.Event().wait()
"""


def starter(python: Path, converter: Path):
    """A `served.Start` by llama.cpp: converter and server."""

    @contextmanager
    def start(folder: Path, length: int, dtype: str, work: Path) -> Iterator[str]:
        out = work / "model.gguf"
        kind = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
        words = [sys.executable, converter, folder, "--outfile", out, "--outtype", kind]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{converter} failed:\n{done.stderr[-2000:]}")
        port = free_port()
        here = f"http://127.0.0.1:{port}"
        started = [str(python), "-c", SERVER, str(out), str(port), str(length)]
        with running(started, {}, f"{here}/health", work / "server.log"):
            yield f"{here}/v1"

    return start


def main() -> int:
    """Serve each case, and write what was found as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="of xllamacpp's environment")
    parser.add_argument("--converter", type=Path, required=True, help="convert_hf_to_gguf.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for exports and logs")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/llama_server.json"))
    parser.add_argument("--only", help="exports, joined by commas")
    given = parser.parse_args()
    only = given.only.split(",") if given.only else [*EXPORTS, SMOLLM2]
    ask = "import xllamacpp; print(xllamacpp.__version__)"
    version = subprocess.run([given.python, "-c", ask], capture_output=True, text=True, check=True)
    said = {"versions": provenance.versions(), "xllamacpp": version.stdout.split()[-1]}
    cases = [case for case in CASES if case[0] in only]
    run = starter(given.python, given.converter)
    return measure_all(run, cases, given.work, given.json, said)


if __name__ == "__main__":
    raise SystemExit(main())
