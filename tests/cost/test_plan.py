"""The cost model against what torch saves, the paper's figures, and plain reasoning."""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from endprompt import recipe
from endprompt.cost import flops, plan
from endprompt.cost import memory as cost
from endprompt.errors import RecipeError
from endprompt.recipe import Recipe, Training
from endprompt.train import activations, adapters, loss
from endprompt.train.position_check import batch_of
from tiny_families import tiny_config, tiny_model

T = 512
LLAMA = plan.SIZES["llama-3-8b"].decoder


def saved_bytes(model: Any, *, autocast: bool) -> int:
    """Bytes that torch keeps for the backward pass, each storage once, weights left out."""
    kept: list[torch.Tensor] = []
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    weights = {parameter.numel() for parameter in model.parameters() if parameter.ndim == 2}
    with (
        torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
        ),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss.hidden_states(model, batch_of(model, T))
    sizes = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in kept
        if not (tensor.dtype == torch.bfloat16 and tensor.numel() in weights)
    }
    return sum(size for pointer, size in sizes.items() if pointer not in ours)


@pytest.mark.parametrize(
    ("family", "dtype", "autocast"),
    [("llama", "float32", False), ("llama", "bfloat16", True), ("gpt_neox", "float32", False)],
)
def test_activations_are_what_torch_keeps(family: str, dtype: str, autocast: bool) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 352, "max_position_embeddings": 2048}
    sizes |= {} if family == "gpt_neox" else {"head_dim": 32}
    found = [
        saved_bytes(tiny_model(family, num_hidden_layers=layers, **sizes), autocast=autocast)
        for layers in (2, 4)
    ]
    decoder = flops.read(tiny_config(family, **sizes))
    expected = cost.layer_bytes(decoder, dtype)
    assert (found[1] - found[0]) / 2 / T == pytest.approx(expected, rel=0.005)


def alive_bytes(layers: int, *, lora: bool = False, **sizes: Any) -> int:
    """Bytes that live after a forward pass of a model that keeps its matmuls alone."""
    model = tiny_model("llama", num_hidden_layers=layers, **sizes)
    if lora:
        adapters.prepare(model, Training(trainable="lora"))
    activations.choose(model, whole=False, tokens=10**9)
    before = alive()
    hidden = loss.hidden_states(model, batch_of(model, T))
    after = alive()
    del hidden
    return sum(size for pointer, size in after.items() if pointer not in before)


def test_short_rows_keep_everything_and_long_ones_are_told_what_to_keep() -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 352, "head_dim": 32}
    for tokens, told in ((64, False), (10**9, True)):
        model = tiny_model("llama", **sizes)
        activations.choose(model, whole=False, tokens=tokens)
        assert model.is_gradient_checkpointing == told


def test_where_a_gpu_will_train_everything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")  # on the CPU still, as when training chooses
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    activations.choose(model, whole=False, tokens=10**9)
    assert not model.is_gradient_checkpointing


def alive() -> dict[int, int]:
    """Bytes of every storage that Python knows, by its address."""
    gc.collect()
    storages = [one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor]
    parameters = [one for one in gc.get_objects() if type(one) is torch.nn.Parameter]
    storages += [one.untyped_storage() for one in parameters]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize("lora", [False, True])
def test_on_a_cpu_products_and_attention_alone_are_kept(lora: bool) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 352, "head_dim": 32}
    found = [
        alive_bytes(layers, lora=lora, max_position_embeddings=2048, **sizes) for layers in (2, 6)
    ]
    expected = cost.layer_bytes(flops.read(tiny_config(**sizes)), "float32", matmuls_only=True)
    # LoRA keeps eight numbers for each of four matmuls more
    assert (found[1] - found[0]) / 4 / T == pytest.approx(expected, rel=0.03 if lora else 0.01)
    assert cost.worth_recomputing(LLAMA, 512)
    assert not cost.worth_recomputing(flops.read(tiny_config(**sizes)), 512)


def memory(**changes: Any) -> cost.Memory:
    return cost.train_memory_bytes(LLAMA, **({"row_tokens": 8192, "dtype": "bfloat16"} | changes))


def test_full_training_keeps_sixteen_bytes_a_weight_and_lora_next_to_four() -> None:
    whole, lora = memory(), memory(trainable="lora")
    state = whole.weights + whole.gradients + whole.optimizer
    assert state == 16 * LLAMA.weights
    assert lora.gradients + lora.optimizer < 0.001 * state
    assert lora.weights == pytest.approx(4 * LLAMA.weights, rel=0.001)


def test_sharding_divides_the_state_and_leaves_the_activations() -> None:
    one, eight = memory(checkpointing=True), memory(checkpointing=True, devices=8, sharded=True)
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(eight, part) == getattr(one, part) / 8
    assert eight.activations == one.activations
    assert eight.total < one.total / 3


def test_checkpointing_saves_most_of_the_activations_and_costs_a_forward() -> None:
    assert memory(checkpointing=True).activations < memory().activations / 5
    chosen = recipe.load("endprompt").resolve(window=8192, target=65536, gpu=True)
    seconds = [
        plan.train_seconds(chosen, LLAMA, plan.machine("h100"), checkpointing=on)
        for on in (False, True)
    ]
    assert 1.2 < seconds[1] / seconds[0] < 4 / 3


def test_memory_grows_with_the_row_and_the_peak_holds_every_gradient() -> None:
    sizes = [memory(row_tokens=tokens, checkpointing=True).total for tokens in (64, 8192, 65536)]
    assert sizes[0] <= sizes[1] < sizes[2]
    short = memory(row_tokens=64, checkpointing=True)
    assert short.total == pytest.approx(
        short.weights + short.gradients + short.optimizer + short.gathered + short.runtime
    )
    assert memory(accumulates=True).total - memory().total == memory().gradients


@pytest.mark.parametrize("name", recipe.names())
def test_every_shipped_recipe_has_a_cost(name: str) -> None:
    chosen = recipe.load(name)
    one = plan.line(chosen, LLAMA, plan.machine("h100:8"), window=8192, target=65536)
    assert len(one.options) == len(one.fits) == 4
    assert (one.operations > 0) == chosen.trained
    if chosen.trained:
        assert one.tokens == pytest.approx(1e9, rel=0.01)
        assert all(seconds > 0 for _, _, seconds in one.options)


def test_proposes_the_fastest_that_fits_and_says_how_many_devices_it_takes() -> None:
    chosen = recipe.load("endprompt")
    alone = plan.line(chosen, LLAMA, plan.machine("h100"), window=8192, target=65536)
    assert alone.chosen is None
    assert alone.devices_needed == 4
    eight = plan.line(chosen, LLAMA, plan.machine("h100:8"), window=8192, target=65536)
    assert eight.chosen is not None
    assert eight.options[eight.chosen][0] == plan.Settings(checkpointing=True, sharded=True)
    enough = plan.line(
        chosen, LLAMA, plan.machine(f"h100:{alone.devices_needed}"), window=8192, target=65536
    )
    assert enough.fits[-1]
    small = plan.line(
        chosen, plan.SIZES["smollm2-135m"].decoder, plan.machine("h100"), window=8192, target=65536
    )
    assert small.chosen == 0


@pytest.mark.parametrize(("device", "checkpointing"), [("h100", False), ("rtx4090", True)])
def test_a_gpu_takes_as_many_tokens_at_once_as_half_of_it_holds(
    device: str, checkpointing: bool
) -> None:
    small, room = plan.SIZES["smollm2-135m"].decoder, plan.DEVICES[device].memory_bytes
    trained = Recipe(name="mine", training=Training(dtype="bfloat16"))
    settings = trained.memory(checkpointing=checkpointing)

    def held(tokens: int) -> float:
        return cost.train_memory_bytes(small, row_tokens=tokens, accumulates=True, **settings).total

    tokens = cost.tokens_at_once(small, room, **settings)
    assert tokens == cost.MOST_AT_ONCE or held(2 * tokens) > room / 2
    assert cost.TOKENS_AT_ONCE < tokens <= cost.MOST_AT_ONCE
    assert held(tokens) <= room / 2
    assert cost.tokens_at_once(LLAMA, room, **settings) == cost.TOKENS_AT_ONCE


def test_a_plan_counts_the_rows_that_a_gpu_takes_at_once() -> None:
    chosen = recipe.load("endprompt").replace({"rows.tokens": 1024})
    small = plan.SIZES["smollm2-135m"].decoder
    one = plan.line(chosen, small, plan.machine("h100"), window=8192, target=65536)
    settings = chosen.resolve(window=8192, target=65536, gpu=True)
    tokens = cost.tokens_at_once(
        small, plan.DEVICES["h100"].memory_bytes, **settings.memory(checkpointing=False)
    )
    held = cost.train_memory_bytes(
        small,
        row_tokens=tokens,
        accumulates=True,
        runtime=plan.GPU_RUNTIME,
        **settings.memory(checkpointing=False),
    )
    assert one.options[0][1].total == pytest.approx(held.total)


def test_a_row_that_no_number_of_devices_holds_is_said_to_be_so() -> None:
    one = plan.line(
        recipe.load("full"), LLAMA, plan.machine("rtx4090:8"), window=8192, target=2**20
    )
    assert one.devices_needed is None
    assert one.chosen is None


def test_a_step_is_raised_to_a_row_for_every_device() -> None:
    one = plan.line(recipe.load("full"), LLAMA, plan.machine("h100:16"), window=8192, target=131072)
    assert one.rows_per_step == 16
    assert one.notes == ("--set training.tokens_per_step=2097152: 16 devices share a step",)


def test_time_is_never_below_what_the_link_needs() -> None:
    chosen = recipe.load("endprompt")
    slow = plan.Machine(plan.Device("slow", 1e12, 1e15, 1e9), 8)
    one = plan.line(chosen, LLAMA, slow, window=8192, target=65536)
    resolved = chosen.resolve(window=8192, target=65536, gpu=True)
    computing = plan.train_seconds(resolved, LLAMA, slow)
    assert one.options[-1][2] > 2 * computing
    assert plan.machine("h100:16").link < plan.machine("h100:8").link


def test_the_papers_memory_is_predicted_within_a_tenth() -> None:
    found = {what: (figure, predicted) for what, figure, predicted in plan.paper()}
    for what in ("GB a device, endprompt", "GB a device, full"):
        figure, predicted = found[what]
        assert predicted == pytest.approx(figure, rel=0.1)
    assert len(found) == 5


def test_a_timed_cpu_is_as_fast_in_attention_as_it_was_timed() -> None:
    """Matmuls take no time on it, so that what is left is attention at 2,048 tokens."""
    small = plan.SIZES["smollm2-135m"].decoder
    where = plan.cpu("", memory_bytes=0, peak=1e30, attention=50e9, tokens=2048)
    row = recipe.load("short").replace({"rows.tokens": 2048, "training.tokens_per_step": 2048})
    resolved = row.replace({"training.tokens": 4096}).resolve(window=8192, target=16384, gpu=False)
    operations = 2 * 3 * flops.attention(small, 2048)
    assert plan.train_seconds(resolved, small, where) == pytest.approx(operations / 50e9)


def test_blocks_of_long_rows_leave_no_holes_and_shifted_attention_copies() -> None:
    small = plan.SIZES["smollm2-135m"].decoder

    def held(tokens: int, **given: Any) -> cost.Memory:
        return cost.train_memory_bytes(small, row_tokens=tokens, **given)

    assert held(2048).holes == pytest.approx(cost.HOLES * held(2048).activations)
    assert held(8192).holes == 0
    copied = held(8192, shifted=True).activations - held(8192).activations
    assert copied == 12 * 4 * 8192 * small.heads * small.head_size


def test_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown GPU 'h10' \(did you mean 'h100'\?\)"):
        plan.machine("h10:8")
    with pytest.raises(RecipeError, match="write h100:8"):
        plan.machine("h100:0")


def test_command_prints_every_method_and_writes_json_once(
    endprompt: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words = ("plan", "llama-3-8b", "--gpu", "a800:8", "--tokens", "500m", "--price", 2,
             "--methods", "endprompt,full,none", "--json", tmp_path / "plan.json")  # fmt: skip
    done = endprompt(*words)
    assert done.returncode == 0, done.stderr
    assert "36.52, predicted" in done.stdout
    found = json.loads((tmp_path / "plan.json").read_text())
    first, full, none = found["methods"]
    assert first["tokens"] == pytest.approx(5e8, rel=0.01)
    hours = first["options"][3]["hours"]
    assert first["options"][3]["money"] == pytest.approx(hours * 8 * 2)
    assert full["row_tokens"] == 65536
    assert none["flops"] == 0
    again = endprompt(*words)
    assert again.returncode == 1
    assert "give --force" in again.stderr


def test_command_refuses_a_target_inside_the_window(
    endprompt: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = endprompt("plan", "--to", "4k", "--gpu", "h100")
    assert done.returncode == 1
    assert done.stderr == "endprompt: --to 4096 is not above the window of 8192 tokens\n"


def test_a_plan_says_what_fills_gaps_and_what_it_takes() -> None:
    chosen = recipe.load("recall-anchors").replace({"rows.gaps": "filled"})
    h100 = plan.machine("h100")
    emptied = chosen.replace({"rows.gaps": "empty"})
    filled = plan.line(chosen, LLAMA, h100, window=8192, target=65536)
    empty = plan.line(emptied, LLAMA, h100, window=8192, target=65536)
    bank = 2 * 32 * 8 * 128 * 8192 * 2  # keys and values, layers, heads, their size, tokens, bf16
    taken = filled.options[0][1].gaps
    assert bank < taken < 1.2 * bank + 2 * 2 * (3 * 8 + 2 * 32) * 128 * 57344 + 2 * 8192 * 57344
    assert (
        filled.options[0][1].total
        > empty.options[0][1].total
        == pytest.approx(filled.options[0][1].total - taken)
    )
    (note,) = filled.notes
    assert note.startswith("gaps: up to 57,344 keys a row from a bank of 8,192 tokens, ")
    assert note.endswith(f" {taken / cost.GIB:.1f} GiB of each device")
    more = filled.operations - empty.operations
    pairs = 8192 * 57344 / 2
    assert more == 4 * 4 * 32 * 32 * 128 * pairs * (1_000_000_000 // 8192 // 64 * 64)
