import pytest
import torch
from einops import rearrange
from torch import Tensor

from conftest import TINY, randomize
from vitrail.model import kernels
from vitrail.model.config import DropRates
from vitrail.model.kernels import attend
from vitrail.model.vit import MultiHeadAttention

B, N, K, d, D = 2, 5, TINY.heads, TINY.head_width, TINY.width


@pytest.fixture
def attention() -> MultiHeadAttention:
    return randomize(MultiHeadAttention(TINY))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, N, D)


def written_out(attention: MultiHeadAttention, x: Tensor, divisor: float) -> Tensor:
    """Give what `attention` should give for x, B N D, one head after the other."""
    qkv, heads = attention.qkv(x), []
    inner = qkv.shape[-1] // 3
    size = inner // attention.heads
    for head in range(attention.heads):
        q, k, v = (qkv[..., i * inner + head * size :][..., :size] for i in range(3))
        weights = torch.softmax(torch.einsum("bnd,bmd->bnm", q, k) / divisor, dim=-1)
        heads.append(weights @ v)
    return attention.proj(torch.cat(heads, dim=-1))


def test_qkv_is_split_into_thirds_and_each_third_into_heads(
    attention: MultiHeadAttention, x: Tensor
) -> None:
    qkv = attention.qkv(x)

    for third, split in enumerate(attention.split(x)):
        assert split.shape == (B, K, N, d)
        for head in range(K):
            start = third * D + head * d
            assert torch.equal(split[:, head], qkv[..., start : start + d])


def test_scores_are_divided_by_the_root_of_the_head_width(
    attention: MultiHeadAttention, x: Tensor
) -> None:
    torch.testing.assert_close(attention(x), written_out(attention, x, d**0.5))
    assert not torch.allclose(attention(x), written_out(attention, x, D**0.5), atol=1e-2)


def test_a_head_may_be_wider_than_its_share(x: Tensor) -> None:
    attention = randomize(MultiHeadAttention(TINY.replace(head_width=7)))

    assert attention.qkv.weight.shape == (3 * 6 * 7, 24)
    torch.testing.assert_close(attention(x), written_out(attention, x, 7**0.5))


def test_no_key_bias_is_a_fused_bias_with_zeros_for_the_keys(x: Tensor) -> None:
    attention = randomize(MultiHeadAttention(TINY.replace(qkv_bias="no_key")))
    fused = MultiHeadAttention(TINY)
    assert attention.q_bias is not None and attention.v_bias is not None

    weights = attention.state_dict()
    thirds = [weights.pop("q_bias"), torch.zeros(D), weights.pop("v_bias")]
    fused.load_state_dict({**weights, "qkv.bias": torch.cat(thirds)})

    torch.testing.assert_close(attention(x), fused(x))


def test_without_biases_there_are_none() -> None:
    attention = MultiHeadAttention(TINY.replace(qkv_bias="none", proj_bias=False))

    assert [name for name, _ in attention.named_parameters()] == ["qkv.weight", "proj.weight"]


def test_qk_norm_normalises_each_head_of_q_and_k_by_itself(x: Tensor) -> None:
    config = TINY.replace(qk_norm=True, norm_eps=1e-3)
    attention = randomize(MultiHeadAttention(config))
    thirds = attention.qkv(x).chunk(3, dim=-1)
    heads = [rearrange(third, "b n (k d) -> b k n d", k=K) for third in thirds]

    q, k, v = attention.split(x)

    for split, head, norm in ((q, heads[0], attention.q_norm), (k, heads[1], attention.k_norm)):
        spread = (head.var(dim=-1, keepdim=True, correction=0) + 1e-3).sqrt()
        normal = (head - head.mean(dim=-1, keepdim=True)) / spread
        torch.testing.assert_close(split, normal * norm.weight + norm.bias)
    assert torch.equal(v, heads[2])


def test_a_token_that_may_look_only_at_itself_gets_its_own_value(
    attention: MultiHeadAttention, x: Tensor
) -> None:
    values = attention.qkv(x)[..., 2 * D :]

    masked = attention(x, torch.eye(N, dtype=torch.bool))

    torch.testing.assert_close(masked, attention.proj(values))


@pytest.mark.parametrize(
    "shape",
    [
        (N, N),
        (B, 1, 1, N),
        (B, 1, N, 1),
        (B, 1, N, N),
        (K, 1, N),
        (B, K, N, N),
        (N,),
    ],
)
def test_a_mask_broadcasts_to_batch_heads_tokens_tokens(shape: tuple[int, ...]) -> None:
    q, k, v = torch.randn(3, B, K, N, d)
    mask = torch.rand(shape) < 0.6

    scores = torch.einsum("bknd,bkmd->bknm", q, k) / d**0.5
    allowed = mask.expand(B, K, N, N)
    weights = scores.exp() * allowed
    by_hand = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-9) @ v

    torch.testing.assert_close(attend(q, k, v, mask), by_hand)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_tokens_have_no_influence(
    attention: MultiHeadAttention, x: Tensor, dtype: torch.dtype
) -> None:
    allowed = torch.tensor([True, True, False, True, False])
    other = torch.where(allowed[:, None], x, 100 * torch.randn_like(x))
    attention = attention.to(dtype)

    one, two = (attention(tokens.to(dtype), allowed.expand(N, N)) for tokens in (x, other))

    assert torch.equal(one[:, allowed], two[:, allowed])
    assert not torch.equal(attention(x.to(dtype)), one)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_without_true_gives_zeros_and_no_nan(dtype: torch.dtype, dropout: float) -> None:
    q, k, v = (torch.randn(B, K, N, d, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.rand(B, 1, N, N) < 0.5
    mask[0, 0, 2] = mask[1] = False  # a row, and a whole image

    out = attend(q, k, v, mask, dropout)
    out.float().square().sum().backward()

    assert (out[0, :, 2] == 0).all() and (out[1] == 0).all()
    assert out.isfinite().all() and (out[0] != 0).any()
    for tensor in (q, k, v):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
        assert (tensor.grad[1] == 0).all()


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_without_true_leaves_every_gradient_finite(
    x: Tensor, dtype: torch.dtype, rate: float
) -> None:
    attention = randomize(MultiHeadAttention(TINY, DropRates(attention=rate))).to(dtype)
    x = x.to(dtype).requires_grad_()
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[3] = False

    out = attention(x, mask)
    out.float().square().sum().backward()

    torch.testing.assert_close(out[:, 3], attention.proj.bias.expand(B, D))
    for tensor in (x, *attention.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_both_kernels_give_the_same_numbers(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, B, K, N, d)
    mask = torch.rand(B, 1, N, N) < 0.7 if masked else None

    exact = attend(q, k, v, mask)
    written = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    monkeypatch.setattr(kernels, "LONGEST_WRITTEN_OUT", 0)
    fused = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)

    # bfloat16 has 8 bits: inputs, weights and output of order 1 are each off by up to 2^-9.
    for rounded in (written, fused):
        torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.03)
    assert not torch.equal(written, fused)  # or one kernel was compared with itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_in_a_mask_are_added_to_the_scores(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, B, K, N, d)
    added = torch.randn(B, 1, 1, N)

    scores = torch.einsum("bknd,bkmd->bknm", q, k) / d**0.5 + added
    found = attend(q.to(dtype), k.to(dtype), v.to(dtype), added.to(dtype))

    # bfloat16 has 8 bits: inputs, weights and output of order 1 are each off by up to 2^-9.
    atol = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.float(), scores.softmax(dim=-1) @ v, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_dropout_drops_weights_and_scales_up_the_rest(dtype: torch.dtype) -> None:
    q, k = torch.zeros(2, 50, K, N, d, dtype=dtype)
    v = torch.eye(N, dtype=dtype).expand(50, K, N, N)  # the output is the weights themselves

    weights = attend(q, k, v, dropout=0.25).float()

    kept = torch.tensor(1 / N / 0.75).to(dtype).float()
    dropped = weights == 0
    torch.testing.assert_close(weights[~dropped], kept.expand_as(weights[~dropped]))
    assert abs(dropped.float().mean() - 0.25) < 0.025  # 5 deviations of 7,500 draws
