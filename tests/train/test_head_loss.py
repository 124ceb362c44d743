"""The weighted sum of losses against torch's fused cross-entropy and autograd's gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from endprompt.train import head_loss


def drawn(tokens: int = 70, *, bias: bool = True) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A head, hidden states, labels and weights."""
    torch.manual_seed(0)
    head = nn.Linear(16, 40, bias=bias)
    hidden = torch.randn(tokens, 16, requires_grad=True)
    return head, hidden, torch.randint(40, (tokens,)), torch.rand(tokens)


def gradients(total: Tensor, head: nn.Linear, hidden: Tensor) -> list[Tensor]:
    """Those of the hidden states, the weight and the bias; they are set back."""
    (2.5 * total).backward()
    found = [p.grad for p in (hidden, *head.parameters()) if p.grad is not None]
    hidden.grad = None
    head.zero_grad()
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [32, 512])
def test_it_is_the_fused_cross_entropy_of_torch(monkeypatch, chunk: int, bias: bool) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_TOKENS", chunk)
    head, hidden, labels, weights = drawn(bias=bias)
    losses = F.linear_cross_entropy(
        hidden, head.weight, labels, linear_bias=head.bias, reduction="none"
    )
    expected = gradients((losses * weights).sum(), head, hidden)
    total, plain = head_loss.weighted_sum(hidden, head, labels, weights)
    torch.testing.assert_close(plain, losses)
    torch.testing.assert_close(total, (losses * weights).sum())
    torch.testing.assert_close(gradients(total, head, hidden), expected)
    assert not plain.requires_grad


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_divergence_from_a_teacher_has_the_gradients_of_autograd(
    cap: float | None, text: bool, reverse: bool
) -> None:
    head, hidden, labels, weights = drawn()
    known, teacher = torch.randn(70, 16), nn.Linear(16, 40)

    def logits(states: Tensor, of: nn.Linear) -> Tensor:
        made = of(states)
        return made if cap is None else cap * torch.tanh(made / cap)

    said = logits(hidden, head).log_softmax(-1)
    told = logits(known, teacher).log_softmax(-1).detach()
    pair = (told, said) if reverse else (said, told)
    losses = F.kl_div(*pair, reduction="none", log_target=True).sum(-1)
    plain = F.nll_loss(said, labels, reduction="none")
    losses = losses + plain if text else losses
    expected = gradients((losses * weights).sum(), head, hidden)
    held = head_loss.Held(known, teacher, reverse=reverse, text=text)
    total, own = head_loss.weighted_sum(hidden, head, labels, weights, cap=cap, held=held)
    torch.testing.assert_close(own, plain)
    torch.testing.assert_close(total, (losses * weights).sum())
    torch.testing.assert_close(gradients(total, head, hidden), expected)
    assert all(p.grad is None for p in teacher.parameters())


def test_under_autocast_on_a_cpu_its_matmuls_are_in_bfloat16() -> None:
    head, hidden, labels, weights = drawn(200)
    exact, _ = head_loss.weighted_sum(hidden, head, labels, weights)
    expected = gradients(exact, head, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        total, plain = head_loss.weighted_sum(hidden, head, labels, weights)
    assert total.dtype == plain.dtype == torch.float32
    assert total.item() != exact.item()
    assert total.item() == pytest.approx(exact.item(), rel=1e-3)
    for rounded, full in zip(gradients(total, head, hidden), expected, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - full).norm() < 0.01 * full.norm()


def test_a_frozen_head_gets_no_gradient_and_no_tokens_none() -> None:
    head, hidden, labels, weights = drawn()
    head.requires_grad_(False)
    total, _ = head_loss.weighted_sum(hidden, head, labels, weights)
    assert len(gradients(total, head, hidden)) == 1
    head.requires_grad_(True)
    total, plain = head_loss.weighted_sum(hidden[:0], head, labels[:0], weights[:0])
    assert len(plain) == total.item() == 0
    assert [float(g.abs().sum()) for g in gradients(total, head, hidden)] == [0, 0, 0]
