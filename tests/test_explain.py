"""`vitrail.explain`: what it gives, what it costs, what it refuses, and whether it is faithful."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vitrail
from conftest import TINY, randomize
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, DataError, NonFiniteError
from vitrail.explaining.attention import Rollout, Rows, watching
from vitrail.explaining.explain import explain
from vitrail.explaining.faithfulness import compared, faithfulness, prefixes
from vitrail.explaining.hiding import answers, filling
from vitrail.explaining.inside import (
    attention_distance,
    patch_filters,
    position_similarity,
    token_norms,
)
from vitrail.explaining.occlusion import occlusion, windows
from vitrail.explaining.relevance import relevance
from vitrail.explaining.rollout import rollouts
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

GRID = (5, 7)
PHOTO = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
SIGLIP = TINY.replace(class_token=False, prefix_positions=0, pooling="map")


def bundle_of(config: vitrail.ViTConfig = TINY) -> Bundle:
    labels = tuple("abcdefghi"[: config.classes])
    model = randomize(ViT(config)).eval()
    return Bundle(model=model, preprocess=Preprocess(size=config.image_size), labels=labels)


@pytest.fixture
def bundle() -> Bundle:
    return bundle_of(TINY.replace(registers=3))


def seen_by(bundle: Bundle) -> Tensor:
    pixels = bundle.preprocess.pixels(PHOTO)
    return bundle.preprocess.normalize(torch.from_numpy(pixels)[None])


@torch.no_grad()
def test_attention_is_the_layers_own(bundle: Bundle) -> None:
    queries: list[Any] = ["class", "register-1", "patches", (4, 6)]
    rows = Rows([0, 5], [[0], [2], list(range(4, 39)), [38]])
    with watching(bundle.model, [0, 1], rows):
        logits = bundle.model(seen_by(bundle))[0]

    found = explain(bundle, PHOTO, "attention", "c", [0, -1], [0, -1], queries)

    wanted = torch.stack([rows.maps[layer][0] for layer in (0, 1)])
    assert found.maps.shape == (2, 2, 4, *GRID) and found.prefix.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(found.maps, wanted[..., 4:].unflatten(-1, GRID), rtol=1e-5)
    np.testing.assert_allclose(found.prefix, wanted[..., :4], rtol=1e-5)
    np.testing.assert_allclose(found.maps.sum((-1, -2)) + found.prefix.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.probabilities, logits.softmax(0), rtol=1e-5)
    assert (found.layers, found.heads, found.queries) == ((0, 1), (0, 5), tuple(queries))
    assert (found.target, found.label, found.faithfulness) == (2, "c", None)
    np.testing.assert_allclose(found.map, found.maps.mean((0, 1, 2)), rtol=1e-5)


def test_layers_heads_and_queries_stand_in_the_order_asked_for(bundle: Bundle) -> None:
    forward = explain(bundle, PHOTO, "attention", None, [0, 1], [2, 5], ["class", (0, 1)])

    backward = explain(bundle, PHOTO, "attention", None, [-1, 0, 1], [5, 2, 5], [(0, 1), "class"])

    assert (backward.layers, backward.heads) == ((1, 0), (5, 2))
    np.testing.assert_array_equal(backward.maps, forward.maps[::-1, ::-1, ::-1])
    # A flow through layers has one order.
    there, back = (explain(bundle, PHOTO, "rollout", layers=layers) for layers in ([0, 1], [1, 0]))
    np.testing.assert_array_equal(there.maps, back.maps)


@pytest.mark.parametrize("method", ["attention", "rollout", "relevance", "occlusion"])
def test_a_model_with_broken_weights_is_not_explained(bundle: Bundle, method: Any) -> None:
    torch.nn.init.constant_(bundle.model.patch_embed.proj.weight, torch.nan)

    with pytest.raises(NonFiniteError, match="weights are broken"):
        explain(bundle, PHOTO, method)


@torch.no_grad()
def test_rollout_is_what_the_head_reads_and_relevance_what_all_tokens_take(bundle: Bundle) -> None:
    rollout = Rollout(range(6))
    with watching(bundle.model, [0, 1], rollout):
        best = int(bundle.model(seen_by(bundle)).argmax())
    spoken, _ = relevance(bundle.model, seen_by(bundle), best, [0, 1], range(6))

    mixed, weighed = explain(bundle, PHOTO), explain(bundle, PHOTO, "relevance")

    assert rollout.flow is not None and mixed.target == weighed.target == best
    assert mixed.maps.shape == (1, *GRID) and weighed.maps.shape == GRID
    np.testing.assert_allclose(mixed.maps[0].ravel(), rollout.flow[0, 0, 4:], rtol=1e-5)
    np.testing.assert_allclose(weighed.maps.ravel(), spoken[0, 4:], rtol=1e-4)
    last = explain(bundle, PHOTO, "rollout", layers=[1], heads=[2], queries=[(0, 0), "class"])
    assert last.maps.shape == (2, *GRID)
    np.testing.assert_allclose(last.maps.sum((1, 2)) + last.prefix.sum(1), 1, rtol=1e-5)


@torch.no_grad()
def test_without_a_class_token_the_patches_ask_and_a_pooling_is_asked_for() -> None:
    bundle = bundle_of(SIGLIP)
    rollout, pool = Rollout(range(6)), Rows(range(6), [])
    with watching(bundle.model, [0, 1], rollout), watching(bundle.model, ["pool"], pool):
        bundle.model(seen_by(bundle))

    mean = explain(bundle, PHOTO, "attention")
    pooled = explain(bundle, PHOTO, "attention", layers=["pool"])
    mixed = explain(bundle, PHOTO)

    assert mean.queries == ("patches",) and mean.maps.shape == (1, 6, 1, *GRID)
    assert pooled.maps.shape == (1, 6, 1, *GRID) and pooled.prefix.shape == (1, 6, 1, 0)
    np.testing.assert_allclose(pooled.maps.sum((-1, -2)), 1, rtol=1e-5)
    np.testing.assert_allclose(pooled.maps.ravel(), pool.maps["pool"].ravel(), rtol=1e-5)
    assert rollout.flow is not None
    wanted = pool.maps["pool"][0].mean(0) @ rollout.flow[0]
    np.testing.assert_allclose(mixed.maps.ravel(), wanted.ravel(), rtol=1e-4)
    assert explain(bundle, PHOTO, "relevance").maps.max() > 0


@pytest.mark.parametrize("config", [TINY, TINY.replace(pooling="mean"), SIGLIP])
def test_many_images_are_rolled_out_as_one_by_one(config: vitrail.ViTConfig) -> None:
    bundle = bundle_of(config)
    photos = [np.roll(PHOTO, 5 * i, axis=1) for i in range(9)]  # one more than a pass takes

    found = list(rollouts(bundle, photos, "cpu"))

    for values, photo in zip(found, photos, strict=True):
        np.testing.assert_allclose(values, explain(bundle, photo).map, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["attention", "rollout"])
def test_a_model_without_classes_is_explained_by_what_needs_none(method: Any) -> None:
    found = explain(bundle_of(TINY.replace(classes=0)), PHOTO, method)

    assert found.probabilities.shape == (0,) and found.target is None and found.label is None
    assert found.maps.shape[-2:] == GRID and found.maps.max() > 0


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"method": "gradcam"}, "method is \"gradcam\"; it should be one of rollout"),
        ({"layers": [2]}, "no layer 2: the layers are 0 to 1, or -2 to -1"),
        ({"layers": [0, -3]}, "no layer -3: the layers are 0 to 1"),
        ({"layers": ["1"]}, "no layer '1': the layers are 0 to 1"),
        ({"layers": []}, "layers is empty"),
        ({"layers": "pool"}, "layers is 'pool'; it should be a list"),
        ({"layers": ["pool"]}, "no layer 'pool'"),
        ({"layers": ["pool"], "method": "attention"}, 'no layer "pool": this model pools by cls'),
        ({"heads": [6]}, "no head 6: the heads are 0 to 5, or -6 to -1"),
        ({"heads": [True]}, "no head True"),
        ({"queries": ["clas"]}, 'no query "clas".* Did you mean "class"'),
        ({"queries": ["register-3"]}, "This model has class, register-0, register-1, register-2"),
        ({"queries": [(5, 0)]}, "no patch in row 5, column 0: the rows are 0 to 4"),
        ({"queries": [(0, -1)]}, "no patch in row 0, column -1"),
        ({"queries": [(1, 2, 3)]}, r"query is \(1, 2, 3\)"),
        ({"queries": []}, "queries is empty"),
        ({"method": "relevance", "queries": ["class"]}, "relevance has no queries"),
        ({"method": "occlusion", "layers": [0]}, "occlusion has no layers"),
        ({"method": "occlusion", "fill": "red"}, 'fill is "red"'),
        ({"target": "z"}, 'no class "z"'),
        ({"target": 9}, "no class 9: the classes are 0 to 8"),
        ({"target": -1}, "no class -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "x"}, "batch_size is 'x'; it should be a whole number"),
        ({"layers": "x"}, "layers is 'x'; it should be a list"),
        ({"target": 1.5}, "target is 1.5; it should be a class"),
        ({"device": "gpu"}, 'no device "gpu"'),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused_with_what_does(
    bundle: Bundle, how: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        explain(bundle, PHOTO, **how)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"method": "relevance"}, "explains a class, and this model has none"),
        ({"method": "occlusion"}, "explains a class, and this model has none"),
        ({"measure": True}, "needs a class, and this model has none"),
        ({"target": 0}, "this model has no class 0"),
    ],
)
def test_a_class_that_a_model_has_not_is_refused(how: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        explain(bundle_of(TINY.replace(classes=0)), PHOTO, **how)


def test_the_pooling_has_a_query_of_its_own() -> None:
    bundle = bundle_of(SIGLIP)

    for more in ({"layers": ["pool", 0]}, {"layers": ["pool"], "queries": ["patches"]}):
        with pytest.raises(ConfigError, match='layer "pool" has a query of its own'):
            explain(bundle, PHOTO, "attention", **more)  # type: ignore[arg-type]


def test_what_is_no_image_is_a_data_error(bundle: Bundle) -> None:
    for image in ("gone.png", b"<html>", np.zeros((3, 3))):
        with pytest.raises(DataError):
            explain(bundle, image)


def test_a_class_is_named_or_counted() -> None:
    bundle = replace(bundle_of(TINY.replace(classes=3)), labels=("2", "0", "cat"))

    targets = [explain(bundle, PHOTO, target=name).target for name in ("2", "0", "cat", "1", 2)]

    assert targets == [0, 1, 2, 1, 2]


def test_every_form_of_an_image_is_explained_alike(bundle: Bundle, tmp_path: Any) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    wanted = explain(bundle, PHOTO)

    for form in (tmp_path / "a.png", Image.fromarray(PHOTO), (tmp_path / "a.png").read_bytes()):
        found = explain(bundle, form)
        assert np.array_equal(found.maps, wanted.maps) and np.array_equal(found.image, PHOTO)
    assert wanted.pixels.shape == (40, 56, 3)
    assert wanted.seen == pytest.approx((0, 3, 60, 87), abs=1)


@pytest.mark.parametrize("fill", ["grey", "blur"])
@torch.no_grad()
def test_occlusion_is_the_mean_fall_of_all_windows_over_a_patch(bundle: Bundle, fill: Any) -> None:
    model, image = bundle.model, seen_by(bundle)[0]
    filler = filling(image, fill, 8)
    whole = model(image[None])[0].log_softmax(0)[4]

    found = explain(bundle, PHOTO, "occlusion", 4, fill=fill, batch_size=3)

    for i, j in ((0, 0), (2, 3), (4, 6)):  # windows of one patch, on so small a grid
        hidden = image.clone()
        hidden[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = filler[
            :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8
        ]
        fall = whole - model(hidden[None])[0].log_softmax(0)[4]
        assert found.maps[i, j] == pytest.approx(float(fall), abs=1e-5)


@pytest.mark.parametrize(
    ("grid", "side"), [((4, 4), 1), ((14, 14), 2), ((37, 37), 5), ((3, 40), 1)]
)
def test_windows_cover_every_patch_and_lie_inside(grid: tuple[int, int], side: int) -> None:
    hidden = windows(grid)

    assert hidden.any(dim=0).all() and (hidden.sum(dim=1) == side**2).all()
    assert len(hidden) <= grid[0] * grid[1] and len(hidden.unique(dim=0)) == len(hidden)


def test_a_blurred_filling_keeps_the_colour_and_loses_the_detail() -> None:
    image = torch.rand(3, 40, 56) + torch.tensor([0.0, 1.0, 2.0])[:, None, None]

    grey, blurred = filling(image, "grey", 8), filling(image, "blur", 8)

    for filled in (grey, blurred):
        assert filled.shape == image.shape
        torch.testing.assert_close(filled.mean((1, 2)), image.mean((1, 2)), rtol=0, atol=0.05)
    assert (grey.flatten(1).std(dim=1) == 0).all()
    assert blurred.std(dim=(1, 2)).max() < image.std(dim=(1, 2)).min() / 4
    torch.testing.assert_close(filling(torch.ones(1, 8, 8), "blur", 2), torch.ones(1, 8, 8))


def test_patches_are_hidden_where_the_mask_says(bundle: Bundle) -> None:
    image, hidden = seen_by(bundle)[0], torch.rand(5, 35) < 0.5
    logs = answers(bundle.model, image, torch.zeros_like(image), hidden, 1, batch_size=2)

    for mask, log in zip(hidden, logs, strict=True):
        kept = (~mask).view(GRID).repeat_interleave(8, 0).repeat_interleave(8, 1)
        wanted = bundle.model((image * kept)[None]).detach()[0].log_softmax(0)[1]
        torch.testing.assert_close(log, wanted, rtol=1e-4, atol=1e-4)


class Glances(torch.nn.Module):
    """A model whose one answer is how bright the patches of its own map are."""

    def __init__(self, wanted: Tensor) -> None:
        super().__init__()
        self.config, self.wanted = TINY, wanted

    def forward(self, images: Tensor) -> Tensor:
        means = images.unfold(2, 8, 8).unfold(3, 8, 8).mean(dim=(1, 4, 5))
        score = (means * self.wanted).sum(dim=(1, 2))
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def test_a_faithful_map_is_better_than_chance_and_its_opposite_worse() -> None:
    wanted = torch.zeros(GRID)
    wanted[2, 3], wanted[1, 1] = 4.0, 2.0
    model: Any = Glances(wanted)
    image = torch.zeros(3, 40, 56)
    image[:, 16:24, 24:32] = image[:, 8:16, 8:16] = 2.0

    good, bad = (faithfulness(model, image, sign * wanted, 0) for sign in (1, -1))

    assert good.gain > 0.05 > -0.05 > bad.gain
    assert good.deletion < good.random_deletion < bad.deletion
    assert good.insertion > good.random_insertion > bad.insertion
    assert good.random_deletion == bad.random_deletion
    assert good.to_json()["gain"] == good.gain and good.passes == 170


def test_the_areas_are_those_under_the_curves(bundle: Bundle) -> None:
    image, ranks = seen_by(bundle)[0], torch.randperm(35).float().view(GRID)
    found = faithfulness(bundle.model, image, ranks, 2, batch_size=7)
    order = ranks.flatten().argsort(descending=True)
    taken = [round(35 * i / 16) for i in range(17)]

    for fill, back, area in (("grey", False, found.deletion), ("blur", True, found.insertion)):
        filler, curve = filling(image, fill, 8), []  # type: ignore[arg-type]
        for count in taken:
            gone = torch.zeros(35, dtype=torch.bool)
            gone[order[:count]] = True
            mask = (gone ^ back).view(GRID).repeat_interleave(8, 0).repeat_interleave(8, 1)
            logits = bundle.model(torch.where(mask, filler, image)[None]).detach()
            curve.append(float(logits.softmax(1)[0, 2]))
        assert area == pytest.approx(np.trapezoid(curve) / 16, abs=1e-5)
    assert faithfulness(bundle.model, image, ranks, 2).random_deletion == pytest.approx(
        found.random_deletion, abs=1e-5
    )


def test_maps_are_compared_as_each_is_measured_and_chance_runs_once(bundle: Bundle) -> None:
    image, maps = seen_by(bundle)[0], [torch.randn(GRID) for _ in range(3)]
    alone = [faithfulness(bundle.model, image, each, 2) for each in maps]
    passes: list[int] = []
    bundle.model.register_forward_hook(lambda _, read, __: passes.append(len(read[0])))

    together = compared(bundle.model, image, maps, 2)

    assert sum(passes) == 2 * (3 + 4) * 17
    for one, other in zip(alone, together, strict=True):
        # What stands beside an image in its batch changes the last digits alone.
        assert one.to_json() == pytest.approx(other.to_json(), abs=1e-6)


def test_an_order_is_taken_from_its_start() -> None:
    taken = prefixes(torch.tensor([2, 0, 1]))

    assert taken.tolist() == [
        [False, False, False],
        [False, False, True],
        [True, False, True],
        [True, True, True],
    ]
    assert prefixes(torch.randperm(196)).sum(dim=1).tolist() == [
        round(196 * i / 16) for i in range(17)
    ]


def test_measuring_is_on_request_and_counts_its_passes(bundle: Bundle) -> None:
    passes: list[int] = []
    bundle.model.register_forward_hook(lambda _, read, __: passes.append(len(read[0])))

    assert explain(bundle, PHOTO).faithfulness is None
    assert passes == [1]
    found = explain(bundle, PHOTO, measure=True, batch_size=50).faithfulness

    assert found is not None and found.passes == sum(passes) - 2 == 170
    assert max(passes) == 50


@torch.no_grad()
def test_token_norms_are_before_the_final_norm(bundle: Bundle) -> None:
    model, images = bundle.model, torch.randn(2, 3, 40, 56)
    x, rotation, _ = model.embed(images)
    after = [x := block(x, rotation=rotation) for block in model.blocks]

    norms = token_norms(model, images)

    assert norms.prefix.shape == (2, 2, 4) and norms.patches.shape == (2, 2, *GRID)
    wanted = torch.stack(after).square().sum(-1).sqrt()
    np.testing.assert_allclose(norms.prefix, wanted[..., :4], rtol=1e-5)
    np.testing.assert_allclose(norms.patches.reshape(2, 2, 35), wanted[..., 4:], rtol=1e-5)


@torch.no_grad()
def test_attention_distance_is_in_pixels_and_among_patches(bundle: Bundle) -> None:
    model, images = bundle.model, torch.randn(2, 3, 40, 56)
    rows = Rows(range(6), [[i] for i in range(39)])
    with watching(model, [0, 1], rows):
        model(images)

    found = attention_distance(model, images)

    places = np.array([(8 * i, 8 * j) for i in range(5) for j in range(7)], float)
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    for layer in (0, 1):
        shares = rows.maps[layer][..., 4:, 4:].numpy()
        shares = shares / shares.sum(-1, keepdims=True)
        np.testing.assert_allclose(found[layer], (shares * apart).sum(-1).mean((0, 2)), rtol=1e-4)


@pytest.mark.parametrize("positions", ["learned", "sincos", "rope"])
def test_positions_are_compared_by_their_cosine(positions: Any) -> None:
    model = randomize(ViT(TINY.replace(positions=positions, heads=3)))

    alike = position_similarity(model)

    assert alike.shape == (*GRID, *GRID)
    flat = alike.reshape(35, 35)
    np.testing.assert_allclose(np.diag(flat), 1, rtol=1e-5)
    np.testing.assert_allclose(flat, flat.T, atol=1e-6)
    if positions == "learned":
        assert model.pos_embed is not None
        one, other = model.pos_embed.detach()[0, [1 + 8, 1 + 20]]
        assert alike[1, 1, 2, 6] == pytest.approx(
            float(one @ other / one.norm() / other.norm()), abs=1e-5
        )
    else:  # near ones are more alike
        assert alike[2, 3, 2, 4] > alike[2, 3, 0, 0]


def test_a_model_without_positions_says_so() -> None:
    with pytest.raises(ConfigError, match="no positions"):
        position_similarity(ViT(TINY.replace(positions="none")))


def test_patch_filters_are_principal_components() -> None:
    from sklearn.decomposition import PCA

    model = randomize(ViT(TINY))
    flat = model.patch_embed.proj.weight.detach().permute(0, 2, 3, 1).flatten(1).numpy()
    wanted = PCA(6, svd_solver="full").fit(flat)

    found = patch_filters(model, 6)

    assert found.components.shape == (6, 8, 8, 3)
    same = np.abs((found.components.reshape(6, -1) * wanted.components_).sum(1))
    np.testing.assert_allclose(same, 1, rtol=1e-4)
    np.testing.assert_allclose(found.shares, wanted.explained_variance_ratio_, rtol=1e-4)
    assert patch_filters(model, 99).components.shape == (24, 8, 8, 3)
    with pytest.raises(ConfigError, match="count is 0"):
        patch_filters(model, 0)


def test_a_backbone_runs_no_block_beyond_the_last_asked_for(bundle: Bundle) -> None:
    images, ran = seen_by(bundle), []
    for i, block in enumerate(bundle.model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))

    first, again = bundle.model.tokens(images, layers=[0, -2])
    assert ran == [0] and torch.equal(first.patches, again.patches)
    (last,) = bundle.model.tokens(images, layers=[-1])

    assert ran == [0, 0, 1]
    assert first.patches.shape == (1, 35, 24) and first.grid == GRID
    assert torch.equal(last.patches, bundle.model.tokens(images).patches)
    assert bundle.model.tokens(images, layers=[]) == []


def test_occlusion_alone_needs_no_more_than_its_windows(bundle: Bundle) -> None:
    passes: list[int] = []
    bundle.model.register_forward_hook(lambda _, read, __: passes.append(len(read[0])))

    occlusion(bundle.model, seen_by(bundle)[0], 1, "grey", 10)

    assert passes == [10, 10, 10, 6]
