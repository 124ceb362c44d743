"""The weighted loss against a plain float64 computation from logits."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from endprompt.data.rows import PREFIX, TERMINAL
from endprompt.recipe import Divergence
from endprompt.train import head_loss, loss

SIZES = {
    "vocab_size": 83, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def a_batch(length: int = 40, rows: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    weights = torch.rand(rows, length)
    weights[:, 30:35] = 0
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[-1, -3:] = 0
    segments = torch.full((rows, length), PREFIX, dtype=torch.uint8)
    segments[:, 28:] = TERMINAL
    positions = torch.arange(length).repeat(rows, 1)
    positions[:, 28:] += 500
    return {
        "input_ids": torch.randint(0, 83, (rows, length)),
        "position_ids": positions,
        "attention_mask": mask,
        "loss_weights": weights,
        "segments": segments,
    }


def reference(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """float64[B, T-1], loss of each token from the model's own logits."""
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"], use_cache=False,
    ).logits.double()  # fmt: skip
    logp = logits.log_softmax(-1)[:, :-1]
    return -logp.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]


def with_teacher(model: Any, batch: dict[str, torch.Tensor], teacher: loss.Teacher) -> loss.Losses:
    columns = loss.aligned(batch)
    return loss.aligned_loss(model, columns, loss.Labels.of(columns), teacher)


@pytest.mark.parametrize("weights", ["many", "few"])
@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_loss_and_gradient_equal_a_float64_reference(
    family: str, chunk: int, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_TOKENS", chunk)
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES) if family == "llama" else Gemma2Config(**SIZES)
    model = AutoModelForCausalLM.from_config(config).double()
    batch = a_batch()
    if weights == "few":
        batch["loss_weights"] = torch.where(batch["segments"] == TERMINAL, 0.25, 1.0)
    used = (batch["loss_weights"] * batch["attention_mask"])[:, 1:].double()
    expected = reference(model, batch)
    (expected * used).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    found = loss.weighted_loss(model, batch)
    found.weighted.backward()

    assert found.weighted.item() == pytest.approx((expected * used).sum().item(), rel=1e-5)
    assert found.weight.item() == pytest.approx(used.sum().item(), rel=1e-6)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    for segment in (PREFIX, TERMINAL):
        inside = (batch["segments"][:, 1:] == segment) & (used > 0)
        total, count = found.by_segment[segment].tolist()
        assert count == inside.sum().item()
        assert total == pytest.approx(expected[inside].sum().item(), rel=1e-5)


def test_a_sum_of_losses_keeps_its_digits_where_the_head_is_in_bf16() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(32, 83, bias=False, dtype=torch.bfloat16)
    hidden, labels = torch.randn(999, 32).bfloat16(), torch.randint(0, 83, (999,))
    logits = hidden.float() @ head.weight.float().T
    weights = torch.arange(999) % 4 / 4 + 0.25
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    total, plain = head_loss.weighted_sum(hidden, head, labels, weights)
    torch.testing.assert_close(total, (each * weights).sum(), rtol=3e-4, atol=0)
    torch.testing.assert_close(plain.sum(), each.sum(), rtol=3e-4, atol=0)


@pytest.mark.parametrize(
    ("family", "key"), [("granite", "logits_scaling"), ("cohere", "logit_scale")]
)
def test_families_that_scale_their_logits_get_the_loss_of_scaled_ones(
    family: str, key: str
) -> None:
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    config = CONFIG_MAPPING[family](**sizes, **{key: 0.25}, pad_token_id=0, bos_token_id=1,
                                    eos_token_id=2)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).double()
    batch = a_batch()
    used = (batch["loss_weights"] * batch["attention_mask"])[:, 1:].double()
    expected = (reference(model, batch) * used).sum().item()
    found = loss.weighted_loss(model, batch).weighted.item()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_prefix_tokens_are_held_to_what_the_base_says_and_terminals_to_the_text(
    family: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_TOKENS", chunk)
    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    more = {"logits_scaling": 4.0} if family == "granite" else {}
    config = CONFIG_MAPPING[family](**sizes, **more)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(AutoModelForCausalLM.from_config(config))
    model, base = models
    batch = a_batch()
    batch["position_ids"][:, 12:] += 300  # the prefix jumps too, and the base must not see it
    contiguous = batch | {"position_ids": torch.arange(40).repeat(2, 1)}

    def says(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        columns = ("input_ids", "position_ids", "attention_mask")
        made = model(**{name: batch[name] for name in columns}, use_cache=False).logits
        return made.double().log_softmax(-1)[:, :-1]

    said, told = says(model, batch), says(base, contiguous).detach()
    used = (batch["loss_weights"] * batch["attention_mask"])[:, 1:].double()
    prefix = batch["segments"][:, 1:] == PREFIX
    plain = reference(model, batch)
    apart = (told.exp() * (told - said)).sum(-1)
    expected = (torch.where(prefix, apart, plain) * used).sum()
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    found = with_teacher(model, batch, loss.Teacher(base))
    found.weighted.backward()

    assert found.weighted.item() == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in base.parameters())
    shown = plain[prefix & (used > 0)].sum().item()
    assert found.by_segment[PREFIX, 0].item() == pytest.approx(shown, rel=1e-5)


@pytest.mark.parametrize("divergence", get_args(Divergence))
@pytest.mark.parametrize("own", [False, True])
def test_a_view_with_jumps_is_held_to_one_without_in_either_direction(
    own: bool, divergence: Divergence
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    teacher = model if own else AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    batch = a_batch(rows=1)
    batch["position_ids"][:, 12:] += 300
    columns = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")}
    near = columns | {"position_ids": torch.arange(40)[None]}
    said = model(**columns).logits.double().log_softmax(-1)[:, :-1]
    told = teacher(**near).logits.double().log_softmax(-1)[:, :-1].detach()
    if divergence == "cosine":
        last, base = (
            each(**rows, output_hidden_states=True).hidden_states[-1].double()[:, :-1]
            for each, rows in ((model, columns), (teacher, near))
        )
        base = base.detach()
        cosine = (last * base).sum(-1) / (last.norm(dim=-1) * base.norm(dim=-1))
        apart = 10 * (1 - cosine)[..., None]
    else:
        apart = (
            told.exp() * (told - said) if divergence == "forward" else said.exp() * (said - told)
        )
    used = (batch["loss_weights"] * batch["attention_mask"])[:, 1:].double()
    prefix, plain = batch["segments"][:, 1:] == PREFIX, reference(model, batch)
    held = apart.sum(-1) + (plain if own else 0)
    expected = (torch.where(prefix, held, plain) * used).sum()
    expected.backward()
    gradient = model.model.layers[0].self_attn.q_proj.weight.grad.clone()
    model.zero_grad()

    teaching = loss.Teacher(None if own else teacher, divergence)
    found = with_teacher(model, batch, teaching)
    found.weighted.backward()

    assert found.weighted.item() == pytest.approx(expected.item(), rel=1e-5)
    weight = model.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-5)


def test_first_terminal_token_is_predicted_from_the_last_prefix_token() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    batch = a_batch(rows=1)
    batch["loss_weights"] = torch.zeros_like(batch["loss_weights"])
    batch["loss_weights"][0, 28] = 1
    found = loss.weighted_loss(model, batch)
    assert found.weighted.item() == pytest.approx(reference(model, batch)[0, 27].item(), rel=1e-5)


def test_columns_that_train_nothing_still_take_part_in_the_backward_pass() -> None:
    """A rank's cut of a row may hold no trained token, while the others wait for its gradients."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    batch = a_batch(rows=1)
    batch["loss_weights"] = torch.zeros_like(batch["loss_weights"])
    found = loss.weighted_loss(model, batch)
    found.weighted.backward()
    assert (found.weighted.item(), found.weight.item()) == (0, 0)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_head_makes_logits_again_afterwards() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES))
    batch = a_batch()
    before = reference(model, batch)
    loss.weighted_loss(model, batch)
    torch.testing.assert_close(reference(model, batch), before)
    assert model.config.final_logit_softcapping == 30.0


def test_a_mask_of_documents_keeps_packed_ones_apart() -> None:
    """Loss of two packed documents equals that of each by itself."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    batch = a_batch(rows=1)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    batch["loss_weights"] = torch.ones_like(batch["loss_weights"])
    batch["loss_weights"][0, 20] = 0
    place = torch.arange(40) >= 20
    same = place[:, None] == place[None, :]
    batch["visible"] = (same & torch.ones(40, 40, dtype=torch.bool).tril())[None, None]
    packed = loss.weighted_loss(model, batch).weighted.item()
    del batch["visible"]
    halves = [
        {key: value[:, part] for key, value in batch.items()}
        for part in (slice(0, 20), slice(20, 40))
    ]
    alone = sum(loss.weighted_loss(model, half).weighted.item() for half in halves)
    assert packed == pytest.approx(alone, rel=1e-5)


def test_tf32_is_for_the_products_of_the_head_alone() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision

    def fail() -> None:
        with head_loss.tf32_matmuls():
            assert matmul.fp32_precision == "tf32"
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert matmul.fp32_precision == before


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("length", [40, 43])
def test_a_token_weighs_by_how_much_likelier_its_row_makes_it_than_a_short_context(
    family: str, length: int
) -> None:
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    more = {"logits_scaling": 0.02} if family == "granite" else {}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**sizes, **more)).double()
    for parameter in model.parameters():  # sharp enough for gains above and below 1
        parameter.data *= 4
    batch = a_batch(length)
    used = (batch["loss_weights"] * batch["attention_mask"])[:, 1:].double()
    whole, context = reference(model, batch), length // 4

    def short(row: int, token: int) -> torch.Tensor:
        """Loss of one token from the piece of the text that a loop over strides gives it."""
        first = (token - context - 1) // context * context + 1
        tokens = batch["input_ids"][row, first : token + 1][None]
        return -model(tokens).logits[0, -2].double().log_softmax(-1)[tokens[0, -1]].detach()

    weights = torch.ones_like(whole)
    for row in range(2):
        for token in range(context + 1, length):
            apart = short(row, token) - whole[row, token - 1].detach()
            weights[row, token - 1] = apart.exp().clamp(max=5)
    assert weights.min() < 0.8
    assert (weights == 5).any() or family == "gemma2"  # whose capped logits gain less
    expected = (whole * weights * used).sum()
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    columns = loss.aligned(batch)
    found = loss.aligned_loss(model, columns, loss.Labels.of(columns), gain=True)
    found.weighted.backward()

    assert found.weighted.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.weight.item() == pytest.approx(used.sum().item(), rel=1e-6)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        close = 1e-4 * gradient.abs().max().item()  # losses are float32
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=close)
    plain = whole[(batch["segments"][:, 1:] == PREFIX) & (used > 0)].sum().item()
    assert found.by_segment[PREFIX, 0].item() == pytest.approx(plain, rel=1e-5)
