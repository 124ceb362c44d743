"""The search for a RoPE scaling: what the probe measures, how it ranks, resume, the verb."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from endprompt import recipe as recipes
from endprompt import rope
from endprompt.cues import CueWriter
from endprompt.data.gaps import lead
from endprompt.data.tokens import TokenDocuments
from endprompt.errors import EndPromptError
from endprompt.models import checkpoint as models
from endprompt.models import families, rotation
from endprompt.models.recording import recording
from endprompt.train import gaps
from endprompt.tuning import candidates, probe
from endprompt.tuning.candidates import Candidate
from endprompt.tuning.run import Request, rank_correlation, tune
from tiny_checkpoint import WORDS, save_tiny
from tiny_families import EXTENDED, TINY_WINDOW, tiny_known_model

WINDOW, TARGET = 1024, 2048


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny checkpoint with a window of 1024 whose attention is far from uniform."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    changes = {"max_position_embeddings": WINDOW, "initializer_range": 0.3, "rope_theta": 1000.0}
    return str(save_tiny(folder, **changes))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two documents of drawn words."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for name, words in (("one", 900), ("two", 1100)):
        (folder / f"{name}.txt").write_text(" ".join(rng.choice(WORDS, words)))
    return folder


def scaled(model: str, candidate: Candidate, attention: str = "sdpa") -> Any:
    config = models.scaled_config(model, candidate.recipe, TARGET)
    return models.load(model, config, attention=attention)


def drawn_documents() -> TokenDocuments:
    rng = np.random.default_rng(1)
    return TokenDocuments.from_arrays([rng.integers(0, 256, n) for n in (3000, 2000)])


def probe_rows(model: str, count: int = 4) -> tuple[list[probe.Row], Any]:
    cues = CueWriter(models.load_tokenizer(model))
    return probe.make_rows(
        drawn_documents(), cues, window=WINDOW, target=TARGET, count=count, seed=0
    )


@pytest.mark.parametrize("scaling", ["yarn", "ntk", "longrope", "pi"])
def test_the_loss_of_a_row_is_that_of_its_answers_in_the_whole_text(
    model: str, scaling: str
) -> None:
    """The text of all positions, read by Transformers alone; the bank holds its own keys."""
    network = scaled(model, Candidate(scaling, 1.5))
    family = models.family_of(model)
    rows, filler = probe_rows(model)
    kept = np.concatenate([piece[lead(piece) :] for piece in filler.pieces])
    for row in rows[1:3]:
        example = row.example
        whole_T = np.full(TARGET, -1)
        whole_T[example["position_ids"]] = example["input_ids"]
        whole_T[example["gap_positions"]] = kept[example["gap_slots"]]
        assert whole_T.min() >= 0  # nothing is left empty
        ids = torch.tensor(whole_T)[None]
        places = torch.arange(TARGET)[None]
        with torch.no_grad(), recording(network) as recorded:
            logits_TV = network(ids).logits[0].double()
            angles = rotation.angles(network, family, places, places[0])
        layouts = rotation.layouts(network, family)
        bank = gaps.bank_of(recorded, family, layouts, angles, kept=slice(None))
        asked = example["position_ids"][example["loss_weights"] > 0]
        wanted = torch.nn.functional.cross_entropy(logits_TV[asked - 1], ids[0, asked])

        own = probe.Row(row.depth, example | {"gap_slots": example["gap_positions"]})
        reader = models.under(network, network.config, attention="sdpa")
        filled = gaps.FilledGaps(reader, family, bank)
        ((depth, found),) = probe.answer_losses(reader, filled, [own])

        assert depth == row.depth
        assert found == pytest.approx(float(wanted), abs=1e-4)
        (empty,) = probe.answer_losses(
            reader, filled, [probe.Row(row.depth, without_gaps(example))]
        )
        assert abs(empty[1] - found) > 1e-3


def without_gaps(example: dict[str, Any]) -> dict[str, Any]:
    nothing = np.zeros(0, dtype=np.int64)
    return example | {"gap_positions": nothing, "gap_slots": nothing}


def test_rows_ask_at_the_end_of_the_target_for_texts_all_over_it(model: str) -> None:
    rows, _ = probe_rows(model, 16)
    tokenizer = models.load_tokenizer(model)
    quarters = {int(4 * row.depth) for row in rows}
    assert quarters >= {0, 1, 2}
    for row in rows:
        example = row.example
        assert example["position_ids"][0] == 0
        assert example["position_ids"][-1] == TARGET - 1
        answers = tokenizer.decode(example["input_ids"][example["loss_weights"] > 0]).split()
        shown = tokenizer.decode(example["input_ids"][example["segments"] == 0])
        assert len(answers) > 2
        assert all(f" is {answer}." in shown for answer in answers)


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("yarn", 1.5, (("attention_factor", 1.3),)),
        Candidate("ntk", 3.0),
        Candidate("llama3", 1.0),
        Candidate("longrope", 1.0),
        Candidate("dynamic", 1.0),
    ],
    ids=lambda candidate: candidate.name,
)
def test_a_candidate_on_the_loaded_base_is_what_a_fresh_load_gives(
    model: str, candidate: Candidate
) -> None:
    base = models.load(model, models.load_config(model))
    ids = torch.randint(0, 256, (1, TARGET), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = base(ids).logits
        config = models.scaled_config(model, candidate.recipe, TARGET)
        found = models.under(base, config, attention="sdpa")(ids).logits
        assert torch.equal(found, scaled(model, candidate)(ids).logits)
        assert torch.equal(base(ids).logits, before)
        assert not torch.allclose(found, before)
    under = models.under(base, config)
    assert under.get_input_embeddings().weight.data_ptr() == (
        base.get_input_embeddings().weight.data_ptr()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTENDED)
def test_every_family_under_another_config_is_what_a_fresh_load_gives(
    name: str, tmp_path: Path
) -> None:
    base = tiny_known_model(name)
    family = families.read(base.config)
    base.save_pretrained(tmp_path)
    target = 2 * TINY_WINDOW
    rule = Candidate(family.suited("yarn"), 1.5).recipe
    parameters = models.scaled_parameters(family, rule, target)
    config = families.scaled_config(base.config, parameters, family.base, target)
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    ids = torch.randint(3, 97, (1, 700), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(models.under(base, config)(ids).logits, fresh.eval()(ids).logits)


def request(model: str, text: Path, out: Path, **changes: Any) -> Request:
    settings = {"scalings": ("pi",), "rows": 4, "needles": 4, "verify": 4} | changes
    return Request(model, TARGET, out, text=(str(text),), **settings)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole(model: str, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished search."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    tune(request(model, text, out), say=lambda _: None, watch=lambda *_: None)
    return out


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    result = dict(result)
    for name in ("candidates", "verified"):
        result[name] = [
            {key: value for key, value in each.items() if key != "seconds"} for each in result[name]
        ]
    return {name: result[name] for name in ("candidates", "verified", "spearman", "set", "best")}


def test_candidates_are_ranked_by_the_probe_and_the_best_by_the_truth(whole: Path) -> None:
    result = json.loads((whole / "tune_scaling.json").read_text())
    losses = [each["answer_loss"] for each in result["candidates"]]
    assert losses == sorted(losses)
    assert len(set(losses)) == len(losses) >= 5
    for each in result["candidates"]:
        answers = json.loads((whole / "probe" / f"{each['name']}.json").read_text())["answers"]
        quarters = [[nats for depth, nats in answers if int(4 * depth) == q] for q in range(4)]
        means = [np.mean(some) for some in quarters if some]
        assert each["answer_loss"] == pytest.approx(np.mean(means))
    names = [each["name"] for each in result["candidates"]]
    assert {each["name"] for each in result["verified"]} >= {*names[:3], "pi-1"}
    truths = [each["answer_loss"] for each in result["verified"]]
    assert truths == sorted(truths)
    assert result["best"] == result["verified"][0]["name"]
    probes = [each["probe_loss"] for each in result["verified"]]
    assert result["spearman"] == rank_correlation(probes, truths)
    assert -1 <= result["spearman"] <= 1


def test_a_killed_search_resumes_with_what_it_has(
    whole: Path, model: str, text: Path, tmp_path: Path
) -> None:
    out, calls = tmp_path / "parts", [0]

    def watch(what: str, *_: float) -> None:
        calls[0] += 1
        if calls[0] == 11 or (what == "verify" and not calls[0] % 7):
            raise Killed

    asked = request(model, text, out)
    kept: dict[Path, int] = {}
    for _ in range(20):
        try:
            result = tune(asked, say=lambda _: None, watch=watch)
            break
        except Killed:
            paths = [*out.glob("probe/*.json"), *out.glob("verified/*.json")]
            assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
            kept = {path: path.stat().st_mtime_ns for path in paths}
    assert len(kept) > 3
    of_whole = json.loads((whole / "tune_scaling.json").read_text())
    assert without_times(json.loads(json.dumps(result))) == without_times(of_whole)

    more = tune(request(model, text, out, verify=5), say=lambda _: None, watch=lambda *_: None)
    assert len(more["verified"]) == 5


def test_settings_of_the_best_give_its_rope(model: str) -> None:
    family = models.family_of(model)
    for candidate in (
        Candidate("yarn", 1.25, (("beta_fast", 16.0),)),
        Candidate("yarn", 2.0, (("attention_factor", 1.108),)),
        Candidate("longrope", 3.0),
    ):
        said = [f"{key}={value}" for key, value in candidate.overrides.items()]
        given = recipes.load("recall-anchors").replace(recipes.parse_overrides(said))
        wanted = models.scaled_parameters(family, candidate.recipe, TARGET)
        assert models.scaled_parameters(family, given, TARGET) == wanted


def test_settings_are_varied_around_what_the_best_has() -> None:
    base = rope.Base(10000.0, 64, 4096)
    best = Candidate("yarn", 1.5)
    parameters = rope.parameters(base, "yarn", 3.0)
    found = dict(c.settings[0] for c in candidates.varied(best, base, parameters)[::2])
    assert found == {"attention_factor": 1.06, "beta_fast": 16.0, "beta_slow": 0.5}
    assert candidates.varied(Candidate("ntk", 1.0), base, parameters) == []
    scaled = rope.Base(10000.0, 64, 8192, parameters=rope.parameters(base, "yarn", 2.0))
    settings = [c.settings[0][0] for c in candidates.varied(best, scaled, parameters)]
    assert set(settings) == {"attention_factor"}


def test_a_scaled_base_is_searched_with_its_own_rule(tmp_path: Path) -> None:
    settings = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 256}  # fmt: skip
    folder = save_tiny(tmp_path / "m", max_position_embeddings=WINDOW, rope_parameters=settings)
    family = models.family_of(str(folder))
    assert candidates.searched(family, TARGET, ()) == ["llama3", "longrope"]
    with pytest.raises(EndPromptError, match="'yarn' has no form"):
        candidates.searched(family, TARGET, ("yarn",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": WINDOW}, "not above the model's window"),
        ({"scalings": ("yarm",)}, "yarm"),
        ({"scalings": ("none",)}, "scales nothing"),
        ({"needles": 5000}, "do(es)? not fit|there are"),
        ({"target": 64 * TARGET, "needles": 4}, "text too short"),
        ({"dtype": "float8"}, "unknown dtype"),
    ],
)
def test_bad_input_is_one_clear_line_before_anything_runs(
    model: str, text: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    asked = {"target": TARGET} | changes
    wanted = Request(model, out=tmp_path / "out", text=(str(text),), **asked)
    with pytest.raises(EndPromptError, match=said) as error:
        tune(wanted, say=lambda _: None, watch=lambda *_: None)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("probe"))


def test_a_folder_of_another_search_is_refused(
    whole: Path, model: str, text: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "other")
    with pytest.raises(EndPromptError, match="another rows"):
        tune(
            request(model, text, tmp_path / "other", rows=5),
            say=lambda _: None, watch=lambda *_: None,
        )  # fmt: skip


def test_the_verb_prints_what_its_record_holds(
    whole: Path, model: str, text: Path, tmp_path: Path,
    endprompt: Callable[..., subprocess.CompletedProcess[str]],
) -> None:  # fmt: skip
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "tune_scaling.json").unlink()
    last = next(iter(sorted(out.glob("verified/*.json"))))
    last.unlink()
    done = endprompt(
        "tune-scaling", model, "--to", TARGET, "--text", text, "--scaling", "pi", "--rows", 4,
        "--needles", 4, "--verify", 4, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads((out / "tune_scaling.json").read_text())
    assert without_times(result) == without_times(
        json.loads((whole / "tune_scaling.json").read_text())
    )
    assert " ".join(f"--set {each}" for each in result["set"]) in done.stdout
    assert f"{result['spearman']:.2f} over 4 verified" in done.stdout
    assert "need not be the best after training" in done.stdout
    shown = done.stdout.partition("Probe: ")[2].partition("record  ")[0]
    assert max(map(len, shown.splitlines())) <= 80
