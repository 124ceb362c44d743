"""Extended checkpoints as anybody loads them: in a process of its own, without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from endprompt import rope
from endprompt.models import families

CHILD = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM

def read(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(int(sys.argv[2]))[None] % 200 + 3
    with torch.no_grad():
        logits = model(ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3,
                             min_new_tokens=3, do_sample=False, eos_token_id=256, pad_token_id=0)
    rotary = [m for m in model.modules() if hasattr(m, "rope_type")]
    return {
        "logits": logits.tolist(), "finite": bool(torch.isfinite(logits).all()),
        "new": out[0, ids.shape[1]:].tolist(), "endprompt": "endprompt" in sys.modules,
        "window": model.config.max_position_embeddings,
        "inv_freq": {name: buffer.tolist() for m in rotary for name, buffer in m.named_buffers()
                     if name.endswith("inv_freq") and "original" not in name},
        "sizes": {name: value for m in rotary for name, value in vars(m).items()
                  if name.endswith("attention_scaling")},
        "config": json.loads((Path(folder) / "config.json").read_text()),
    }

found = {name: read(folder) for name, folder in json.loads(sys.argv[1]).items()}
Path(sys.argv[3]).write_text(json.dumps(found))
"""


def reload(folders: dict[str, Path], length: int, out: Path) -> dict[str, dict[str, Any]]:
    """What plain Transformers makes of each checkpoint after a prompt of `length` tokens.

    logits    of the next token, float[V]
    new       three tokens that it generates
    inv_freq  buffers of its rotary embedding by name, radians per position
    sizes     factors on cos and sin, by name
    """
    given = json.dumps({name: str(folder) for name, folder in folders.items()})
    words = [sys.executable, "-c", CHILD, given, str(length), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def require_past_the_window(
    found: dict[str, Any], family: families.Family, wanted: rope.Parameters, target: int
) -> None:
    """Assert that a reloaded checkpoint generates past its base's window, with its RoPE scaled.

    found   what `reload` says of one checkpoint, asked past the window
    family  of the base
    wanted  `rope_parameters` of the layers that the run scaled
    """
    assert not found["endprompt"]
    assert found["window"] == target
    assert found["finite"]
    likeliest = np.array(found["logits"])
    likeliest[256] = -np.inf  # the end of the text, which was not allowed
    assert len(found["new"]) == 3
    assert found["new"][0] == int(likeliest.argmax())
    for layers in family.layers:
        if layers.parameters is None:
            continue
        expected, size = rope.inverse_frequencies(
            wanted if layers.scaled else layers.parameters, family.base.rotary_size,
            length=target, window=family.base.window,
        )  # fmt: skip
        kind = f"{layers.kind}_" if family.by_kind else ""
        np.testing.assert_allclose(found["inv_freq"][f"{kind}inv_freq"], expected, rtol=1e-5)
        assert abs(found["sizes"][f"{kind}attention_scaling"] - size) < 1e-5
        if layers.scaled:
            own, _ = family.base.frequencies(target)
            assert not np.allclose(expected, own, rtol=1e-3), "what was compared is scaled"
