"""RULER's prompts from NVIDIA's scripts and from endprompt: same prompts, how much faster.

    git clone https://github.com/NVIDIA/RULER somewhere
    pip install tenacity                      # imported by NVIDIA's tokenizer module
    python benchmarks/ruler_generation.py somewhere --tokenizer DIR

Both sides get the same made-up essays, SQuAD, HotpotQA and word list (endprompt's stand-ins) and
the same sentence splitter (NLTK's, with the data that NLTK finds, else with empty data). NVIDIA's
generator scripts run unmodified, one process a task and length as its prepare.py starts them;
endprompt runs once, as one command. Start-up counts on both sides. Times are processor seconds,
so that other work on the machine does not matter. Any difference in a prompt, an answer or a
length is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from endprompt.eval.ruler import TASKS, standin
from endprompt.io import files, provenance

FILES = {
    "essays": "PaulGrahamEssays.json",
    "squad": "squad.json",
    "hotpotqa": "hotpotqa.json",
    "english_words": "english_words.json",
}
PUNKT = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")


def cpu_seconds(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Run a command; processor seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def nvidia_command(
    scripts: Path, task: str, length: int, options: argparse.Namespace, out: Path
) -> list[str]:
    """The command that NVIDIA's prepare.py builds for one task and length."""
    sys.path.insert(0, str(scripts / "data" / "synthetic"))
    import yaml
    from constants import TASKS as FAMILIES

    settings = yaml.safe_load((scripts / "synthetic.yaml").read_text())[task]
    family = FAMILIES[settings["task"]]
    command = [options.python, str(scripts / "data" / "synthetic" / f"{settings['task']}.py")]
    command += ["--save_dir", str(out), "--save_name", task, "--subset", "validation"]
    command += ["--tokenizer_path", str(options.tokenizer), "--tokenizer_type", "hf"]
    command += ["--max_seq_length", str(length), "--num_samples", str(options.samples)]
    command += ["--tokens_to_generate", str(family["tokens_to_generate"])]
    command += ["--random_seed", "42", "--template", family["template"] + family["answer_prefix"]]
    for name, value in settings["args"].items():
        command += [f"--{name}", str(value)]
    return command


def rows(path: Path) -> list[dict[str, object]]:
    """The fields that both sides write (NVIDIA's index is a place in the text in niah tasks)."""
    kept = ("input", "answer_prefix", "outputs", "length", "token_position_answer")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: line[name] for name in kept if name in line} for line in lines]


def digest(path: Path) -> str:
    """Hash of the prompts and answers of a file."""
    texts = [f"{row['input']}{row['answer_prefix']}|{row['outputs']}" for row in rows(path)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of NVIDIA/RULER")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a tokenizer")
    parser.add_argument("--lengths", default="4096,65536", help="tokens (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=2, help="a task and length")
    parser.add_argument("--python", default=sys.executable, help="interpreter of NVIDIA's scripts")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.tokenizer = options.tokenizer.resolve()
    lengths = [int(length) for length in options.lengths.split(",")]

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shutil.copytree(options.checkout / "scripts", work / "scripts")
        data = work / "scripts" / "data" / "synthetic" / "json"
        for what, file in FILES.items():
            (data / file).write_text(json.dumps(getattr(standin, what)()))
        english = work / "nltk" / "tokenizers" / "punkt_tab" / "english"
        english.mkdir(parents=True)
        for file in PUNKT:
            (english / file).touch()
        environment = {"NLTK_DATA": str(work / "nltk"), **os.environ, "HF_HUB_OFFLINE": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

        command = [sys.executable, "-m", "endprompt", "eval", "data", "ruler", "--task", "all"]
        command += ["--length", options.lengths, "--num-samples", str(options.samples)]
        command += ["--tokenizer", str(options.tokenizer), "--out", str(work / "ours")]
        for what, file in FILES.items():
            command += [f"--{what.replace('_', '-')}", str(data / file)]
        ours = cpu_seconds(command, work, environment)
        print(f"endprompt: {ours:.1f} s for {len(TASKS) * len(lengths)} files", flush=True)

        cells = {}
        for length in lengths:
            for task in TASKS:
                command = nvidia_command(work / "scripts", task, length, options, work / "theirs")
                seconds = cpu_seconds(command, work / "scripts" / "data", environment)
                theirs = work / "theirs" / task / "validation.jsonl"
                mine = work / "ours" / str(length) / f"{task}.jsonl"
                if rows(theirs) != rows(mine):
                    raise SystemExit(f"{task} at {length}: not the same prompts")
                cells[f"{task}@{length}"] = {"seconds": seconds, "sha256": digest(mine)}
                print(f"NVIDIA: {task} at {length}: {seconds:.1f} s, same prompts", flush=True)

    total = sum(cell["seconds"] for cell in cells.values())
    commit = subprocess.run(
        ["git", "-C", str(options.checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    print(f"NVIDIA {total:.0f} s, endprompt {ours:.1f} s: {total / ours:.1f} times faster")
    result = {
        "nvidia_commit": commit.stdout.strip(),
        "tokenizer": options.tokenizer.name,
        "samples": options.samples,
        "lengths": lengths,
        "nvidia_cpu_seconds": total,
        "endprompt_cpu_seconds": ours,
        "ratio": total / ours,
        "cells": cells,
        **provenance.provenance(),
    }
    files.write_json(options.out / "ruler_generation.json", result)


if __name__ == "__main__":
    main()
