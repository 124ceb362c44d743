"""`endprompt prepare`: what a user types and reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest

from endprompt.cli.app import run
from endprompt.io import hub

TEXT = "the quick brown fox jumps over the lazy dog and runs on. " * 40


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    chosen = np.random.default_rng(0).choice(TEXT.split()[:12], (30, 480))
    rows = [json.dumps({"text": " ".join(row)}) for row in chosen] + ['{"text": ""}']
    path.write_text("\n".join(rows))
    return path


@pytest.fixture
def prepared(tmp_path: Path, source: Path, tokenizer_folder: str) -> Path:
    out = tmp_path / "out"
    assert run(["prepare", str(source), "-t", tokenizer_folder, "-o", str(out)]) == 0
    return out


def test_prepare_says_what_came_out(
    tmp_path: Path, source: Path, tokenizer_folder: str, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")
    out = tmp_path / "out"
    words = ["prepare", str(source), "--tokenizer", tokenizer_folder, "--out", str(out)]
    assert run([*words, "--holdout", "20%", "--length", "256", "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert os.environ["RAYON_NUM_THREADS"] == "1"
    assert "have 256 tokens or more" in printed
    assert "no BOS and EOS </s>" in printed
    assert "held out:" in printed
    assert "dropped: 1 (empty)" in printed
    assert "30 documents" in printed
    assert len(datasets.load_from_disk(str(out))["train"]) < 30


def test_a_mixture_is_told_by_source(
    tmp_path: Path, source: Path, tokenizer_folder: str, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    other = tmp_path / "b.txt"
    other.write_text(TEXT)
    spec = tmp_path / "mixture.yaml"
    spec.write_text(f"sources: [{{source: {source}, weight: 2}}, {{source: {other}}}]")
    out = str(tmp_path / "out")
    words = ["prepare", "--mixture", str(spec), "-t", tokenizer_folder, "-o", out]
    assert run([*words, "--max-tokens", "64k", "--holdout", "0.001%"]) == 0
    printed = capsys.readouterr().out
    assert f"of the tokens from {other}, ran out first" in printed
    assert "held out: nothing" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.jsonl", "-o", "out"], "needs --tokenizer MODEL and --out DIR"),
        (["-t", "x", "-o", "out"], "give SOURCES, or --mixture"),
        (["a.jsonl", "-t", "x", "-o", "out", "--holdout", "2"], "is no share below 1"),
        (["a.jsonl", "-t", "x", "-o", "out", "--max-tokens", "many"], "is no number of tokens"),
        (["a.jsonl", "-t", "./none", "-o", "out"], "no such file: a.jsonl"),
    ],
)
def test_wrong_words_are_one_line(words, message: str, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["prepare", *words]) != 0
    assert message in capsys.readouterr().err


def test_a_tokenizer_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, source: Path, capsys
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    cases = {
        str(tmp_path / "broken"): "cannot load the tokenizer of",
        str(source): "is a file: give the folder",
        "./none": "no such folder: ./none",
    }
    for name, message in cases.items():
        assert run(["prepare", str(source), "-t", name, "-o", str(tmp_path / "out")]) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1


def test_verify_finds_a_flipped_bit(prepared: Path, capsys) -> None:
    assert run(["prepare", "verify", str(prepared)]) == 0
    assert "every checksum right" in capsys.readouterr().out
    part = prepared / "train" / "data-00000.arrow"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 4
    part.write_bytes(data)
    assert run(["prepare", "verify", str(prepared)]) == 1
    printed = capsys.readouterr()
    assert "data-00000.arrow differs from its checksum" in printed.out
    assert "has 1 faults" in printed.err


def test_show_prints_segments_with_their_positions(prepared: Path, capsys) -> None:
    words = ["prepare", "show", str(prepared), "--row", "3", "--length", "200", "--target", "8k"]
    assert run(words) == 0
    printed = capsys.readouterr().out
    assert "row 3, epoch 0: 200 tokens, recipe endprompt, target 8,192" in printed
    assert "positions 0 .. " in printed
    assert ".. 8,191: terminal" in printed
    assert "7,992 positions skipped before it" in printed
    assert "please pay attention here" in printed
    assert " [...] " in printed
    assert run([*words, "--full"]) == 0
    assert " [...] " not in capsys.readouterr().out


def test_show_knows_epochs_and_lengths(prepared: Path, capsys) -> None:
    words = ["prepare", "show", str(prepared), "--recipe", "short", "--target", "128"]
    assert run([*words, "--row", "100000", "--length", "64"]) == 0
    assert "epoch 0" not in capsys.readouterr().out
    assert run(["prepare", "show", str(prepared), "--length", "100000"]) == 1
    assert "text too short" in capsys.readouterr().err


def test_show_takes_the_tokens_of_a_row_from_the_recipe(
    tmp_path: Path, prepared: Path, capsys
) -> None:
    recipe = tmp_path / "mine.yaml"
    for tokens, expected in (("target", 128), ("100", 100)):
        recipe.write_text(f"rows: {{tokens: {tokens}}}")
        words = ["prepare", "show", str(prepared), "--recipe", str(recipe), "--target", "128"]
        assert run(words) == 0
        assert f"{expected} tokens, recipe mine, target 128" in capsys.readouterr().out
    assert run(["prepare", "show", str(prepared), "--recipe", "short"]) == 1
    assert "rows need documents of 1024 tokens" in capsys.readouterr().err


def test_show_prints_no_control_characters(tmp_path: Path, tokenizer_folder: str, capsys) -> None:
    source = tmp_path / "a.txt"
    source.write_text("\x1b[2Jfox\n" * 200)
    out = str(tmp_path / "out")
    assert run(["prepare", str(source), "-t", tokenizer_folder, "-o", out]) == 0
    assert run(["prepare", "show", out, "--length", "100", "--target", "1k"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_push_sends_a_private_data_set_and_its_manifest(
    prepared: Path, source: Path, tokenizer_folder: str, capsys, monkeypatch
) -> None:
    sent: list = []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(
        datasets.DatasetDict, "push_to_hub", lambda _, name, **options: sent.append((name, options))
    )
    monkeypatch.setattr(hub, "check", lambda name: sent.append(name))
    monkeypatch.setattr(hub, "push", lambda *given, **options: sent.append((given, options)))
    words = ["prepare", str(source), "-t", tokenizer_folder, "-o", str(prepared), "--push", "me/x"]
    assert run(words) == 0
    assert sent[:2] == ["me/x", ("me/x", {"private": True, "token": "hf_secret"})]
    given, options = sent[2]
    assert given == (prepared, "me/x")
    assert (options["kind"], options["only"]) == ("dataset", "manifest.json")
    assert "pushed to me/x" in capsys.readouterr().out

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets.DatasetDict, "push_to_hub", refuse)
    assert run(words) == 1
    assert "cannot push to me/x: the hub can't be reached" in capsys.readouterr().err


def test_push_without_a_token_is_refused_before_anything_is_written(
    tmp_path: Path, source: Path, tokenizer_folder: str, capsys, monkeypatch
) -> None:
    for name in hub.TOKENS:
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "none"
    words = ["prepare", str(source), "-t", tokenizer_folder, "-o", str(out), "--push", "me/x"]
    assert run(words) == 1
    assert "--push needs a token with write access in HF_TOKEN" in capsys.readouterr().err
    assert not out.exists()


def test_the_first_word_verify_or_show_is_a_command_and_help_is_that_of_sources(capsys) -> None:
    for words in (["prepare", "--help"], ["prepare", "-h"]):
        assert run(words) == 0
        printed = capsys.readouterr().out
        assert "--tokenizer" in printed
        assert "prepare verify" in printed
    assert run(["prepare", "show", "--help"]) == 0
    assert "--row" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["run", "sources", "prepare"])
def test_an_input_may_have_any_name(
    name: str, tmp_path: Path, tokenizer_folder: str, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(TEXT)
    assert run(["prepare", name, "-t", tokenizer_folder, "-o", "out"]) == 0


def test_a_name_that_is_not_utf8_is_prepared(tmp_path: Path, tokenizer_folder: str, capsys) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    path = folder / os.fsdecode(b"caf\xe9.txt")
    path.write_text(TEXT)
    for number, spec in enumerate((path, folder)):
        out = str(tmp_path / f"out{number}")
        assert run(["prepare", str(spec), "-t", tokenizer_folder, "-o", out]) == 0
    path.unlink()
    assert run(["prepare", str(path), "-t", tokenizer_folder, "-o", str(tmp_path / "out2")]) == 1
    assert "caf\\xe9.txt" in capsys.readouterr().err


def test_chats_are_prepared_with_the_template(tmp_path: Path, tokenizer, capsys) -> None:
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    path = tmp_path / "a.jsonl"
    row = {"messages": [{"role": "user", "content": "the fox"}]}
    path.write_text(json.dumps(row) + "\n")
    words = ["prepare", str(path), "-t", str(folder), "-o", str(tmp_path / "out")]
    assert run([*words, "--chat"]) == 1
    assert "has no chat template" in capsys.readouterr().err
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    assert run(words) == 1
    assert "--chat writes them" in capsys.readouterr().err
    assert run([*words, "--chat"]) == 0
    ids = datasets.load_from_disk(str(tmp_path / "out"))["train"][0]["input_ids"]
    assert tokenizer.decode(ids) == "[user] the fox</s>"
    assert run(words) == 1
    assert "was prepared with" in capsys.readouterr().err
