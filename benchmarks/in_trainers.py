"""Rows with jumps in other people's trainers, each for real in an environment of its own.

    make trainers
    python benchmarks/in_trainers.py [NAME ...] --environments DIR --work DIR

For each trainer: a tiny model, the same rows of `endprompt rows`, the configuration that
`--for NAME` writes, 20 steps on the processor. Its loss at each step and its weights are held
against those of `endprompt train`. Then settings that lose the jump: what they train, held against
loops of plain PyTorch that have the fault built in, and what the guard says. An environment is
made where there is none (torch for processors, 1 to 2 GiB each). Results are written as each
trainer ends.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from endprompt.io import files, provenance
from endprompt.models import checkpoint as models
from endprompt.train import position_check

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "benchmarks" / "trainers"
sys.path.insert(0, str(ROOT / "tests"))
from tiny_checkpoint import WORDS, save_tiny  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "trainers.json"
TARGET, ROW_TOKENS, STEPS, RATE, WARMUP = 512, 64, 20, 1e-3, 2
TOLERANCE = {"loss": 1e-3, "weights": 1e-4, "control": 1e-4}
"""Nats a step, largest difference of a weight, nats a step between a fault and its control."""
PINS = ("torch==2.13.0",)
OURS = ("pydantic>=2.10", "pyyaml", "xxhash", "zstandard", "rich", "typer", "gguf>=0.17")
"""What the guard needs beside torch and the trainer's own Transformers."""
CALLBACK = "from endprompt import GuardCallback"
WATCH = "from recorder import Recorder as GuardCallback"


@dataclass(frozen=True)
class Fault:
    """A setting that trains something else in silence.

    changes  of the settings that `settings` gives; a value None takes the key away
    control  the loop that it equals: "no jump", "cut", "unscaled"; None: it is only stopped
    guard    what the guard says
    edits    of the configuration's text, before and after
    """

    name: str
    control: str | None
    guard: str
    changes: Mapping[str, Any]
    edits: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Trainer:
    """How a trainer is installed and run.

    alone     packages without what they ask for
    packages  with what they ask for; torch is there already
    start     command of its environment, and the configuration in its folder
    """

    package: str
    alone: tuple[str, ...]
    packages: tuple[str, ...]
    start: Callable[[Path, dict[str, Any], bool, Fault | None], list[str]]
    settings: Mapping[str, Any]
    faults: tuple[Fault, ...] = ()
    scaling: str = "pi"
    afterwards: str = ""


def hugging_face(**changes: Any) -> dict[str, Any]:
    """The schedule of `endprompt train` in the words of Transformers' Trainer."""
    return {
        "output_dir": "out", "max_steps": STEPS, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1, "learning_rate": RATE,
        "lr_scheduler_type": "constant_with_warmup", "warmup_steps": WARMUP, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "optim": "adamw_torch", "logging_steps": 1, "save_steps": STEPS,
        "gradient_checkpointing": False, "report_to": "none", "use_cpu": True, "seed": 0,
        **changes,
    }  # fmt: skip


def edited(text: str, guarded: bool, fault: Fault | None) -> str:
    """A configuration with a fault, and the recorder in place of the guard."""
    for before, after in fault.edits if fault else ():
        if before not in text:
            raise SystemExit(f"the configuration has no {before!r}")
        text = text.replace(before, after)
    return text if guarded else text.replace(CALLBACK, WATCH)


def merged(text: str, settings: Mapping[str, Any]) -> str:
    """YAML with settings put in; None takes one away."""
    found = {**yaml.safe_load(text), **settings}
    return yaml.safe_dump({key: value for key, value in found.items() if value is not None})


def start_trl(folder: Path, settings: dict[str, Any], guarded: bool, fault: Any) -> list[str]:
    """The script with further arguments of SFTConfig."""
    text = edited((folder / "rows" / "train_trl.py").read_text(), guarded, fault)
    further = "".join(f"        {k}={v!r},\n" for k, v in settings.items() if k != "output_dir")
    head, output, tail = text.partition('        output_dir="out",\n')
    for key in settings:
        tail = re.sub(rf"^        {key}=.*\n", "", tail, flags=re.MULTILINE)
    (folder / "train.py").write_text(head + output + further + tail)
    return ["python", "train.py"]


def start_axolotl(folder: Path, settings: dict[str, Any], guarded: bool, fault: Any) -> list[str]:
    """The configuration, with the recorder as its plugin where there is to be no guard."""
    text = edited((folder / "rows" / "axolotl.yaml").read_text(), guarded, fault)
    plugins = {} if guarded else {"plugins": ["axolotl_recorder.RecorderPlugin"]}
    (folder / "train.yaml").write_text(merged(text, {**settings, **plugins}))
    return ["axolotl", "train", "train.yaml", "--launcher", "python"]


def start_llamafactory(
    folder: Path, settings: dict[str, Any], guarded: bool, fault: Any
) -> list[str]:
    """The script beside its configuration."""
    text = edited((folder / "rows" / "llamafactory.yaml").read_text(), True, fault)
    (folder / "train.yaml").write_text(merged(text, settings))
    script = (folder / "rows" / "train_llamafactory.py").read_text()
    script = script.replace("rows/llamafactory.yaml", "train.yaml")
    (folder / "train.py").write_text(edited(script, guarded, None))
    return ["python", "train.py"]


def start_swift(folder: Path, settings: dict[str, Any], guarded: bool, fault: Any) -> list[str]:
    """The configuration and its plugin."""
    text = edited((folder / "rows" / "swift.yaml").read_text(), True, fault)
    plugin = edited((folder / "rows" / "guard_swift.py").read_text(), guarded, None)
    (folder / "plugin.py").write_text(plugin)
    (folder / "train.yaml").write_text(merged(text, {"external_plugins": "plugin.py", **settings}))
    return ["swift", "sft", "train.yaml"]


def start_torchtitan(
    folder: Path, settings: dict[str, Any], guarded: bool, fault: Any
) -> list[str]:
    """A loop around torchtitan's model: its Trainer needs CUDA."""
    del settings, guarded, fault
    return ["python", str(PROGRAMS / "torchtitan_loop.py"), str(folder)]


TRAINERS: dict[str, Trainer] = {
    "trl": Trainer(
        "trl",
        (),
        ("trl==1.16.0", "transformers==5.24.0"),
        start_trl,
        hugging_face(bf16=False, train_sampling_strategy="sequential"),
        (
            Fault("data_collator: TRL's own", "no jump", "without position_ids", {},
                  (("    data_collator=default_data_collator,  # TRL's own drops position_ids\n",
                    ""),)),
            Fault("data_collator: TRL's own, remove_unused_columns=True", "no jump",
                  "without position_ids", {"remove_unused_columns": True},
                  (("    data_collator=default_data_collator,  # TRL's own drops position_ids\n",
                    ""),)),
            Fault("padding_free=True, two rows a batch", None, "packed with others",
                  {"padding_free": True, "max_length": None, "per_device_train_batch_size": 2},
                  (("    data_collator=default_data_collator,  # TRL's own drops position_ids\n",
                    ""),)),
        ),
    ),
    "llamafactory": Trainer(
        "llamafactory",
        ("llamafactory==0.9.5", "torchaudio==2.11.1"),
        ("transformers==5.6.0", "accelerate==1.11.0", "datasets==4.0.0", "peft==0.18.1",
         "trl==0.24.0", "omegaconf", "requests", "sentencepiece", "tiktoken", "fire",
         "hf-transfer", "einops", "psutil", "matplotlib"),
        start_llamafactory,
        hugging_face(disable_shuffling=True, save_strategy="steps", overwrite_output_dir=True),
        (
            Fault("rope_scaling: linear on the unscaled base, cutoff_len of the rows", "unscaled",
                  "window is 128", {"model_name_or_path": "base", "rope_scaling": "linear"}),
        ),
        # its extension needs CUDA, and only sound is read with it
        afterwards="torchaudio/lib/*.so",
    ),
    "ms-swift": Trainer(
        "ms-swift",
        ("ms-swift==4.6.0",),
        ("transformers<5.20.0", "accelerate", "datasets<4.8.5", "peft<0.21", "trl<1.0",
         "modelscope>=1.23", "addict", "aiohttp", "attrdict", "binpacking", "cpm-kernels",
         "dacite", "einops", "fastapi", "importlib-metadata", "json-repair", "nltk", "openai",
         "oss2", "pandas", "pillow", "psutil", "requests", "rouge", "scipy", "sentencepiece",
         "simplejson", "sortedcontainers", "tensorboard", "tiktoken", "matplotlib",
         "transformers-stream-generator", "uvicorn"),
        start_swift,
        hugging_face(torch_dtype="float32", dataset_shuffle=False, train_dataloader_shuffle=False,
                     adam_beta2=0.999, add_version=False, model_type="llama", template="dummy"),
        (
            Fault("padding_side: left", "no jump", "no row has a jump", {"padding_side": "left"}),
            Fault("max_model_len: the target, on the scaled base", "unscaled",
                  "were made for RoPE", {"max_model_len": TARGET}),
        ),
    ),
    "axolotl": Trainer(
        "axolotl",
        ("axolotl==0.19.0", "axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6",
         "bitsandbytes==0.50.2", "liger-kernel==0.8.1", "triton==3.9.0"),
        ("huggingface_hub==1.17.0", "peft==0.20.0", "tokenizers==0.23.1", "transformers==5.16.1",
         "accelerate==1.13.0", "datasets==4.8.4", "trl==1.9.0", "kernels<0.17.0,>=0.16.0",
         "addict", "art", "colorama", "einops", "evaluate==0.4.1", "fastcore", "fire",
         "mistral-common==1.11.5", "numba<1.0", "nvidia-ml-py==12.560.30", "optimum==1.16.2",
         "packaging==26.0", "posthog==6.7.11", "psutil", "pydantic==2.12.5", "python-dotenv==1.0.1",
         "PyYAML==6.0.3", "requests", "schedulefree==1.4.1", "scipy", "sentencepiece",
         "tensorboard", "tiktoken", "typer==0.25.1", "zstandard==0.22.0", "matplotlib", "wandb",
         "opentelemetry-sdk", "opentelemetry-exporter-prometheus", "prometheus-client"),
        start_axolotl,
        {
            "output_dir": "out", "max_steps": STEPS, "gradient_accumulation_steps": 1,
            "learning_rate": RATE, "lr_scheduler": "constant_with_warmup",
            "warmup_steps": WARMUP, "weight_decay": 0.0, "max_grad_norm": 1.0,
            "optimizer": "adamw_torch", "logging_steps": 1, "save_steps": STEPS,
            "shuffle_merged_datasets": False, "curriculum_sampling": True, "bf16": False,
            "fp16": False, "tf32": False, "seed": 0, "num_epochs": 1,
            "special_tokens": {"pad_token": "<|im_end|>"}, "dataset_prepared_path": "prepared",
            "gradient_checkpointing": False, "dataset_num_proc": 1,
        },
        (
            Fault("sample_packing: true", "no jump", "no row has a jump",
                  {"sample_packing": True}),
        ),
    ),
    "torchtitan": Trainer(
        "torchtitan",
        ("torchtitan==0.3.0", "torch_checkpointing", "spmd_types==0.2.3", "torchdata",
         "triton==3.9.0"),
        ("datasets<4.8.0", "tokenizers", "safetensors", "tyro", "tensorboard", "transformers",
         "accelerate", "peft", "pillow", "einops", "psutil"),
        start_torchtitan,
        {},
        scaling="llama3",
    ),
}  # fmt: skip


def main() -> None:
    """Make environments, run trainers, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRAINERS)}")
    parser.add_argument("--environments", type=Path, default=ROOT / "runs" / "environments")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "trainers")
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(TRAINERS))
    if unknown:
        parser.error(f"no trainer {', '.join(unknown)}: {', '.join(TRAINERS)}")
    found: dict[str, Any] = json.loads(given.json.read_text()) if given.json.is_file() else {}
    found |= {
        **provenance.provenance(),
        "target": TARGET,
        "row_tokens": ROW_TOKENS,
        "steps": STEPS,
        "tolerance": TOLERANCE,
    }
    failed = []
    for name in given.names or TRAINERS:
        trainer = TRAINERS[name]
        environment = given.environments / f"trainer-{name}"
        make_environment(trainer, environment)
        work = given.work.resolve() / name
        result = one(name, trainer, environment.resolve(), work)
        found.setdefault("trainers", {})[name] = result
        files.write_json(given.json, found)
        print(f"{name}: {'as ours' if result['passed'] else 'DIFFERS'}", flush=True)
        failed += [] if result["passed"] else [name]
    if failed:
        raise SystemExit(f"other than ours, or not stopped: {', '.join(failed)}")


def make_environment(trainer: Trainer, folder: Path) -> None:
    """A virtual environment with torch for processors, then the trainer on top of it."""
    done = folder / ".endprompt-done"
    if done.is_file():
        return
    print(f"making {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(PINS) + "\n")
    subprocess.run([*pip, "install", *PINS], check=True)
    names = {re.split(r"[=<>]", each)[0].lower() for each in trainer.packages}
    wanted = [*trainer.packages, *(e for e in OURS if re.split(r"[=<>]", e)[0] not in names)]
    report = folder / "report.json"
    ask = [*pip, "install", "--dry-run", "-c", str(constraints), "--report", str(report), *wanted]
    subprocess.run(ask, check=True)
    asked = [each["metadata"]["name"].lower() for each in json.loads(report.read_text())["install"]]
    heavy = [each for each in asked if each.startswith(("nvidia-cu", "nvidia-nc", "cuda"))]
    if heavy or "torch" in asked:
        raise SystemExit(f"{trainer.package} would bring CUDA: {', '.join(heavy)}")
    subprocess.run([*pip, "install", "-c", str(constraints), *wanted], check=True)
    if trainer.alone:
        subprocess.run([*pip, "install", "--no-deps", *trainer.alone], check=True)
    if trainer.afterwards:
        for path in folder.glob(f"lib/*/site-packages/{trainer.afterwards}"):
            path.unlink()
    done.write_text("")


def one(name: str, trainer: Trainer, environment: Path, work: Path) -> dict[str, Any]:
    """What a trainer did with the rows as it should, and with each fault."""
    started = time.monotonic()
    given = prepare(work.parent / f"given-{trainer.scaling}", name, trainer.scaling)
    folder = fresh(work / "shipped", given)
    ran = run(trainer, environment, folder, guarded=True)
    if ran.returncode:
        raise SystemExit(f"{name} failed:\n{ran.stdout[-3000:]}")
    losses, saved = outcome(folder)
    mine = [step["loss"] for step in json.loads((given / "ours/train.json").read_text())["curve"]]
    result = {
        "versions": versions(environment, trainer.package),
        "losses": losses,
        "losses_of_endprompt": mine,
        "largest_difference_in_loss": largest(losses, mine),
        "largest_difference_in_weights": weights_apart(saved, given / "ours" / "model"),
        "largest_change_of_a_weight": weights_apart(given / "base", given / "ours" / "model"),
        "position_check": checked(saved, given),
        "faults": [
            with_fault(trainer, environment, work / f"fault-{number}", given, fault)
            for number, fault in enumerate(trainer.faults)
        ],
    }
    result["seconds"] = round(time.monotonic() - started, 1)
    result["passed"] = (
        result["largest_difference_in_loss"] <= TOLERANCE["loss"]
        and result["largest_difference_in_weights"] <= TOLERANCE["weights"]
        and result["position_check"] == "passed"
        and all(fault["passed"] for fault in result["faults"])
    )
    return result


def prepare(folder: Path, name: str, scaling: str) -> Path:
    """Base, text, rows with the trainer's configuration, and our own training of them."""
    overrides = {
        "rows.tokens": ROW_TOKENS, "training.tokens": ROW_TOKENS * STEPS,
        "training.tokens_per_step": ROW_TOKENS, "training.learning_rate": RATE,
        "rope.scaling": scaling,
    }  # fmt: skip
    settings = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    same = ["pose", "--model", "base", "--data", "data", "--to", str(TARGET), *settings]
    if not (folder / "ours" / "train.json").is_file():
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        base(folder / "base")
        rng = np.random.default_rng(0)
        (folder / "text").mkdir()
        for number, words in enumerate((1200, 900, 700)):
            (folder / "text" / f"{number}.txt").write_text(" ".join(rng.choice(WORDS, words)))
        endprompt(folder, "prepare", "text", "-t", "base", "--out", "data")
        endprompt(folder, "train", *same, "--out", "ours")
    endprompt(folder, "rows", *same, "--count", str(STEPS), "--out", "rows",
              "--scaled-base", "scaled", "--for", name)  # fmt: skip
    recipe = json.loads((folder / "ours" / "train.json").read_text())["recipe"]["training"]
    assert recipe["schedule"] == "constant_with_warmup"
    assert (recipe["warmup_steps"], recipe["weight_decay"]) == (WARMUP, 0)
    return folder


def base(folder: Path) -> None:
    """A tiny random Llama, its queries and keys enlarged: positions decide about its losses."""
    file = save_tiny(folder) / "model.safetensors"
    weights = load_file(file)
    for name in weights:
        if "q_proj" in name or "k_proj" in name:
            weights[name] = weights[name] * 8
    save_file(weights, file, metadata={"format": "pt"})


def endprompt(folder: Path, *words: str) -> None:
    """Run the command line as a user does."""
    subprocess.run(
        [sys.executable, "-m", "endprompt", *words], cwd=folder, check=True, env=surroundings({}),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def surroundings(further: Mapping[str, str]) -> dict[str, str]:
    """Environment variables: this checkout, no hub, no accelerator, one thread."""
    return {
        **os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{PROGRAMS}", "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "AXOLOTL_DO_NOT_TRACK": "1", "ACCELERATE_USE_CPU": "true", **further,
    }  # fmt: skip


def fresh(folder: Path, given: Path) -> Path:
    """An empty folder in which rows and models have the names of the configuration."""
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    folder.mkdir(parents=True)
    for name in ("rows", "scaled", "base"):
        (folder / name).symlink_to(given / name)
    return folder


def run(
    trainer: Trainer, environment: Path, folder: Path, *, guarded: bool, fault: Fault | None = None
) -> subprocess.CompletedProcess[str]:
    """Start a trainer in its environment; what it prints is kept in log.txt."""
    settings = {**trainer.settings, **(fault.changes if fault else {})}
    words = trainer.start(folder, settings, guarded, fault)
    ran = subprocess.run(
        [str(environment / "bin" / words[0]), *words[1:]], cwd=folder, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900,
        env=surroundings({"IN_TRAINERS_RECORD": str(folder / "batches.npy")}),
    )  # fmt: skip
    (folder / "log.txt").write_text(ran.stdout)
    return ran


def outcome(folder: Path) -> tuple[list[float], Path]:
    """Loss at each step, and the checkpoint behind the last."""
    if (folder / "losses.json").is_file():
        return json.loads((folder / "losses.json").read_text()), folder / "saved"
    states = sorted(folder.rglob(f"checkpoint-{STEPS}/trainer_state.json"))
    history = json.loads(states[-1].read_text())["log_history"]
    return [float(each["loss"]) for each in history if "loss" in each], states[-1].parent


def versions(environment: Path, package: str) -> dict[str, str]:
    """Versions of the trainer and of what it stands on."""
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    words = [str(environment / "bin" / "python"), "-c", code, package, "torch", "transformers"]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def largest(one: list[float], other: list[float]) -> float:
    """Largest difference of two lists; infinite where they have other lengths."""
    if len(one) != len(other):
        return float("inf")
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def weights_apart(one: Path, other: Path) -> float:
    """Largest difference of a weight between two checkpoints."""
    first, second = (load_file(each / "model.safetensors") for each in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[key].float() - second[key].float()).abs().max()) for key in first)


def checked(saved: Path, given: Path) -> str:
    """The position check of `endprompt train` on what a trainer saved."""
    network = models.load(str(saved), models.load_config(str(saved)))
    checks = position_check.check_positions(network, models.family_of(str(given / "base")), TARGET)
    failed = [check.name for check in checks if not check.passed]
    return ", ".join(failed) or "passed"


def with_fault(
    trainer: Trainer, environment: Path, folder: Path, given: Path, fault: Fault
) -> dict[str, Any]:
    """What a fault trains without the guard, and that the guard stops it."""
    place = fresh(folder / "without", given)
    ran = run(trainer, environment, place, guarded=False, fault=fault)
    found: dict[str, Any] = {"setting": fault.name}
    if fault.control is not None and ran.returncode == 0:
        losses, _ = outcome(place)
        batches = list(np.load(place / "batches.npy", allow_pickle=True))
        against = {
            kind: largest(losses, loop(batches, given, kind))
            for kind in ("no jump", "cut", "unscaled", "as it should")
        }
        found |= {
            "model_is_called_with": described(batches[0]),
            "losses": losses,
            "largest_difference_in_loss_to": against,
            "trains": fault.control,
        }
    elif fault.control is None:
        found["trains"] = "not compared"
    else:
        found["failed"] = ran.stdout[-400:]
    place = fresh(folder / "with", given)
    ran = run(trainer, environment, place, guarded=True, fault=fault)
    said = re.findall(r"ProbeError: ([^\n]*)", ran.stdout)
    found["guard"] = said[-1] if said else ""
    found["steps_before_the_guard"] = len(re.findall(r"'loss'", ran.stdout))
    told = re.search(fault.guard, found["guard"]) is not None and ran.returncode != 0
    same = fault.control is None or (
        "trains" in found
        and found["largest_difference_in_loss_to"][fault.control] <= TOLERANCE["control"]
        and found["largest_difference_in_loss_to"]["as it should"] > TOLERANCE["loss"]
    )
    return {**found, "passed": told and same and found["steps_before_the_guard"] == 0}


def described(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the first call of the model was made with."""
    positions = batch.get("position_ids")
    return {
        "input_ids": list(batch["input_ids"].shape),
        "largest_position": None if positions is None else int(positions.max()),
        "largest_step_of_positions": None if positions is None else int(np.diff(positions).max()),
        "attention_mask": batch["mask"],
        "rope": batch["rope"],
        "window": batch["window"],
    }


def loop(batches: list[Mapping[str, Any]], given: Path, kind: str) -> list[float]:
    """Losses of plain PyTorch on the rows that a trainer trained, with a fault built in.

    kind  "no jump": positions from 0 on; "cut": nothing behind a jump sees what is before it;
          "unscaled": RoPE of the base; "as it should": the rows as they were written
    """
    rows = datasets.load_from_disk(str(given / "rows")).with_format("numpy")
    written = {bytes(row["input_ids"].astype("<i8")): row for row in rows}
    source = "base" if kind == "unscaled" else "scaled"
    torch.manual_seed(0)
    network = models.load(str(given / source), models.load_config(str(given / source))).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.0)
    losses = []
    for step, batch in enumerate(batches):
        row = written[bytes(batch["input_ids"][0].astype("<i8"))]
        positions_T = torch.tensor(row["position_ids"].astype(np.int64))
        if kind == "cut" and batch.get("position_ids") is not None:
            positions_T = torch.tensor(batch["position_ids"][0].astype(np.int64))
        mask: Any = torch.ones(1, len(positions_T), dtype=torch.long)
        if kind == "no jump":
            positions_T = torch.arange(len(positions_T))
        elif kind == "cut":
            piece_T = (positions_T.diff(prepend=positions_T[:1]) > 1).cumsum(0)
            mask = (piece_T[:, None] == piece_T[None]).tril()[None, None]
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / WARMUP)
        given_ids = torch.tensor(row["input_ids"].astype(np.int64))[None]
        loss = network(
            input_ids=given_ids, position_ids=positions_T[None], attention_mask=mask,
            labels=torch.tensor(row["labels"].astype(np.int64))[None], use_cache=False,
        ).loss  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    main()
