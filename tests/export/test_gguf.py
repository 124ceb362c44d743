"""The benchmark's GGUF holds the exported weights and RoPE: read back by Transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gguf import GGUFReader
from test_export import TARGET, make_run

from endprompt.errors import RopeError
from endprompt.export.checkpoint import export
from endprompt.models import checkpoint as models
from endprompt.rope import usual_headroom
from tiny_checkpoint import WINDOW, save_tiny

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "in_llama_cpp.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("llama_cpp_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("scaling", ["pi", "yarn"])
def test_gguf_holds_the_weights_and_the_scaling(
    scaling: str, script: ModuleType, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    base = save_tiny(tmp_path / "base", initializer_range=0.4)
    folder = export(make_run(base, tmp_path / "run", scaling), tmp_path / "out").folder
    file = tmp_path / "model.gguf"
    script.write_gguf(folder, file)
    fields = GGUFReader(file).fields
    kind = {"pi": "linear", "yarn": "yarn"}[scaling]
    headroom = usual_headroom(scaling, TARGET / WINDOW)
    assert fields["llama.rope.scaling.type"].contents() == kind
    assert fields["llama.rope.scaling.factor"].contents() == headroom * TARGET / WINDOW
    assert fields["llama.context_length"].contents() == TARGET
    if scaling == "yarn":
        assert fields["llama.rope.scaling.original_context_length"].contents() == WINDOW
    back = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="model.gguf", dtype=torch.float32
    ).state_dict()
    trained = models.load(str(folder), models.load_config(str(folder))).state_dict()
    assert back.keys() == trained.keys()
    assert all(torch.equal(back[name], weights) for name, weights in trained.items())


def test_a_scaling_that_gguf_lacks_is_refused(script: ModuleType, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    folder = export(make_run(base, tmp_path / "run", "dynamic"), tmp_path / "out").folder
    with pytest.raises(RopeError, match="drops dynamic NTK"):
        script.write_gguf(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
