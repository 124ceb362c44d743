"""Attack the package: mutated files into every reader, kills into every verb that writes a folder.

    python benchmarks/attack.py --inputs 10000 --kills 50 --seed 0 --minutes 120

Counts what must not happen: a traceback, a hang, too much memory, a silent difference, an artefact
that differs from the uninterrupted run's, something of the user's that is gone. The figures go to
benchmarks/results/attack.json; the exit code is 1 where any of them is not zero. A finding is
reproduced by its seed and number. Given again with the same seed, kills resume.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
HANG_SECONDS, BLOCKED_SECONDS = 20, 300
"""Of the processor, so that a busy machine hangs nothing; and by the clock, for what only waits."""
LARGEST_BYTES = 2**30
TARGET = "256"

Reader = Callable[[Path], Any]
Named = dict[str, tuple[Path, str, str | None]]
"""File, reader and type of record, by name: what goes to another process."""


# ---------------------------------------------------------------- mutated inputs


def _documents(path: Path) -> Any:
    from endprompt.data.sources import open_source

    for document in open_source([str(path)]).documents():
        assert document.text is not None or document.ids is not None


def _prepared(path: Path) -> Any:
    """Digest of what a prepared folder gives; a fault that `prepare verify` names is no silence."""
    from endprompt.data.manifest import verify
    from endprompt.data.prepared import open_documents
    from endprompt.errors import DataError

    folder = path.parent if path.name == "manifest.json" else path.parent.parent
    faults = verify(folder)
    if faults:
        raise DataError(faults[0])
    documents = open_documents(folder)
    joined = [documents[n].astype("<u4").tobytes() for n in range(len(documents))]
    return hashlib.sha256(b"|".join([*joined, *map(str.encode, documents.names)])).hexdigest()


def _record(kind_name: str) -> Reader:
    def read(path: Path) -> None:
        from endprompt import record
        from endprompt.io import records

        records.read(path, getattr(record, kind_name))

    read.kind = kind_name  # type: ignore[attr-defined]
    return read


def _recipe(path: Path) -> None:
    from endprompt import recipe

    recipe.load(path)


def _samples(path: Path) -> None:
    from endprompt.eval.results import read_samples

    read_samples(path, repair=True)


def _predictions(path: Path) -> None:
    from endprompt.eval.ruler.scoring import read_predictions

    read_predictions(path)


def _longbench(path: Path) -> None:
    from endprompt.eval.longbench import read_rows

    list(read_rows(path, ("pred", "answers")))


def _reference(path: Path) -> None:
    from endprompt.export.reference import read

    read(path.parent)


def _model(path: Path) -> None:
    from endprompt.models import checkpoint

    config = checkpoint.load_config(str(path.parent))
    checkpoint.check(str(path.parent), config)
    checkpoint.load_tokenizer(str(path.parent))


def _settings(path: Path) -> None:
    from endprompt.sft.settings import load

    load(path, {})


def seeds_of_inputs(work: Path) -> dict[str, tuple[Path, Reader]]:
    """A whole file for each reader, by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    from endprompt.cli.app import run
    from tiny_checkpoint import WORDS, save_tiny

    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=60)) + "." for _ in range(12)]
    rows = [{"text": text, "number": n} for n, text in enumerate(texts)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = pa.table({"text": texts, "number": list(range(12))})
    work.mkdir(parents=True, exist_ok=True)
    plain = {
        "t.txt": "\n\n".join(texts).encode(),
        "t.md": b"# A\n\n" + texts[0].encode(),
        "t.jsonl": lines,
        "t.json": json.dumps(rows).encode(),
        "t.csv": ("text,number\n" + "".join(f'"{t}",{n}\n' for n, t in enumerate(texts))).encode(),
        "t.jsonl.gz": gzip.compress(lines),
        "t.jsonl.zst": zstandard.compress(lines),
    }
    for name, content in plain.items():
        (work / name).write_bytes(content)
    pq.write_table(table, work / "t.parquet")
    with pa.OSFile(str(work / "t.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as s:
        s.write_table(table, max_chunksize=4)
    found: dict[str, tuple[Path, Reader]] = {
        name: (work / name, _documents) for name in [*plain, "t.parquet", "t.arrow"]
    }
    tiny = save_tiny(work / "tiny")
    assert (
        run(["prepare", str(work / "t.jsonl"), "-t", str(tiny), "--out", str(work / "data")]) == 0
    )
    for path in sorted((work / "data").rglob("*")):
        if path.is_file() and (path.suffix == ".arrow" or path.name == "manifest.json"):
            found[f"prepared {path.name}"] = (path, _prepared)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        found[f"model {name}"] = (tiny / name, _model)
    shutil.copy(ROOT / "src/endprompt/recipes/recall-anchors.yaml", work / "mine.yaml")
    found["recipe"] = (work / "mine.yaml", _recipe)
    (work / "sft.yaml").write_text("steps: 4\nlearning_rate: 1.0e-5\n")
    found["sft settings"] = (work / "sft.yaml", _settings)
    from io_records import VALID  # the examples of the tests, by type

    for kind, value in VALID.items():
        path = work / f"{kind.__name__}.json"
        path.write_text(json.dumps(value))
        found[f"record {kind.__name__}"] = (path, _record(kind.__name__))
    sample = {"id": "a", "task": "t", "length": 9, "prompt_sha256": "x", "prediction": "p",
              "references": ["p"], "scores": {"hit": 1.0}}  # fmt: skip
    (work / "samples.jsonl").write_text(json.dumps(sample) + "\n" + json.dumps(sample) + "\n")
    found["samples"] = (work / "samples.jsonl", _samples)
    pred = {"pred": "7", "outputs": ["7"], "answers": ["7"]}
    (work / "pred.jsonl").write_text(json.dumps(pred) + "\n")
    found["predictions"] = (work / "pred.jsonl", _predictions)
    found["longbench"] = (work / "pred.jsonl", _longbench)
    return found


BOMBS = (b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe\x00", b"\x00" * 4096, b"", b"null", b"[]",
         b'{"text": "\\ud800"}\n', b'"' + b"a" * 10**6, b"9" * 10_000,
         b"!!python/object:os.system []",
         "\u2028\u0085\u202e".encode() * 50, b"\x1b[2J\r\n" * 50, b"NaN", b"1e999")  # fmt: skip


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One of the ways in which a file goes wrong."""
    data = bytearray(content)
    way = rng.randrange(9)
    if way == 0 and data:
        for _ in range(rng.choice((1, 1, 4, 32))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == 1:
        del data[rng.randrange(len(data) + 1) :]
    elif way == 2:
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 16, 512))
        del data[at : at + size]
    elif way == 3:
        at = rng.randrange(len(data) + 1)
        data[at:at] = rng.choice(BOMBS)
    elif way == 4:
        return rng.choice(BOMBS)
    elif way == 5 and data:
        at = rng.randrange(len(data))
        data[at:at] = data[at : at + rng.choice((8, 256))] * rng.choice((1, 50))
    elif way == 6:
        at, size = rng.randrange(len(data) + 1), rng.choice((4, 64))
        data[at : at + size] = rng.randbytes(size)
    elif way == 7:
        digits = [n for n, byte in enumerate(data) if 48 <= byte <= 57]
        if digits:
            at = rng.choice(digits)
            data[at : at + 1] = rng.choice((b"-1", b"999999999999", b"0.5", b"null", b'"x"', b"[]"))
    else:
        words = [b"true", b"null", b'"text"', b"{}", b"{", b"}", b",", b":", b"\n", b"\x00"]
        at = rng.randrange(len(data) + 1)
        data[at:at] = rng.choice(words)
    return bytes(data)


class Hang(BaseException):
    """A reader that does not come back."""


def _alarm(*_: Any) -> None:
    raise Hang


def attack_file(path: Path, reader: Reader, content: bytes, whole: Any) -> str:
    """'' where the reader did what it should, else what it did."""
    from endprompt.errors import EndPromptError

    original = path.read_bytes()
    signal.signal(signal.SIGPROF, _alarm)
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    signal.alarm(BLOCKED_SECONDS)
    try:
        path.write_bytes(content)
        found = reader(path)
    except EndPromptError as error:
        return "" if "\n" not in str(error) else "message of several lines"
    except Hang:
        return "hang"
    except BaseException as error:
        return f"traceback ({type(error).__name__}: {str(error)[:80]})"
    else:
        if whole is not None and content != original and found != whole:
            return "silent difference"
        return ""
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        path.write_bytes(original)


def _resident(key: str) -> int:
    """A line of the kernel's memory table of this process, bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def _batch(job: tuple[Path, Named, list[int], int]) -> tuple[list[tuple[str, int, str]], int]:
    """Attack with some numbers in a process of its own; findings and its peak memory in bytes."""
    source, named, numbers, seed = job
    from endprompt.io.silence import silence_libraries

    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        shutil.copytree(source, work)
        known = {
            name: (work / path, globals()[reader] if kind is None else _record(kind))
            for name, (path, reader, kind) in named.items()
        }
        wholes = {
            name: reader(path) for name, (path, reader) in known.items() if reader is _prepared
        }
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        findings = []
        names = sorted(known)
        for number in numbers:
            rng = random.Random(f"{seed}:{number}")
            name = names[number % len(names)]
            path, reader = known[name]
            content = mutate(path.read_bytes(), rng)
            said = attack_file(path, reader, content, wholes.get(name))
            if said:
                findings.append((name, number, said))
        peak = _resident("VmHWM")
    return findings, max(peak - before, 0)


def attack_inputs(count: int, seed: int, until: float, workers: int) -> dict[str, Any]:
    """`count` mutated files over all readers, in processes that are renewed every 250."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        known = seeds_of_inputs(source)
        named = {
            name: (path.relative_to(source), reader.__name__, getattr(reader, "kind", None))
            for name, (path, reader) in known.items()
        }
        chunks = [list(range(n, min(n + 250, count))) for n in range(0, count, 250)]
        kinds: Counter[str] = Counter()
        examples: list[dict[str, Any]] = []
        done = peak = 0
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, maxtasksperchild=1) as pool:
            jobs = ((source, named, chunk, seed) for chunk in chunks)
            for chunk, (findings, memory) in zip(chunks, pool.imap(_batch, jobs), strict=True):
                done, peak = done + len(chunk), max(peak, memory)
                for name, number, said in findings:
                    kinds[said.split(" (")[0]] += 1
                    if len(examples) < 40:
                        examples.append({"reader": name, "number": number, "said": said})
                print(f"inputs {done}/{count}: {sum(kinds.values())} findings", flush=True)
                if time.time() > until:
                    break
    return {
        "inputs": done,
        "readers": len(named),
        "tracebacks": kinds["traceback"],
        "hangs": kinds["hang"],
        "silent_differences": kinds["silent difference"],
        "messages_of_several_lines": kinds["message of several lines"],
        "over_memory": int(peak > LARGEST_BYTES),
        "peak_memory_bytes": peak,
        "findings": examples,
    }


# ---------------------------------------------------------------- kills

VERBS: dict[str, list[str]] = {
    "prepare": ["prepare", "{text}", "-t", "{tiny}", "--out", "{out}"],
    "train": ["train", "pose", "--model", "{tiny}", "--data", "{data}", "--to", TARGET,
              "--set", "rows.tokens=64", "--set", "training.tokens=768",
              "--set", "training.save_steps=3", "--out", "{out}"],
    "extend": ["extend", "{tiny}", "--to", "2048", "--text", "{text}", "--lengths", "1024,2048",
               "--needles", "2", "--set", "rows.tokens=128", "--set", "training.tokens=768",
               "--set", "training.save_steps=2", "--out", "{out}"],
    "eval run": ["eval", "run", "{tiny}", "--tasks", "passkey", "--lengths", "400,600",
                 "--depths", "3", "--out", "{out}"],
    "lab": ["lab", "--quick", "--steps", "2", "--arms", "short", "--workers", "1",
            "--out", "{out}"],
    "export": ["export", "{run}", "--out", "{out}"],
    "sft": ["sft", "{tiny}", "--data", "{chats}", "--set", "steps=6", "--set", "save_steps=2",
            "--out", "{out}"],
}  # fmt: skip
FINAL = ("*.safetensors", "*.arrow", "samples.jsonl", "config.json", "tokenizer.json")
"""Files whose bytes don't depend on when and how fast they were made."""


def _artefacts(out: Path) -> dict[str, str]:
    found = {}
    for pattern in FINAL:
        for path in sorted(out.rglob(pattern)):
            if path.is_file():
                found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(out.rglob("*.json")):  # results of the laboratory, less their timings
        if path.parent.parent.name == "results":
            value = json.loads(path.read_bytes())
            kept = {key: value[key] for key in ("answers", "loss", "recipe")}
            found[str(path.relative_to(out))] = hashlib.sha256(
                json.dumps(kept, sort_keys=True).encode()
            ).hexdigest()
    return found


def _leavings(out: Path) -> list[str]:
    marks = (".partial", ".building", ".begun")
    return [
        str(path.relative_to(out.parent))
        for path in out.parent.rglob("*")
        if path.name.endswith(marks) or (path.name.startswith(".") and "model" in path.name)
    ]


PRELOADED = ["torch", "transformers.trainer", "transformers.models.llama.modeling_llama",
             "datasets", "peft", "trl.trainer.sft_trainer", "scipy.stats",
             "endprompt.cli.app"]  # fmt: skip
FORKED = multiprocessing.get_context("forkserver")


def _inside(command: list[str], log: Path) -> None:
    """The command in this process, which was forked with its libraries imported."""
    os.setsid()
    os.chdir(log.parent)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from endprompt.cli.app import run

    sys.exit(run(command))


def _start(verb: str, places: dict[str, Path], log: Path) -> Any:
    command = [word.format(**places) for word in VERBS[verb]]
    child = FORKED.Process(target=_inside, args=(command, log))
    child.start()
    return child


def _wait(verb: str, places: dict[str, Path], log: Path) -> tuple[int, float]:
    began = time.perf_counter()
    child = _start(verb, places, log)
    child.join()
    return child.exitcode, time.perf_counter() - began


def _kill(child: Any) -> None:
    """With all that it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:  # killed before it led a group
        child.kill()
    child.join()


def kill_verb(
    verb: str, places: dict[str, Path], numbers: range, seed: int, until: float
) -> Iterator[Counter[str]]:
    """Kill a verb at random moments, let it finish, and compare with the uninterrupted run.

    Yields the counts so far after every kill.
    """
    home = places["home"] / verb.replace(" ", "-")
    home.mkdir()
    _wait(verb, places | {"out": home / "first"}, home / "first.log")  # fills the caches
    code, seconds = _wait(verb, places | {"out": home / "whole"}, home / "whole.log")
    if code:
        yield Counter({"failed": 1})
        return
    expected = _artefacts(home / "whole")
    found: Counter[str] = Counter()
    for number in numbers:
        if time.time() > until:
            break
        rng = random.Random(f"{seed}:{verb}:{number}")
        out, log = home / f"{number}", home / f"{number}.log"
        stranger = home / f"{number}-stranger.txt"
        stranger.write_text("mine")
        for _ in range(rng.choice((1, 1, 2))):
            child = _start(verb, places | {"out": out}, log)
            child.join(rng.uniform(0.02, 1.0) * seconds)
            if child.exitcode is None:
                _kill(child)
        code, _ = _wait(verb, places | {"out": out}, log)
        found["kills"] += 1
        same = out.is_dir() and _artefacts(out) == expected
        # what had ended before it was killed may say that its folder is there
        found["not finished"] += code != 0 and not same
        found["tracebacks"] += "Traceback" in log.read_text(errors="replace")
        if code == 0:
            found["other bytes"] += not same
            found["leavings"] += bool(_leavings(out))
        found["lost"] += stranger.read_text() != "mine"
        if same:
            shutil.rmtree(out)
        print(f"{verb}: kill {number + 1} of {numbers.stop} {dict(found)}", flush=True)
        yield found


def attack_verbs(
    kills: int,
    seed: int,
    until: float,
    verbs: list[str],
    found: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """Every verb in turn, each with an equal part of the time; adds to `found`, by verb."""
    from endprompt.cli.app import run
    from tiny_checkpoint import WORDS, save_run, save_tiny

    home = Path(tempfile.mkdtemp(prefix="attack-"))
    tiny, text = save_tiny(home / "tiny"), home / "text.txt"
    rng = np.random.default_rng(0)
    text.write_text(" ".join(rng.choice(WORDS, 9000)) + ".")
    chats = home / "chats.jsonl"
    chats.write_text('{"prompt": "One?", "completion": "1"}\n' * 8)
    assert run(["prepare", str(text), "-t", str(tiny), "--out", str(home / "data")]) == 0
    places = {
        "home": home, "tiny": tiny, "text": text, "data": home / "data", "chats": chats,
        "run": save_run(home / "run", tiny, "yarn", 256),
    }  # fmt: skip
    FORKED.set_forkserver_preload(PRELOADED)
    for n, verb in enumerate(verbs):
        share = time.time() + (until - time.time()) / (len(verbs) - n)
        before = Counter(found.get(verb, {}))
        if before["kills"] < kills:
            for after in kill_verb(verb, places, range(before["kills"], kills), seed, share):
                found[verb] = {key: before[key] + after[key] for key in {*before, *after}}
                save()
    if all(not _bad(one) for one in found.values()):
        shutil.rmtree(home)
    else:
        print(f"kept: {home}")


COUNTED = ("tracebacks", "hangs", "silent_differences", "messages_of_several_lines", "over_memory",
           "not finished", "other bytes", "leavings", "lost")  # fmt: skip


def _bad(figures: dict[str, Any]) -> int:
    return sum(int(figures.get(key, 0)) for key in COUNTED) + int(figures.get("failed", 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=50, help="of each verb")
    parser.add_argument("--verbs", default=",".join(VERBS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=120.0, help="begin nothing after this time"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/attack.json")
    given = parser.parse_args()
    print(f"seed {given.seed}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    began = time.time()
    until = began + 60 * given.minutes
    from endprompt.io import files, provenance

    figures: dict[str, Any] = {"seed": given.seed, **provenance.provenance()}
    before = json.loads(given.json.read_text()) if given.json.is_file() else {}
    if before.get("seed") == given.seed:  # kills resume
        figures |= {key: before[key] for key in ("inputs", "kills") if key in before}
    if given.inputs:
        share = until if not given.kills else began + 20 * given.minutes
        figures["inputs"] = attack_inputs(given.inputs, given.seed, share, given.workers)
    if given.kills:
        verbs = [verb.strip() for verb in given.verbs.split(",")]
        attack_verbs(
            given.kills, given.seed, until, verbs, figures.setdefault("kills", {}),
            lambda: files.write_json(given.json, figures),
        )  # fmt: skip
    files.write_json(given.json, figures)
    bad = sum(map(_bad, [figures.get("inputs", {}), *figures.get("kills", {}).values()]))
    print(f"{bad} findings, {given.json}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
