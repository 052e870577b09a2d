import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import TINY, randomize
from vitrail.errors import ConfigError
from vitrail.model.vit import PatchEmbedding, ViT, patches


def test_an_image_of_224_gives_196_patches_of_768_numbers() -> None:
    assert patches(torch.zeros(8, 3, 224, 224), 16).shape == (8, 196, 768)


def test_patches_are_read_row_by_row_and_within_a_patch_channel_last(images: Tensor) -> None:
    by_hand = torch.empty(2, 35, 8 * 8 * 3)
    for h in range(5):
        for w in range(7):
            for s1 in range(8):
                for s2 in range(8):
                    pixel = images[:, :, 8 * h + s1, 8 * w + s2]  # B C
                    start = 3 * (8 * s1 + s2)
                    by_hand[:, 7 * h + w, start : start + 3] = pixel

    assert torch.equal(patches(images, 8), by_hand)


@pytest.mark.parametrize("patch_bias", [True, False])
@pytest.mark.parametrize(
    # The same sums in another order: what float32 and float64 round.
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12)],
)
def test_strided_convolution_is_rearrange_and_a_linear_layer(
    images: Tensor, patch_bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    embed = randomize(PatchEmbedding(TINY.replace(patch_bias=patch_bias))).to(dtype)
    images = images.to(dtype)

    as_matrix = F.linear(patches(images, 8), embed.matrix, embed.proj.bias)

    assert (embed.proj.bias is not None) == patch_bias
    torch.testing.assert_close(embed(images), as_matrix, rtol=0, atol=tolerance)


def test_patch_norms_stand_before_and_after_the_projection(images: Tensor) -> None:
    embed = randomize(PatchEmbedding(TINY.replace(patch_norms=True)))
    assert embed.norm_patch is not None and embed.norm is not None

    before = embed.norm_patch(patches(images, 8))
    by_hand = embed.norm(F.linear(before, embed.matrix, embed.proj.bias))

    torch.testing.assert_close(embed(images), by_hand)
    assert embed.norm_patch.normalized_shape == (8 * 8 * 3,)


def test_patches_of_more_or_fewer_channels_are_cut_too() -> None:
    embed = PatchEmbedding(TINY.replace(channels=5))

    assert embed(torch.randn(1, 5, 16, 8)).shape == (1, 2, 24)
    assert embed.matrix.shape == (24, 8 * 8 * 5)


def test_a_wrong_number_of_channels_is_told_with_the_right_one() -> None:
    with pytest.raises(ConfigError) as raised:
        ViT(TINY)(torch.zeros(2, 1, 40, 56))

    assert "the images have 1 channels, this model reads 3" in str(raised.value)


def test_an_image_without_batch_axis_is_told_the_four_axes() -> None:
    with pytest.raises(ConfigError, match=r"\(3, 40, 56\).*\(B, 3, H, W\)"):
        ViT(TINY)(torch.zeros(3, 40, 56))


def test_an_image_that_the_patch_does_not_divide_is_told_the_nearest_sizes() -> None:
    with pytest.raises(ConfigError) as raised:
        ViT(TINY)(torch.zeros(2, 3, 40, 60))

    for words in ("40 x 60", "patch size 8", "does not divide 60", "56 and 64"):
        assert words in str(raised.value)
