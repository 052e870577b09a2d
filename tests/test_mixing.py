"""Mixup and cutmix: partners of the block, shares of the papers' distributions, labels that fit."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest

from vitrail.data.config import Augment
from vitrail.data.mixing import Mixing, draw_mixing, mixed, mixed_labels

N = 8000
SIZE = (30, 50)
BOTH = Augment(mixup=0.8, cutmix=1.0)


def drawn(how: Augment, blocks: np.ndarray | None = None, epoch: int = 0) -> Mixing:
    blocks = np.arange(N) // 8 if blocks is None else blocks
    return draw_mixing(0, epoch, np.arange(len(blocks)) + 11, blocks, how, SIZE)


def areas(draws: Mixing) -> np.ndarray:
    top, left, bottom, right = draws.box.numpy().T
    return (bottom - top) * (right - left)


def test_partners_are_others_of_the_same_block_and_each_is_taken_once() -> None:
    blocks = np.arange(N) // 8

    partner = drawn(BOTH).partner.numpy()

    assert np.array_equal(blocks[partner], blocks)
    assert (partner != np.arange(N)).all()
    assert np.array_equal(np.sort(partner), np.arange(N))
    shifts = np.bincount((partner - np.arange(N))[::8], minlength=8)  # of the first of each block
    assert shifts[0] == 0 and np.abs(shifts[1:] - 1000 / 7).max() < 5 * (1000 / 7) ** 0.5


def test_blocks_with_missing_rows_mix_what_is_left_and_one_alone_stays() -> None:
    blocks = np.array([3, 3, 3, 4, 6, 6, 9])
    images = torch.randint(256, (7, 3, *SIZE)).float()

    draws = drawn(BOTH, blocks)
    changed = mixed(images, draws)
    targets = mixed_labels(torch.arange(7), draws, 7)

    partner = draws.partner.numpy()
    assert np.array_equal(blocks[partner], blocks)
    assert [i for i in range(7) if partner[i] == i] == [3, 6]
    for alone in (3, 6):
        assert torch.equal(changed[alone], images[alone])
        assert targets[alone].tolist() == [float(i == alone) for i in range(7)]


def test_a_partner_depends_on_seed_epoch_and_block_alone() -> None:
    blocks = np.arange(160) // 8
    later = drawn(BOTH, blocks[80:])

    assert torch.equal(drawn(BOTH, blocks).partner[80:] - 80, later.partner)
    assert not torch.equal(drawn(BOTH, blocks, epoch=1).partner, drawn(BOTH, blocks).partner)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_mixup_s_share_is_drawn_from_its_beta_distribution(alpha: float) -> None:
    draws = drawn(Augment(mixup=alpha))

    assert kstest(draws.share.double().numpy(), beta(alpha, alpha).cdf).pvalue > 1e-4
    assert torch.equal(draws.share, draws.weight)
    assert not areas(draws).any()


def test_cutmix_s_share_is_what_its_box_leaves() -> None:
    draws = drawn(Augment(cutmix=1.0))

    left = 1 - areas(draws) / (SIZE[0] * SIZE[1])
    np.testing.assert_allclose(draws.share.numpy(), left, atol=1e-6)
    assert (draws.weight == 1).all()
    box = draws.box.numpy()
    assert box.min() == 0 and (box[:, 2].max(), box[:, 3].max()) == SIZE
    # Clipped boxes are smaller: the mean area of a box anywhere, by the paper's rule written out.
    generator = np.random.default_rng(0)
    kept, down, right = generator.random((3, 100_000))
    tall, wide = (np.floor(s * np.sqrt(1 - kept)) // 2 for s in SIZE)
    y, x = np.floor(down * SIZE[0]), np.floor(right * SIZE[1])
    wanted = (np.minimum(y + tall, SIZE[0]) - np.maximum(y - tall, 0)) * (
        np.minimum(x + wide, SIZE[1]) - np.maximum(x - wide, 0)
    )
    assert areas(draws).mean() == pytest.approx(wanted.mean(), rel=0.05)


@pytest.mark.parametrize(("share", "cut"), [(1.0, 0.5), (0.6, 0.25)])
def test_shares_of_mixed_and_of_cut_images_are_those_asked_for(share: float, cut: float) -> None:
    draws = drawn(Augment(mixup=0.8, cutmix=1.0, mix_share=share, cutmix_share=cut))

    cuts, blends = (areas(draws) > 0).sum(), int((draws.weight < 1).sum())
    # 0.3 % of boxes are smaller than two pixels, which leaves none.
    for count, chance in ((cuts, share * cut), (blends, share * (1 - cut))):
        assert abs(count - N * chance) < 5 * (N * chance * (1 - chance)) ** 0.5 + 0.003 * N


def test_pixels_and_labels_are_mixed_by_the_same_share() -> None:
    classes = 16
    images = torch.arange(classes).view(-1, 1, 1, 1).expand(-1, 3, *SIZE).float() * 10
    draws = drawn(BOTH, np.arange(classes) // 8)

    changed = mixed(images, draws)
    targets = mixed_labels(torch.arange(classes), draws, classes)

    torch.testing.assert_close(targets.sum(dim=1), torch.ones(classes))
    assert targets.min() >= 0 and targets.dtype == torch.float32
    # A plane of one value each: the mean is the label's mean, mixup or cutmix.
    expected = targets @ (torch.arange(classes).float() * 10)
    torch.testing.assert_close(changed.mean(dim=(1, 2, 3)), expected, atol=1e-3, rtol=1e-5)


def test_cutmix_pastes_the_partner_s_own_pixels() -> None:
    images = torch.randint(256, (4, 3, *SIZE)).float()
    draws = drawn(Augment(cutmix=1.0), np.array([0, 0, 0, 0]))

    changed = mixed(images, draws)

    for row, (top, left, bottom, right) in enumerate(draws.box.tolist()):
        wanted = images[row].clone()
        wanted[:, top:bottom, left:right] = images[draws.partner[row], :, top:bottom, left:right]
        assert torch.equal(changed[row], wanted)
