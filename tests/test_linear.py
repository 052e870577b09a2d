"""oneDNN's products in training are those of `F.linear`, and are taken where they gain alone."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import TINY, randomize
from vitrail.model import kernels
from vitrail.model.kernels import linear
from vitrail.model.vit import ViT

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
Parts = tuple[Tensor, Tensor, Tensor | None]


@pytest.fixture(autouse=True)
def _on_any_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernels, "SMALLEST_ONEDNN", 2 * 5 * 7 * 11)
    monkeypatch.setattr(kernels, "_gains_by_onednn", lambda: True)
    yield


def parts(*shape: int, bias: bool = True) -> Parts:
    x, weight = torch.randn(*shape, 7), torch.randn(11, 7)
    return x, weight, torch.randn(11) if bias else None


def is_onednn(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_OneDNNLinearBackward"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(10,), (2, 5), (2, 3, 5), (1, 10)])
@pytest.mark.parametrize("learned", ["x", "weight", "bias", "x weight bias"])
def test_outputs_and_gradients_are_those_of_f_linear(
    shape: tuple[int, ...], bias: bool, learned: str
) -> None:
    x, weight, b = parts(*shape, bias=bias)
    named = {"x": x, "weight": weight} | ({} if b is None else {"bias": b})
    wanted_by = [named[name].requires_grad_() for name in learned.split() if name in named]
    if not {"x", "weight"} & set(learned.split()):
        return  # of a bias alone there is nothing to gain

    found, wanted = linear(x, weight, b), F.linear(x, weight, b)
    gradient = torch.randn(wanted.shape).transpose(0, -1).contiguous().transpose(0, -1)

    assert is_onednn(found)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, wanted_by, gradient),
        torch.autograd.grad(wanted, wanted_by, gradient),
    )


def test_an_input_that_lies_otherwise_in_memory_is_read_right() -> None:
    x, weight, bias = parts(2, 5)
    other = x.transpose(0, 1).contiguous().transpose(0, 1)
    weight.requires_grad_()

    assert not other.is_contiguous()
    torch.testing.assert_close(linear(other, weight, bias), F.linear(x, weight, bias))


def test_there_is_a_second_derivative() -> None:
    x, weight, bias = parts(2, 5)
    x.requires_grad_()

    def second(of: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(of.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)[0]

    found = linear(x, weight, bias)
    assert is_onednn(found)
    wanted = second(F.linear(x, weight, bias))
    torch.testing.assert_close(second(found), wanted, rtol=1e-5, atol=1e-5)


def test_torch_s_own_transforms_work() -> None:
    x, weight, bias = parts(2, 5)

    found = torch.func.grad(lambda w: linear(x, w, bias).pow(2).sum())(weight)

    wanted = torch.func.grad(lambda w: F.linear(x, w, bias).pow(2).sum())(weight)
    assert torch.equal(found, wanted)


def test_what_is_small_or_asks_for_no_gradient_or_another_precision_is_torch_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight, bias = parts(2, 5)
    assert not is_onednn(linear(x, weight, bias))
    weight.requires_grad_()
    assert is_onednn(linear(x, weight, bias))

    assert not is_onednn(linear(x[:1], weight, bias))
    assert not is_onednn(linear(x.double(), weight.double(), None))
    with torch.no_grad():
        assert not is_onednn(linear(x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    monkeypatch.undo()
    assert not is_onednn(linear(x, weight, bias))  # small, as it is


def test_operators_that_changed_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*_: object) -> Tensor:
        raise RuntimeError("another schema")

    monkeypatch.undo()
    monkeypatch.setattr(kernels, "_product", changed)
    kernels._gains_by_onednn.cache_clear()
    try:
        assert not kernels._gains_by_onednn()
    finally:
        kernels._gains_by_onednn.cache_clear()


def test_a_model_learns_alike(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        F.cross_entropy(model(images), torch.tensor([1, 2])).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    model = randomize(ViT(TINY))
    used: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, _, y: used.append(m) if is_onednn(y) else None)
    found = gradients()
    assert len(used) == 4 * TINY.depth  # all but the head

    monkeypatch.setattr(kernels, "_gains_by_onednn", lambda: False)
    torch.testing.assert_close(found, gradients(), rtol=1e-4, atol=1e-5)
    assert len(used) == 4 * TINY.depth
