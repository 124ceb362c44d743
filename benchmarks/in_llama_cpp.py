"""Hold llama.cpp against the model as trained, past the old window: PI and YaRN, for real.

    endprompt export RUN --out DIR
    pip install llama-cpp-python          # built from source: minutes, and a C++ compiler
    python benchmarks/in_llama_cpp.py DIR [DIR ...] --json benchmarks/results/llama_cpp.json

Writes each DIR's weights as GGUF (float32, llama architecture) with the package `gguf`, reads it
with llama.cpp, and compares log-probabilities with the reference that the export left. Prompts
are token ids: llama.cpp's tokenizer is not part of the comparison.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from endprompt.errors import EndPromptError, RopeError
from endprompt.export.engines import obstacle
from endprompt.export.reference import read
from endprompt.export.verify import compared, side_by_side
from endprompt.io import files, provenance

TOLERANCE = 0.1
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, out: Path) -> None:
    """Checkpoint folder to one GGUF file, RoPE scaling included. Raises RopeError."""
    config = json.loads((folder / "config.json").read_text())
    why_not = obstacle("llama.cpp", config)
    if config["model_type"] != "llama" or why_not:
        raise RopeError(f"{folder}: {why_not or 'model type ' + config['model_type']}")
    writer = gguf.GGUFWriter(out, "llama")
    _sizes(writer, config)
    _rope(writer, config["rope_parameters"], config)
    _vocabulary(writer, folder, config)
    for name, array in _tensors(folder):
        writer.add_tensor(_name(name), _turned(name, array, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _rope(writer: gguf.GGUFWriter, rope: dict[str, Any], config: dict[str, Any]) -> None:
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    elif kind != "default":
        raise RopeError(f"this script writes PI and YaRN, not {kind!r}")


def _vocabulary(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """Byte-level BPE; only so much that llama.cpp loads the file."""
    held = json.loads((folder / "tokenizer.json").read_text())
    known = dict(held["model"]["vocab"]) | {t["content"]: t["id"] for t in held["added_tokens"]}
    names = {number: name for name, number in known.items()}
    special = {token["id"] for token in held["added_tokens"]}
    numbers = range(config["vocab_size"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in held["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([names.get(n, f"[unused{n}]") for n in numbers])
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if n in special else kinds.NORMAL for n in numbers])
    writer.add_token_merges(merges or ["a b"])
    if config.get("bos_token_id") is not None:
        writer.add_bos_token_id(config["bos_token_id"])
    end = config.get("eos_token_id")
    writer.add_eos_token_id(end[0] if isinstance(end, list) else end)
    writer.add_add_bos_token(False)


def _tensors(folder: Path) -> list[tuple[str, np.ndarray]]:
    import torch
    from safetensors import safe_open

    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                found.append((name, shard.get_tensor(name).to(torch.float32).numpy()))
    return found


def _name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{kind}"
    _, _, layer, inside = stem.split(".", 3)
    return f"blk.{layer}.{BLOCK[inside]}.{kind}"


def _turned(name: str, array: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Rows of q and k in llama.cpp's order: pairs side by side, not half a head apart."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    which = name.split(".")[-2]
    if which not in heads:
        return array
    H, D = config[heads[which]], config["head_dim"]
    halves = array.reshape(H, 2, D // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def predictions(file: Path, folder: Path, threads: int) -> list[dict[int, float]]:
    """Log-probabilities that llama.cpp gives the reference's tokens, at each of its places."""
    from llama_cpp import Llama, llama_get_logits_ith

    expected = read(folder)
    model = Llama(str(file), n_ctx=len(expected.tokens) + 8, n_threads=threads, verbose=False)
    found, start = [], 0
    for place in expected.places:
        model.eval(expected.tokens[start : place.length])
        start = place.length
        last = llama_get_logits_ith(model.ctx, -1)
        logits_V = np.ctypeslib.as_array(last, shape=(model.n_vocab(),)).astype(np.float64)
        top = logits_V.max()
        logprobs_V = logits_V - top - np.log(np.exp(logits_V - top).sum())
        found.append({token: float(logprobs_V[token]) for token in place.ids})
        print(f"{place.length:>9,}", *np.round(logprobs_V[place.ids], 4), flush=True)
    return found


def measure(folder: Path, file: Path, threads: int) -> dict[str, Any]:
    """Write `file`, ask llama.cpp, and say how far it is from the model as trained."""
    write_gguf(folder, file)
    expected = read(folder)
    started = time.monotonic()
    found = predictions(file, folder, threads)
    checks = list(compared(expected, found, TOLERANCE))
    for check in checks:
        print("ok  " if check.passed else "FAIL", check.name, check.detail, sep="  ", flush=True)
    rope = expected.rope_parameters
    return {
        "scaling": rope["rope_type"],
        "factor": rope.get("factor"),
        "window": expected.window,
        "target": expected.target,
        "seconds": round(time.monotonic() - started, 1),
        "checks": [vars(check) for check in checks],
        "largest_difference": {
            str(place.length): max(
                abs(given[token] - logprob)
                for token, logprob in zip(place.ids, place.logprobs, strict=True)
            )
            for place, given in zip(expected.places, found, strict=True)
        },
        "likeliest_token": [
            {"tokens": each.length, "token": each.text, "transformers": each.trained,
             "llama_cpp": each.here, "transformers_unscaled": each.unscaled}
            for each in side_by_side(expected, found)
        ],
    }  # fmt: skip


def main() -> int:
    """Write, read, compare; exit code 1 when llama.cpp differs."""
    import llama_cpp

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="what `endprompt export` wrote")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    results = []
    for folder in given.folders:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                results.append(measure(folder, Path(scratch) / "model.gguf", given.threads))
            except EndPromptError as error:
                raise SystemExit(f"in_llama_cpp.py: {error}") from None
        for each in results[-1]["likeliest_token"]:
            print(*each.values(), sep="  ", flush=True)
    if given.json:
        versions = provenance.versions() | {"llama-cpp-python": llama_cpp.__version__}
        said = {"versions": versions, "threads": given.threads, "tolerance_nats": TOLERANCE}
        files.write_json(given.json, said | {"results": results})
    return int(not all(check["passed"] for each in results for check in each["checks"]))


if __name__ == "__main__":
    raise SystemExit(main())
