"""The main job through the command line: what it leaves, resume, and one line for each mistake."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from endprompt import recipe
from endprompt.errors import OutputError, RecipeError
from endprompt.extension import plan, prepare, record, run
from endprompt.io import claims, digests
from endprompt.io.files import sha256_file
from tiny_checkpoint import save_tiny

pytestmark = pytest.mark.xdist_group("extend")  # one worker makes the shared run
Run = Callable[..., subprocess.CompletedProcess[str]]
TARGET = 2048
ROWS = ("--set", "rows.kinds.0.terminal.recall={verbatim: 1}", "--set", "rows.tokens=128")
SMALL = (
    "--to", TARGET, "--lengths", "1024,2048", "--needles", 2, *ROWS,
    "--set", "training.tokens=5120", "--set", "training.save_steps=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tiny: Path, text: Path, endprompt: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run with controls."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = endprompt("extend", tiny, "--text", text, *SMALL, "--controls", "--out", out)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "position check: 16 of 16 passed" in done.stdout
    assert "report.html" in done.stdout
    row = rf"^YaRN \+ {recipe.DEFAULT} without the jump +\d\.\d{{3}} +\d\.\d{{3}} *$"
    assert re.search(row, done.stdout, re.MULTILINE)  # in 80 columns, nothing wrapped
    return out


def test_run_json_holds_every_arm_at_every_length_and_where_it_came_from(whole: Path) -> None:
    run = json.loads((whole / "run.json").read_text())
    method = run["recipe"]["name"]
    assert [arm["name"] for arm in run["arms"]] == [
        "base", "untrained", method, "short", f"{method}-no-jump"]  # fmt: skip
    assert len({arm["tokens"] for arm in run["arms"] if arm["trained"]}) == 1
    for arm in run["arms"]:
        for metric in ("loss", "needle", "quote"):
            assert set(arm["evaluation"][metric]) == {"1024", str(TARGET)}
        assert len(arm["curve"]) == (40 if arm["trained"] else 0)
    texts = [arm["evaluation"]["texts"] for arm in run["arms"]]
    assert all(text == texts[0] for text in texts)
    assert all(check["passed"] for check in run["position_check"])
    assert run["versions"]["torch"]
    assert run["text"]["sha256"]
    assert run["model"]["sha256"]
    assert run["plan"]["tokens"] == 5120
    positions = run["example_row"]["positions"]
    assert positions[-1][1] > 128
    assert (whole / "report.html").stat().st_size > 10_000
    for arm in run["arms"]:
        assert arm["evaluation"]["computation"]["precision"] == "float32"  # the base's
        assert ("computation" in arm) == arm["trained"]
    assert "evaluation computed in" in (whole / "report.html").read_text()


def test_a_factor_above_the_windows_ratio_is_no_warning_of_a_verb(
    whole: Path, endprompt: Run
) -> None:
    checkpoint = json.loads((whole / "run.json").read_text())["checkpoint"]
    done = endprompt(
        "eval", "window", checkpoint, "--data", whole / "data", "--lengths", 1024, "--needles", 2
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_checkpoint_reloads_in_a_fresh_process_and_reads_past_the_old_window(whole: Path) -> None:
    checkpoint = json.loads((whole / "run.json").read_text())["checkpoint"]
    program = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "messages = [{'role': 'user', 'content': 'stone mills ' * 60}]\n"
        "text = tokenizer.apply_chat_template(messages, tokenize=False)\n"
        "ids = tokenizer(text, return_tensors='pt').input_ids\n"
        "assert ids.shape[1] > 500\n"
        "out = model.generate(ids, max_new_tokens=4, do_sample=False)\n"
        "print(model.config.max_position_embeddings, tokenizer.model_max_length, out.shape[1] > ids.shape[1])\n"  # noqa: E501
    )
    done = subprocess.run(
        [sys.executable, "-c", program, checkpoint], capture_output=True, text=True
    )
    assert done.stdout.split() == [str(TARGET), str(TARGET), "True"], done.stderr


def test_killed_twice_and_started_again_ends_with_the_same_weights(
    whole: Path, tiny: Path, text: Path, endprompt: Run, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    words = ["extend", tiny, "--text", text, *SMALL, "--out", out]
    told = out / "jobs" / f"train-{recipe.DEFAULT}.progress.json"
    for step in (4, 20):
        child = subprocess.Popen(
            [sys.executable, "-m", "endprompt", *map(str, words)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while child.poll() is None and not _reached(told, step):
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        told.unlink(missing_ok=True)
    done = _until_free(endprompt, words)
    assert done.returncode == 0, done.stderr
    weights = f"arms/{recipe.DEFAULT}/model/model.safetensors"
    assert sha256_file(out / weights) == sha256_file(whole / weights)
    trained = json.loads((out / f"arms/{recipe.DEFAULT}/train.json").read_text())
    first, second = trained["resumed_at"]
    assert 3 <= first < second
    again = endprompt(*words)
    assert again.returncode == 0
    assert "done already" in again.stdout


def _reached(told: Path, step: int) -> bool:
    try:
        return json.loads(told.read_text())["done"] >= step
    except (OSError, ValueError):
        return False


def _until_free(endprompt: Run, words: list[Any]) -> subprocess.CompletedProcess[str]:
    """Run once the children of the killed process have let go of the folder."""
    for _ in range(20):
        done = endprompt(*words)
        if "another process is writing" not in done.stderr:
            return done
        time.sleep(0.5)
    return done


@pytest.mark.slow
def test_another_model_family_on_the_users_own_text(
    text: Path, endprompt: Run, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "mistral", "mistral", sliding_window=None)
    done = endprompt(
        "extend", model, "--text", text / "one.txt", "--text", text / "two.txt", *SMALL[:6],
        "--method", "endprompt", "--scaling", "ntk", "--set", "rows.tokens=128",
        "--set", "training.tokens=512", "--eval-dtype", "bfloat16", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "evaluation in bfloat16; the model is stored in float32" in done.stdout
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {arm["evaluation"]["computation"]["precision"] for arm in run["arms"]} == {"bfloat16"}
    assert run["arms"][-1]["saved_precision"] == "float32"
    assert run["model"]["type"] == "mistral"
    assert run["example_row"]["positions"][-1][1] == TARGET


MISTAKES = {
    "no such model": (["./nowhere"], r"no such model: ./nowhere"),
    "no config": (["{empty}"], r"no model in .*empty: the folder has no config.json"),
    "no text": (["{tiny}", "--text", "{tmp}/none.txt"], r"no such file.*none.txt|none.txt"),
    "empty folder of text": (["{tiny}", "--text", "{empty}"], r"empty"),
    "text too short": (["{tiny}", "--text", "{short}"], r"text too short: \d+ tokens"),
    "broken parquet": (["{tiny}", "--text", "{parquet}"], r"broken.parquet"),
    "target not above the window": (
        ["{tiny}", "--to", "128"],
        r"target 128 tokens is not above the model's window of 128",
    ),
    "needles that don't fit": (
        ["{tiny}", "--lengths", "512,1024", "--needles", "64"],
        r"64 needles do not fit between 0 and \d+ tokens",
    ),
    "lengths past the target": (
        ["{tiny}", "--lengths", "1k,64k"],
        r"--lengths go to 65536, past the target of \d+ tokens",
    ),
    "no number": (["{tiny}", "--to", "many"], r"'many' is no number of tokens"),
    "unknown method": (["{tiny}", "--method", "recal"], r"unknown method 'recal' \(did you mean"),
    "unknown key": (["{tiny}", "--set", "training.sed=1"], r"unknown key 'training.sed' \(did you"),
    "GGUF cut short": (["{gguf}"], r"cut.gguf is no whole GGUF file"),
    "no RoPE": (["{gpt2}"], r"model type 'gpt2' has no RoPE"),
    "weights cut short": (["{cut}"], r"cannot load .*cut"),
    "strangers in the folder": (
        ["{tiny}", "--out", "{occupied}"],
        r"occupied holds other files \(letter.txt\)",
    ),
    "another run in the folder": (
        ["{tiny}", "--to", "4k", "--out", "{whole}"],
        r"whole holds a run with another",
    ),
}


@pytest.fixture(scope="module")
def places(
    whole: Path, tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Paths that the mistakes are made with."""
    tmp = tmp_path_factory.mktemp("mistakes")
    found = {"whole": whole, "tiny": tiny, "text": text, "tmp": tmp}
    for name in ("empty", "occupied", "gpt2", "cut"):
        found[name] = tmp / name
        found[name].mkdir()
    (found["occupied"] / "letter.txt").write_text("dear")
    (found["gpt2"] / "config.json").write_text('{"model_type": "gpt2"}')
    for path in tiny.iterdir():
        (found["cut"] / path.name).write_bytes(path.read_bytes())
    weights = found["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    for name, content in (
        ("short", b"a few words"), ("parquet", b"PAR1 and no more"), ("gguf", b"GGUF\x03\x00")
    ):  # fmt: skip
        suffix = {"short": "short.txt", "parquet": "broken.parquet", "gguf": "cut.gguf"}[name]
        found[name] = tmp / suffix
        found[name].write_bytes(content)
    return found


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str, places: dict[str, Path], endprompt: Run, tmp_path: Path
) -> None:
    import re

    before = sorted(places["whole"].rglob("*"))
    words, message = MISTAKES[mistake]
    given = [word.format(**{key: str(path) for key, path in places.items()}) for word in words]
    for option, value in (("--out", tmp_path / "out"), ("--to", "1k"), ("--text", places["text"])):
        if option not in given:
            given += [option, str(value)]
    done = endprompt("extend", *given, *ROWS)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("endprompt: ")
    assert re.search(message, lines[0]), lines[0]
    assert not list(tmp_path.rglob("*.partial"))
    assert not (tmp_path / "out" / "run.json").exists()
    assert sorted(places["whole"].rglob("*")) == before


def test_chats_are_refused_without_the_option_and_read_with_it(
    tiny: Path, endprompt: Run, tmp_path: Path
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    words = ["extend", tiny, "--text", path, *SMALL, "--out", tmp_path / "out"]
    for option, message in (([], "--chat writes them"), (["--chat"], "text too short: 4 tokens")):
        done = endprompt(*words, *option)
        assert done.returncode == 1, done.stdout
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_rows_too_short_for_their_terminal_are_refused_before_a_job_runs(
    tiny: Path, text: Path, endprompt: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--to", 2048, "--lengths", "1024,2048", "--set", "rows.tokens=48", "--out", out)
    done = endprompt("extend", tiny, "--text", text, *words)
    assert done.returncode == 1
    assert "rows.tokens" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (out / "doctor.json").exists()


def test_a_refused_run_can_be_given_again_with_other_rows_and_other_text(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        pass

    def check(*_: Any) -> None:
        raise Reached

    def extend(rows: int, source: Path, **more: Any) -> None:
        run.extend(
            str(tiny), to=TARGET, out=tmp_path / "out", text=str(source), lengths=[1024, TARGET],
            settings={"rows.tokens": rows, "rows.kinds.0.terminal.recall": {"verbatim": 1}},
            needles=2, **more,
        )  # fmt: skip

    monkeypatch.setattr(plan, "_check", check)
    with pytest.raises(RecipeError, match=r"rows\.tokens"):
        extend(48, text)
    with pytest.raises(Reached):
        extend(128, text)
    longer = tmp_path / "longer.txt"
    longer.write_text((text / "one.txt").read_text() * 3)
    with pytest.raises(Reached):
        extend(128, longer)
    found = json.loads((tmp_path / "out/data/manifest.json").read_text())
    assert [one["source"] for one in found["sources"]] == [str(longer)]


def test_a_resumed_run_with_other_weights_at_the_same_path_is_refused(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    settings = {
        "model": str(base),
        **digests.of_model(str(base)),
    }
    with claims.output(tmp_path / "out", "extend") as held:
        held.claim(settings)
        (tmp_path / "out" / "doctor.json").touch()
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(OutputError, match=r"another .*weights_digest: choose another --out"):
        run.extend(str(base), to=TARGET, out=tmp_path / "out", text=str(text))


def test_controls_hold_tokens_and_content_equal() -> None:
    method = recipe.load("recall-anchors").resolve(window=8192, target=16384, gpu=False)
    base, untrained, trained, short, bare = prepare.arms_of(method, controls=True)
    assert not base.trained
    assert base.recipe.rope.scaling == "none"
    assert not untrained.trained
    assert untrained.recipe.rope == method.rope
    assert trained.recipe == method
    assert short.recipe.amounts == bare.recipe.amounts == method.amounts
    assert not short.recipe.jumps
    assert not bare.recipe.jumps
    terminals = [kind.terminal for kind in bare.recipe.rows.kinds if kind.terminal]
    assert [t.cue for t in terminals] == [
        kind.terminal.cue for kind in method.rows.kinds if kind.terminal
    ]


def test_default_lengths_end_at_the_target() -> None:
    assert prepare.default_lengths(8192, 16384) == [4096, 8192, 12288, 16384]
    assert prepare.default_lengths(8192, 65536)[-1] == 65536


def test_a_summary_has_an_interval_from_five_values_on() -> None:
    assert "low" not in record.summary([1.0, 2.0])
    found = record.summary([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3.0
    assert 1.0 <= found["low"] < 3.0 < found["high"] <= 5.0


def test_a_full_disk_is_refused_by_what_the_models_of_this_precision_need(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny(tmp_path / "base")
    parameters = sum(tensor.numel() for tensor in load_file(base / "model.safetensors").values())
    half = {key: tensor.bfloat16() for key, tensor in load_file(base / "model.safetensors").items()}
    save_file(half, base / "model.safetensors", metadata={"format": "pt"})
    needed = (2 + run.CHECKPOINT_BYTES) * parameters
    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr("endprompt.io.files.shutil.disk_usage", lambda _: free)

    def extend() -> None:
        run.extend(
            str(base), to=TARGET, out=tmp_path / "x", text=str(text), lengths=[1024, 2048],
            needles=2, settings={"rows.kinds.0.terminal.recall.verbatim": 1,
                                 "rows.kinds.0.terminal.recall.facts": 0,
                                 "rows.tokens": 128, "training.tokens": 256},
        )  # fmt: skip

    with pytest.raises(OutputError, match="models and checkpoints need"):
        extend()
    free.free = needed
    extend()
