"""Shifted sparse attention against a dense reference, inside Transformers and alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from endprompt.errors import RecipeError
from endprompt.train import attention
from tiny_families import tiny_model


def allowed(tokens: int, groups: int, shift: bool) -> Tensor:
    """bool[T, T]: which keys a query sees, written from the paper's words alone."""
    size = tokens // groups
    group = [(t + size // 2 * shift) // size for t in range(tokens)]
    return torch.tensor([[group[q] == group[k] and k <= q for k in range(tokens)]
                         for q in range(tokens)])  # fmt: skip


def dense(query: Tensor, key: Tensor, value: Tensor, groups: int) -> Tensor:
    """Softmax over all keys, the unseen ones masked, head by head."""
    heads, tokens, size = query.shape[1:]
    shared = heads // key.shape[1]
    out = torch.empty_like(query)
    for h in range(heads):
        scores = query[:, h] @ key[:, h // shared].mT / math.sqrt(size)
        mask = allowed(tokens, groups, shift=h >= heads // 2)
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        out[:, h] = weights @ value[:, h // shared]
    return out


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1), (9, 3)])
def test_equals_dense_masked_attention(heads: int, kv_heads: int, groups: int) -> None:
    torch.manual_seed(heads)
    query = torch.randn(2, heads, 48, 8, dtype=torch.float64, requires_grad=True)
    key = torch.randn(2, kv_heads, 48, 8, dtype=torch.float64, requires_grad=True)
    value = torch.randn(2, kv_heads, 48, 8, dtype=torch.float64, requires_grad=True)
    ours = attention.shifted(query, key, value, groups=groups)
    reference = dense(query, key, value, groups)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weights).sum(), (query, key, value)),
        torch.autograd.grad((reference * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_no_head_sees_the_future() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(1, 4, 32, 8) for _ in range(3)]
    before = attention.shifted(*parts)
    changed = [part.clone() for part in parts]
    for part in changed:
        part[:, :, 20:] += 1
    after = attention.shifted(*changed)
    assert torch.equal(before[:, :, :20], after[:, :, :20])
    assert not torch.equal(before[:, :, 20:], after[:, :, 20:])


@pytest.mark.parametrize("tokens", [1, 30, 36, 66])
def test_length_that_does_not_divide_is_refused(tokens: int) -> None:
    parts = [torch.randn(1, 2, tokens, 4) for _ in range(3)]
    with pytest.raises(RecipeError, match=f"in 4 groups that halve: {tokens} tokens do not"):
        attention.shifted(*parts, groups=4)


def test_the_remedy_it_names_works() -> None:
    with pytest.raises(RecipeError, match=r"as 64$"):
        attention.check_length(66, 4)
    attention.check_length(64, 4)


def test_model_uses_it_in_training_and_full_attention_in_evaluation() -> None:
    shifted = tiny_model(attention=attention.register(4))
    full = tiny_model(attention="sdpa")
    full.load_state_dict(shifted.state_dict())
    ids = torch.randint(0, 97, (2, 64))
    ones = torch.ones_like(ids)
    call = {"input_ids": ids, "attention_mask": ones, "use_cache": False}
    trained, plain = shifted(**call).logits, full(**call).logits
    assert (trained - plain).abs().max() > 1e-3
    # the first half group is seen in full by every head, so nothing differs there
    torch.testing.assert_close(trained[:, :8], plain[:, :8], rtol=1e-4, atol=1e-5)
    shifted.eval()
    torch.testing.assert_close(shifted(**call).logits, full.eval()(**call).logits)


def test_two_layers_carry_information_across_groups() -> None:
    """The shift is what joins the groups: without it a row would be four separate ones."""
    model = tiny_model(attention=attention.register(4))
    ids = torch.randint(3, 97, (1, 64))
    other = ids.clone()
    other[0, 12] = (ids[0, 12] + 1) % 97
    ones = torch.ones_like(ids)
    with torch.no_grad():
        one = model(input_ids=ids, attention_mask=ones, use_cache=False).logits
        two = model(input_ids=other, attention_mask=ones, use_cache=False).logits
    moved = (one - two).abs().amax(-1)[0] > 1e-7
    assert not moved[:12].any()
    assert moved[16:24].all(), "the shifted heads carry token 12 into the second group"


def test_padded_rows_are_refused_in_training() -> None:
    model = tiny_model(attention=attention.register(4))
    ids = torch.ones(1, 64, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[0, 60:] = 0
    with pytest.raises(RecipeError, match="without padding"):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
