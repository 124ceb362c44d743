"""An exported checkpoint is the model that was trained, whoever loads it; faults are caught."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from endprompt import recipe as recipes
from endprompt.cli.app import run as command
from endprompt.errors import DataError, OutputError, RecipeError, RopeError
from endprompt.export import card, engines
from endprompt.export.checkpoint import export
from endprompt.export.reference import FILE, Place, Reference, logits_at, prompt_lengths, read
from endprompt.export.verify import scaling_kept, verify, verify_server
from endprompt.io import files
from endprompt.models import checkpoint as models
from finished_run import TARGET, make_run
from tiny_checkpoint import WINDOW, save_tiny

SCALINGS = ("pi", "ntk", "dynamic", "yarn", "llama3", "longrope")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose predictions depend on positions, with a licence and sampling settings."""
    folder = save_tiny(tmp_path_factory.mktemp("bases") / "base", initializer_range=0.4)
    (folder / "LICENSE").write_text("do good with it\n")
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6}')
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(base, tmp_path_factory.mktemp("runs") / "yarn")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("exports") / "tiny-512").folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_comes_back_as_trained(scaling: str, base: Path, tmp_path: Path) -> None:
    done = export(make_run(base, tmp_path / "run", scaling), tmp_path / "out")
    checks = verify(done.folder).checks
    assert [check for check in checks if not check.passed] == []
    assert done.reference.sensitivity(past=True) > 0.1, "a lost scaling would be seen"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert ("rope_scaling" in config) == (scaling != "ntk")
    assert ("original_max_position_embeddings" in config) == (scaling == "llama3")


def test_a_fresh_process_agrees_and_says_what_a_lost_scaling_would_be(
    exported: Path, endprompt: Callable[..., Any]
) -> None:
    done = endprompt("export", "verify", exported)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok  ") == 7
    assert "RoPE left unscaled would differ by" in done.stdout
    rows = [line.split() for line in done.stdout.partition("unscaled  token\n")[2].splitlines()]
    for place, row in zip(read(exported).places, rows, strict=True):
        assert int(row[0].replace(",", "")) == place.length
        assert [float(word) for word in row[1:4]] == pytest.approx(
            [place.logprobs[0], place.logprobs[0], place.unscaled[0]], abs=1e-4
        )


def test_whoever_may_read_the_config_may_read_the_weights(exported: Path) -> None:
    modes = {path.stat().st_mode for path in exported.iterdir()}
    assert len(modes) == 1


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def lose_theta(config: dict[str, Any]) -> None:
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 500.0


def factor_twice(config: dict[str, Any]) -> None:
    config["rope_parameters"]["factor"] = config["rope_scaling"]["factor"] = 16.0


def unscale(config: dict[str, Any]) -> None:
    config.pop("rope_scaling")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_theta"]}


def test_reference_is_of_the_training_time_model(run: Path, base: Path, exported: Path) -> None:
    expected = read(exported)
    recipe = recipes.build(json.loads((run / "run.json").read_text())["recipe"], "run")
    network = models.load(
        str(run / "arms/endprompt/model"), models.scaled_config(str(base), recipe, TARGET)
    )
    for place in expected.places:
        alone = network(torch.tensor([expected.tokens[: place.length]])).logits[0, -1]
        logprobs = alone.log_softmax(-1)[place.ids].tolist()
        assert logprobs == pytest.approx(place.logprobs, abs=1e-4)
    assert {place.length > WINDOW for place in expected.places} == {True, False}


@pytest.mark.parametrize("fault", [lose_theta, factor_twice, unscale])
def test_a_config_that_lost_its_rope_is_caught_by_what_the_model_predicts(
    fault: Callable[[dict[str, Any]], None], copy: Path
) -> None:
    edit(copy / "config.json", fault)
    failed = {check.name for check in verify(copy).checks if not check.passed}
    assert {"RoPE as trained", "log-probabilities past the old window"} <= failed


def test_other_losses_are_caught_by_name(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(copy / "config.json", lambda config: config.pop("rope_scaling"))
    edit(copy / "config.json", lambda config: config.update(max_position_embeddings=128))
    edit(copy / "tokenizer_config.json", lambda config: config.update(model_max_length=128))
    (copy / "chat_template.jinja").unlink()
    failed = {check.name for check in verify(copy).checks if not check.passed}
    assert failed == {
        "RoPE for readers of the older layout", "window in config.json",
        "window of the tokenizer", "chat template",
    }  # fmt: skip
    assert command(["export", "verify", str(copy)]) == 1
    assert "is not the model that was trained: RoPE for readers" in capsys.readouterr().err


def test_other_weights_are_caught(copy: Path, base: Path) -> None:
    shutil.copyfile(base / "model.safetensors", copy / "model.safetensors")
    failed = {check.name for check in verify(copy).checks if not check.passed}
    assert failed == {f"log-probabilities {where} the old window" for where in ("inside", "past")}


def test_half_precision_halves_the_file_and_passes_within_its_tolerance(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    done = export(run, tmp_path / "half", dtype="bfloat16")
    size = (done.folder / "model.safetensors").stat().st_size
    assert size < 0.6 * (exported / "model.safetensors").stat().st_size
    config = json.loads((done.folder / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert models.load_config(str(done.folder)).dtype == torch.bfloat16
    assert all(check.passed for check in verify(done.folder).checks)


def test_licence_generation_config_and_window_are_carried(exported: Path) -> None:
    assert (exported / "LICENSE").read_text() == "do good with it\n"
    assert json.loads((exported / "generation_config.json").read_text())["temperature"] == 0.6
    assert models.load_tokenizer(str(exported)).model_max_length == TARGET


def test_the_card_tells_results_limits_and_commands_and_no_path_of_the_machine(
    exported: Path, run: Path
) -> None:
    import yaml

    text = (exported / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "other"
    assert "base_model" not in front, "a folder is no name on the hub"
    assert "| YARN + endprompt | 2.500 | 2.500 |" in text
    assert "Nothing was measured past 256 of 512 tokens." in text
    assert "No trained control" in text
    assert "`vllm serve tiny-512 --max-model-len 512`" in text
    assert "endprompt extend base --to 512 --out yarn" in text
    for file in ("README.md", FILE, "config.json"):
        assert str(run.parent) not in (exported / file).read_text()


def test_the_card_names_a_base_on_the_hub(base: Path, tmp_path: Path) -> None:
    model = {"name": "m", "path": str(base), "source": "org/m", "licence": "Apache-2.0"}
    text = card.write({"model": model}, recipes.load("endprompt").resolve(
        window=WINDOW, target=TARGET, gpu=False), WINDOW, TARGET, "x", [])  # fmt: skip
    assert "base_model: org/m" in text
    assert "license: apache-2.0" in text
    assert "Nothing was measured" in text


def test_a_linear_export_warns_that_servers_would_multiply_the_window() -> None:
    config = {"rope_parameters": {"rope_type": "linear", "factor": 8.0}, "model_type": "llama"}
    served = engines.serve("vllm", config, 65536, "m")
    assert served.command == "vllm serve m --max-model-len 65536"
    assert "524288" in served.note
    ramp = {"rope_type": "yarn", "factor": 8.0, "beta_fast": 8.0, "beta_slow": 1.0}
    config["rope_parameters"] = ramp
    assert "--yarn-beta-fast 8" in engines.serve("llama.cpp", config, 65536, "m").command


def test_vllm_serves_longrope_by_the_factors_of_the_extended_window() -> None:
    """Its factor on cos and sin comes from the windows: another can't be expressed."""
    parameters = {"rope_type": "longrope", "factor": 8.0, "original_max_position_embeddings": 8192,
                  "long_factor": [2.0], "short_factor": [1.0]}  # fmt: skip
    config = {"rope_parameters": parameters, "model_type": "llama"}
    served = engines.serve("vllm", config, 65536, "m")
    assert served.obstacle == ""
    assert "prompts inside the old window" in served.note
    parameters["attention_factor"] = 1.0
    served = engines.serve("vllm", config, 65536, "m")
    assert "as 1.109 from the windows, training used 1" in served.obstacle


@pytest.mark.parametrize(("s", "said"), [(4.0, "ends at 32,768 positions"), (8.0, "")])
def test_vllm_cannot_read_yarn_past_its_factor_times_the_old_window(s: float, said: str) -> None:
    parameters = {"rope_type": "yarn", "factor": s, "original_max_position_embeddings": 8192}
    config = {"rope_parameters": parameters, "model_type": "llama"}
    found = engines.serve("vllm", config, 65536, "m").obstacle
    assert said in found
    assert bool(said) == bool(found)


@pytest.mark.parametrize(("model_type", "said"), [("gemma3_text", False), ("llama", True)])
def test_vllm_multiplies_the_window_of_a_linear_export_but_not_of_gemma_3(
    model_type: str, said: bool
) -> None:
    parameters = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    config = {"rope_parameters": parameters, "model_type": model_type}
    assert bool(engines.serve("vllm", config, 65536, "m").note) == said


@pytest.mark.parametrize("scaling", SCALINGS)
def test_headroom_is_in_the_factor_and_never_in_the_window(
    scaling: str, base: Path, tmp_path: Path
) -> None:
    recipe = recipes.load("endprompt").replace({"rope.scaling": scaling, "rope.headroom": 2.0})
    recipe = recipe.resolve(window=WINDOW, target=TARGET, gpu=False)
    run = make_run(base, tmp_path / "run", recipe=recipe.model_dump(mode="json"))
    done = export(run, tmp_path / "out")
    assert [check for check in verify(done.folder).checks if not check.passed] == []
    config = json.loads((done.folder / "config.json").read_text())
    s, written = TARGET / WINDOW * 2, config["rope_parameters"]
    if scaling == "ntk":
        plain = json.loads((base / "config.json").read_text())
        theta, D = plain["rope_parameters"]["rope_theta"], plain["head_dim"]
        assert written["rope_theta"] == pytest.approx(theta * s ** (D / (D - 2)))
    else:
        assert written["factor"] == s
    assert config["max_position_embeddings"] == (WINDOW if scaling == "dynamic" else TARGET)
    assert written.get("original_max_position_embeddings", WINDOW) == WINDOW
    again = models.load_config(str(done.folder))
    assert models.family_of(str(done.folder), again).base.window == TARGET
    assert models.load_tokenizer(str(done.folder)).model_max_length == TARGET


@pytest.mark.parametrize(
    ("engine", "s", "said"),
    [("transformers", 16.0, "would scale by 8 in place of 16"), ("vllm", 16.0, "131072 tokens"),
     ("sglang", 16.0, ""), ("transformers", 8.0, ""), ("vllm", 8.0, "")],
)  # fmt: skip
def test_a_factor_above_the_windows_ratio_is_said_where_a_reader_takes_another(
    engine: str, s: float, said: str
) -> None:
    parameters = {"rope_type": "yarn", "factor": s, "original_max_position_embeddings": 8192}
    config = {"rope_parameters": parameters, "model_type": "llama"}
    note = engines.serve(engine, config, 65536, "m").note
    assert said in note
    assert bool(said) == bool(note)


@pytest.mark.parametrize(
    ("scaling", "engine", "settings"),
    [("dynamic", "vllm", {}), ("dynamic", "sglang", {}), ("dynamic", "llama.cpp", {}),
     ("longrope", "llama.cpp", {}), ("yarn", "llama.cpp", {"rope.attention_factor": 1.0}),
     ("longrope", "vllm", {"rope.attention_factor": 1.0}),
     ("longrope", "vllm", {"rope.headroom": 2.0})],
)  # fmt: skip
def test_what_an_engine_cannot_express_is_said_before_anything_is_written(
    scaling: str, engine: str, settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    recipe = recipes.load("endprompt").replace({"rope.scaling": scaling, **settings})
    recipe = recipe.resolve(window=WINDOW, target=TARGET, gpu=False)
    run = make_run(base, tmp_path / "run", recipe=recipe.model_dump(mode="json"))
    with pytest.raises(RopeError, match=f"^{engine} can't serve scaling '{scaling}': "):
        export(run, tmp_path / "out", wanted=["transformers", engine])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    done = export(run, tmp_path / "out")
    assert f"**{engine}**: not with this scaling" in (tmp_path / "out/README.md").read_text()
    assert {each.engine for each in done.served if each.obstacle} >= {engine}


def test_mistakes_are_one_line(run: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown engine 'vlm' \(did you mean 'vllm'\?\)"):
        export(run, tmp_path / "a", wanted=["vlm"])
    with pytest.raises(OutputError, match=r"is there already: .* --force"):
        export(run, exported)
    with pytest.raises(DataError, match="no finished run in"):
        export(tmp_path, tmp_path / "a")
    with pytest.raises(DataError, match=f"no {FILE} in"):
        verify(tmp_path)
    with pytest.raises(RecipeError, match="--tokens 100 has to be above the old window of 128"):
        export(run, tmp_path / "a", tokens=100)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(DataError, match="lacks endprompt: export again"):
        verify(tmp_path)


def test_a_failed_export_leaves_what_was_there(
    run: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def fail(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card, "write", fail)
    with pytest.raises(OutputError, match="no space left"):
        export(run, copy, force=True)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_run_that_was_moved_and_one_of_train_alone_are_found(
    run: Path, base: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    edit(moved / "run.json", lambda found: found.update(checkpoint="/gone/arms/endprompt/model"))
    assert verify(export(moved, tmp_path / "a").folder).checks
    arm = moved / "arms" / "endprompt"
    found = json.loads((moved / "run.json").read_text())
    trained = {"recipe": found["recipe"], "target": TARGET, "tokens": 128, "provenance": {}}
    trained |= {"flops": 1.0, "seconds": 1.0, "peak_memory_bytes": 1, "curve": [], "resumed_at": []}
    files.write_json(arm / "train.json", trained)
    claim = {"endprompt": "train", "settings": {"model": str(base)}}
    files.write_json(arm / "claim.json", claim)
    done = export(arm, tmp_path / "b")
    assert all(check.passed for check in verify(done.folder).checks)
    assert "Nothing was measured" in (done.folder / "README.md").read_text()


@pytest.mark.parametrize(("window", "target"), [(128, 512), (8192, 16384), (2, 6), (8192, 8195)])
def test_lengths_lie_inside_and_past_the_window(window: int, target: int) -> None:
    lengths = prompt_lengths(window, target, None)
    assert lengths == sorted(set(lengths))
    assert 0 < lengths[0] <= window < lengths[-1] <= target


class Answers(BaseHTTPRequestHandler):
    """A server of completions over a real tiny model; `layout` is that of one engine."""

    model: Any = None
    tokenizer: Any = None
    layout = "vllm"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        row = logits_at(self.model, asked["prompt"], [len(asked["prompt"])])[0]
        ids = row.argsort()[::-1][: asked["logprobs"]]
        if self.layout == "vllm":
            said = {"top_logprobs": [{f"token_id:{token}": row[token] for token in ids}]}
        elif self.layout == "llama.cpp":
            top = [{"id": int(t), "token": "?", "logprob": row[t]} for t in ids]
            said = {"content": [{"top_logprobs": top}]}
        else:
            said = None
        body = json.dumps({"choices": [{"text": "", "logprobs": said}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(exported: Path) -> Iterator[str]:
    Answers.model = models.load(str(exported), models.load_config(str(exported)))
    Answers.layout = "vllm"
    serving = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}/v1"
    serving.shutdown()
    serving.server_close()


@pytest.mark.parametrize("layout", ["vllm", "llama.cpp"])
def test_a_server_is_held_against_the_reference(
    layout: str, server: str, exported: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Answers.layout = layout
    words = ["export", "verify", str(exported), "--url", server]
    assert command(words) == 0
    assert capsys.readouterr().out.count("ok  ") == 3
    Answers.model = models.load(str(exported), models.load_config(str(base)))  # scaling lost
    assert command(words) == 1
    assert "FAIL  RoPE is scaled" in capsys.readouterr().out


def a_reference(lost: float) -> Reference:
    """Four places, two past the window of 100, where unscaled RoPE differs by `lost` nats."""
    places = [
        Place(length=n, ids=[1, 2], texts=["a", "b"], logprobs=[-1.0, -2.0],
              unscaled=[-1.0 - lost, -2.0 + lost])
        for n in (50, 90, 150, 190)
    ]  # fmt: skip
    return Reference(
        endprompt="0", window=100, target=200, dtype="float32", rope_parameters={},
        max_position_embeddings=200, chat_template_sha256=None, tokens=[0] * 200, places=places,
    )  # fmt: skip


@pytest.mark.parametrize("lost", [0.05, 0.91, 4.3])
def test_a_lost_scaling_is_seen_through_a_server_whatever_its_size(lost: float) -> None:
    expected = a_reference(lost)
    unscaled = [dict(zip(one.ids, one.unscaled, strict=True)) for one in expected.places]
    assert not scaling_kept(expected, unscaled).passed
    as_vllm = [{t: p + 4e-5 for t, p in zip(one.ids, one.logprobs, strict=True)}
               for one in expected.places]  # fmt: skip
    assert scaling_kept(expected, as_vllm).passed


def test_a_server_in_float32_is_allowed_less_than_one_in_half_precision(
    server: str, exported: Path
) -> None:
    """Answers of weights that are a little off, far past what rounding in float32 makes."""
    with torch.no_grad():
        for weight in Answers.model.parameters():
            weight *= 1.02
    half = verify_server(exported, server, "m")
    assert [check.name for check in half.checks if not check.passed] == []
    whole = verify_server(exported, server, "m", "float32")
    assert "log-probabilities past the old window" in {
        check.name for check in whole.checks if not check.passed
    }


def test_a_check_that_cannot_tell_says_so() -> None:
    expected = a_reference(0.01)
    same = [dict(zip(one.ids, one.logprobs, strict=True)) for one in expected.places]
    found = scaling_kept(expected, same)
    assert not found.passed
    assert "can't tell: RoPE left unscaled would differ by 0.01 nats only" in found.detail
    assert "can't tell" in scaling_kept(expected, [{}] * 4).detail


def test_a_server_without_log_probabilities_or_without_answer_is_one_line(
    server: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Answers.layout = "none"
    assert command(["export", "verify", str(exported), "--url", server]) == 1
    assert "gives no log-probabilities" in capsys.readouterr().err
    assert command(["export", "verify", str(exported), "--url", "http://127.0.0.1:9/v1"]) == 1
    assert "gives no answer" in capsys.readouterr().err
    assert command(["export", "verify", str(exported), "--url", "localhost"]) == 1
    assert "give its address" in capsys.readouterr().err


def test_a_push_sends_what_was_written_and_no_token_with_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from endprompt.io import hub

    sent: list[Path] = []

    def push(folder: Path, repo: str, **_: Any) -> str:
        sent.append(folder)
        if len(sent) > 1:
            raise OutputError(f"cannot push to {repo}: no route")
        return f"https://huggingface.co/{repo}"

    monkeypatch.setenv("HF_TOKEN", "hf_AbCdEfGhIjKlMnOp")
    monkeypatch.setattr(hub, "check", lambda repo: None)
    monkeypatch.setattr(hub, "push", push)
    out = tmp_path / "out"
    words = ["export", str(run), "--out", str(out), "--push", "me/mine"]
    assert command(words) == 0
    assert sent == [out]
    assert "https://huggingface.co/me/mine" in capsys.readouterr().out
    assert not any(b"hf_AbCdEf" in file.read_bytes() for file in out.rglob("*") if file.is_file())
    assert command([*words, "--force"]) == 1
    assert f"no route; then: hf upload me/mine {out}" in capsys.readouterr().err
    assert (out / "config.json").is_file(), "what was written stays"
