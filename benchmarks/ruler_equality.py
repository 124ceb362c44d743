"""RULER's prompts from NVIDIA's scripts and from endprompt, for three more tokenizers.

    git clone https://github.com/NVIDIA/RULER somewhere
    pip install tenacity                      # imported by NVIDIA's tokenizer module
    python benchmarks/ruler_equality.py somewhere

They are trained on the King James Bible and Python's manual: byte-level BPE of 2,000 and of
4,000 entries, and Unigram of 8,000. All 13 tasks at three lengths, 20 samples each: input,
answer prefix, answers, length and the answers' places have to be equal. NVIDIA's scripts run
unmodified, in processes forked from one that has imported their libraries. The record is written
after every cell, and a cell that it has is not done again. `ruler_generation.py` measures speed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ruler_generation as generation
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from endprompt.eval.ruler import TASKS, standin
from endprompt.io import files, provenance
from endprompt.models import embedded

KINDS = {"bpe-2000": 2000, "bpe-4000": 4000, "unigram-8000": 8000}
SECONDS = 1200
"""After this a script of NVIDIA's is taken to repeat for ever."""


def corpus() -> list[str]:
    """Text that the tokenizers are trained on."""
    from pydoc_data.topics import topics

    books = [path.read_text() for path in sorted(Path(embedded.text()).glob("*.txt"))]
    return [*books, *(topics[name] for name in sorted(topics))]


def train(kind: str, folder: Path) -> None:
    """Train a tokenizer and save it as Transformers loads it."""
    size, special = KINDS[kind], ["<s>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE() if kind.startswith("bpe") else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = (
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet,
                            show_progress=False)
        if kind.startswith("bpe")
        else trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>",
                                     initial_alphabet=alphabet, show_progress=False)
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus(), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.save_pretrained(folder)


def run_script(command: list[str], folder: Path, log: Path) -> None:
    """A script of NVIDIA's in this process, which was forked for it."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")


def theirs(command: list[str], folder: Path, log: Path) -> str:
    """Run a script; '' where it ended well."""
    child = multiprocessing.get_context("fork").Process(
        target=run_script, args=(command, folder, log)
    )
    child.start()
    child.join(SECONDS)
    if child.exitcode is None:
        child.kill()
        return f"no end after {SECONDS} s"
    return "" if child.exitcode == 0 else log.read_text(errors="replace")[-300:]


def compare(
    kind: str,
    scripts: Path,
    work: Path,
    options: argparse.Namespace,
    found: dict[str, str],
    save: Callable[[], None],
) -> None:
    """Put into `found` what each task at each length gave: equal, or what differs."""
    folder = work / kind
    options.tokenizer = folder / "tokenizer"
    train(kind, options.tokenizer)
    data = scripts / "data" / "synthetic" / "json"
    command = [sys.executable, "-m", "endprompt", "eval", "data", "ruler", "--task", "all"]
    command += ["--length", options.lengths, "--num-samples", str(options.samples)]
    command += ["--tokenizer", str(options.tokenizer), "--out", str(folder / "ours")]
    for what, file in generation.FILES.items():
        command += [f"--{what.replace('_', '-')}", str(data / file)]
    subprocess.run(command, cwd=work, check=True, capture_output=True)
    for length in map(int, options.lengths.split(",")):
        out = folder / "theirs" / str(length)
        out.mkdir(parents=True)
        for task in TASKS:
            if f"{task}@{length}" in found:
                continue
            words = generation.nvidia_command(scripts, task, length, options, out)[1:]
            said = theirs(words, scripts / "data", out / f"{task}.log")
            mine = folder / "ours" / str(length) / f"{task}.jsonl"
            if not said:
                one = generation.rows(out / task / "validation.jsonl")
                other = generation.rows(mine)
                differing = [n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
                said = f"samples {differing} differ" if differing else "equal"
            found[f"{task}@{length}"] = said
            save()
            print(f"{kind}: {task} at {length}: {said}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of NVIDIA/RULER")
    parser.add_argument("--lengths", default="4096,6144,8192", help="tokens")
    parser.add_argument("--samples", type=int, default=20, help="of a task and length")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(
        "--json", type=Path, default=Path(__file__).parent / "results" / "ruler_equality.json"
    )
    options = parser.parse_args()
    options.python = sys.executable
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    commit = subprocess.run(
        ["git", "-C", str(options.checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    figures: dict[str, Any] = {
        "nvidia_commit": commit.stdout.strip(),
        "samples": options.samples,
        **provenance.provenance(),
    }
    before = json.loads(options.json.read_text()) if options.json.is_file() else {}
    figures["cells"] = before.get("cells", {})
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        scripts = work / "scripts"
        shutil.copytree(options.checkout / "scripts", scripts)
        for what, file in generation.FILES.items():
            target = scripts / "data" / "synthetic" / "json" / file
            target.write_text(json.dumps(getattr(standin, what)()))
        english = work / "nltk" / "tokenizers" / "punkt_tab" / "english"
        english.mkdir(parents=True)
        for file in generation.PUNKT:
            (english / file).touch()
        os.environ.setdefault("NLTK_DATA", str(work / "nltk"))
        import nltk  # noqa: F401
        import tenacity  # noqa: F401
        import wonderwords  # noqa: F401

        for kind in options.kinds.split(","):
            compare(
                kind, scripts, work, options, figures["cells"].setdefault(kind, {}),
                lambda: files.write_json(options.json, figures),
            )  # fmt: skip
    cells = [said for found in figures["cells"].values() for said in found.values()]
    equal = sum(said == "equal" for said in cells)
    print(f"{equal} of {len(cells)} cells are equal, {options.samples} samples each")
    return int(equal < len(cells))


if __name__ == "__main__":
    sys.exit(main())
