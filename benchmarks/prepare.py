"""How fast documents become tokens and rows, beside `datasets.map` and the tokenizer alone.

    python benchmarks/prepare.py [--tokenizer DIR] [--repeats 3] [--copies 5] [--memory-mb 200]

Every leg runs in a process of its own on the same text and with the same number of cores; legs
take turns, and the best of the repeats counts: what else runs on a machine only ever adds time.
The clock starts after imports and loading of the tokenizer, and stops when the tokens lie on disk
(for the tokenizer alone: in its own encodings, in memory). The text is the default one (King
James Bible and Python's documentation, some thirty lines or a topic a document), repeated.
`datasets.map` is tried with several settings and the best one counts. Peak memory of `prepare` is
measured on 10 MB and on a multiple of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from endprompt.io import files, provenance

MAP_SETTINGS = {  # processes, rows a batch; the tokenizer's own threads where there is one process
    "map, 1000 a batch": ("cores", 1000),
    "map, 100 a batch": ("cores", 100),
    "map, threads, 1000 a batch": (None, 1000),
}


def texts(folder: Path) -> list[str]:
    """Documents of the default text."""
    from pydoc_data import topics

    found = []
    for book in sorted(folder.glob("*.txt")):
        lines = book.read_text(encoding="utf-8").splitlines()
        found += ["\n".join(lines[i : i + 30]) for i in range(0, len(lines), 30)]
    return [*found, *topics.topics.values()]


def write_corpus(path: Path, documents: list[str], size: int) -> None:
    """Documents over and over, numbered so that no two are equal, up to `size` bytes."""
    written = copy = 0
    with path.open("w") as file:
        while written < size:
            for document in documents:
                line = json.dumps({"text": f"{copy} {document}"}, ensure_ascii=False) + "\n"
                written += len(line.encode())
                file.write(line)
                if written >= size:
                    break
            copy += 1


def leg_prepare(corpus: str, tokenizer: Any, out: str, _: list[str]) -> Callable[[], int]:
    from endprompt.data.mixture import Weighted
    from endprompt.data.prepare import prepare
    from endprompt.data.sources import open_source

    return lambda: prepare([Weighted(open_source(corpus))], tokenizer, Path(out))["tokens"]


def leg_map(corpus: str, tokenizer: Any, out: str, words: list[str]) -> Callable[[], int]:
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    processes, batch = json.loads(words[0])

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        ids = tokenizer(rows["text"], add_special_tokens=False, return_attention_mask=False)
        return {"input_ids": ids["input_ids"]}

    def run() -> int:
        rows = datasets.load_dataset(
            "json", data_files=corpus, split="train", cache_dir=f"{out}-cache"
        )
        done = rows.map(
            encode, batched=True, batch_size=batch, num_proc=processes, remove_columns=["text"]
        )
        done.save_to_disk(out)
        return -1

    return run


def leg_alone(corpus: str, tokenizer: Any, _: str, __: list[str]) -> Callable[[], int]:
    with Path(corpus).open() as file:
        held = [json.loads(line)["text"] for line in file]
    backend = tokenizer.backend_tokenizer

    def run() -> int:
        tokens = 0
        for start in range(0, len(held), 1000):
            encodings = backend.encode_batch(held[start : start + 1000], add_special_tokens=False)
            tokens += sum(len(encoding) for encoding in encodings)
        return tokens

    return run


def leg_alone_fast(corpus: str, tokenizer: Any, out: str, words: list[str]) -> Callable[[], int]:
    run = leg_alone(corpus, _Fast(tokenizer), out, words)
    return run


class _Fast:
    """The same tokenizer by its call that computes no offsets, the one that `prepare` uses."""

    def __init__(self, tokenizer: Any) -> None:
        self.backend_tokenizer = self
        self.encode_batch = tokenizer.backend_tokenizer.encode_batch_fast


LEGS = {"prepare": leg_prepare, "map": leg_map, "alone": leg_alone, "alone_fast": leg_alone_fast}


def child(name: str, corpus: str, tokenizer_folder: str, out: str, words: list[str]) -> None:
    """Run one leg and print its seconds, tokens and peak memory."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer("warm up")
    run = LEGS[name](corpus, tokenizer, out, words)
    before = provenance.peak_memory_bytes()
    cpu, began = cpu_seconds(), time.perf_counter()
    tokens = run()
    found = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": cpu_seconds() - cpu,
        "tokens": tokens,
        "before": before,
        "peak": provenance.peak_memory_bytes(),
    }
    print(json.dumps(found))


def cpu_seconds() -> float:
    """Of this process and of those that it waited for: hardly moved by a busy machine."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def measure(name: str, corpus: Path, tokenizer: str, cores: int, *words: str) -> dict[str, Any]:
    threads = {"RAYON_NUM_THREADS": str(cores), "TOKENIZERS_PARALLELISM": "true"}
    if words and json.loads(words[0])[0]:
        threads["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--leg", name, str(corpus), tokenizer]
        command += [f"{scratch}/out", *words]
        done = subprocess.run(
            command, env={**os.environ, **threads}, check=True, capture_output=True, text=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def rows_per_second(folder: Path, tokenizer: Any) -> dict[str, float]:
    """Tokens a second of making rows and batches, by recipe and length of the row."""
    from endprompt.cues import CueWriter
    from endprompt.data.prepared import open_documents
    from endprompt.data.rows import RowSource, collate
    from endprompt.recipe import load

    documents = open_documents(folder)
    found = {}
    for name in ("endprompt", "recall-anchors"):
        for tokens in (1024, 8192):
            rows = load(name).rows.model_copy(update={"tokens": tokens, "pack": "stream"})
            source = RowSource(
                documents, rows, CueWriter(tokenizer), target=65536, seed=0, count=10**6
            )
            collate([source[0], source[1]])
            began, made = time.perf_counter(), 0
            while time.perf_counter() - began < 2:
                made += collate([source[2 * made], source[2 * made + 1]])["input_ids"].numel()
            found[f"{name}, rows of {tokens}"] = made / (time.perf_counter() - began)
    return found


def step_tokens_per_second(model: str, tokens: int = 1024) -> float:
    """Tokens a second of forward and backward of one row, all cores."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.randint(0, 1000, (1, tokens))
    times = []
    for _ in range(2):
        began = time.perf_counter()
        network(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        times.append(time.perf_counter() - began)
    return tokens / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", help="folder; default: the embedded model")
    parser.add_argument("--text", help="folder of txt files; default: the embedded text")
    parser.add_argument("--model", help="checkpoint for the training step; default: none")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mb", type=int, default=20)
    parser.add_argument("--memory-mb", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/prepare.json")
    options = parser.parse_args()
    from endprompt.models import embedded

    tokenizer = options.tokenizer or str(embedded.model())
    documents = texts(Path(options.text) if options.text else embedded.text())
    result: dict[str, Any] = {
        **provenance.provenance(),
        "cores": options.cores,
        "text_mb": options.mb,
        "load_average_before": os.getloadavg(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus.jsonl"
        write_corpus(corpus, documents, options.mb * 10**6)
        seconds: dict[str, list[float]] = {}
        cpu: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            legs = [("prepare", "prepare", ()), ("alone", "tokenizer alone", ())]
            legs.append(("alone_fast", "tokenizer alone, without offsets", ()))
            for label, (processes, batch) in MAP_SETTINGS.items():
                count = options.cores if processes else None
                legs.append(("map", label, (json.dumps([count, batch]),)))
            for name, label, words in legs:
                found = measure(name, corpus, tokenizer, options.cores, *words)
                seconds.setdefault(label, []).append(found["seconds"])
                cpu.setdefault(label, []).append(found["cpu_seconds"])
                if name == "prepare":
                    result["tokens"] = found["tokens"]
        for unit, times in (("seconds", seconds), ("cpu_seconds", cpu)):
            least = {label: min(values) for label, values in times.items()}
            best = min((label for label in least if label.startswith("map")), key=least.__getitem__)
            ours = least["prepare"]
            result[unit] = {
                "all": times,
                "tokens_per_second": {k: result["tokens"] / value for k, value in least.items()},
                "best_map": best,
                "speed_against_map": least[best] / ours,
                "speed_against_tokenizer": least["tokenizer alone"] / ours,
                "speed_against_tokenizer_without_offsets": least["tokenizer alone, without offsets"]
                / ours,
            }
        result["peak_memory_mb"] = {}
        for size in (10, options.memory_mb):
            write_corpus(corpus, documents, size * 10**6)
            found = measure("prepare", corpus, tokenizer, options.cores)
            result["peak_memory_mb"][str(size)] = found["peak"] / 1e6
            result["memory_before_mb"] = found["before"] / 1e6
        from transformers import AutoTokenizer

        write_corpus(corpus, documents, 10 * 10**6)
        loaded = AutoTokenizer.from_pretrained(tokenizer)
        leg_prepare(str(corpus), loaded, f"{scratch}/rows", [])()
        result["rows_tokens_per_second"] = rows_per_second(Path(scratch) / "rows", loaded)
    if options.model:
        step = step_tokens_per_second(options.model)
        result["step_tokens_per_second"] = step
        result["rows_ratio_to_step"] = {
            name: speed / step for name, speed in result["rows_tokens_per_second"].items()
        }
    result["load_average_after"] = os.getloadavg()
    files.write_json(options.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--leg"]:
        child(*sys.argv[2:6], sys.argv[6:])
    else:
        main()
