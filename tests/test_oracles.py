"""What the tests of dialects stand on is right: other code reads the same files as meant."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle_blog
import oracle_google
import oracle_originals
import oracle_timm
from oracles import NATIVE, TOLERANCES, Oracle, difference, libraries, read

__all__ = ["libraries"]  # a fixture
pytestmark = pytest.mark.usefixtures("libraries")


@torch.no_grad()
def assert_equal(model: Any, oracle: Oracle) -> None:
    images = oracle.images()
    tokens = model.forward_features(images)
    assert difference(tokens, oracle.answer(images).tokens) == 0


@pytest.mark.parametrize("scale", ["before softmax", "after softmax"])
def test_the_blog_s_modules_do_what_its_formulas_say(scale: oracle_blog.Scale) -> None:
    model = oracle_timm.drawn(oracle_blog.vit(scale, convolution=False), torch.float64)
    images = torch.randn(2, 3, *NATIVE, dtype=torch.float64)

    with torch.no_grad():
        tokens = oracle_blog.by_hand(model.state_dict(), model[0](images), scale)
        logits = oracle_blog.pooled_by_hand(model.state_dict(), tokens)

        assert difference(model(images), logits) <= TOLERANCES[torch.float64]


def in_timm(model: Any, weights: dict[str, Tensor]) -> Any:
    """Load what belongs to the model, and all of it, as timm does with a decoder's leftovers."""
    wanted = model.state_dict()
    model.load_state_dict({key: weights[key] for key in weights if key in wanted})
    return model.eval()


# timm's converter knows no student and teacher, and no chunks of blocks.
@pytest.mark.parametrize(
    "name",
    [n for n in oracle_originals.CASES if n not in ("DINO", "DINOv2, training file")],
)
def test_timm_s_own_converters_read_the_originals_as_meant(name: str, tmp_path: Path) -> None:
    from timm.models import eva, vision_transformer

    oracle = oracle_originals.CASES[name](torch.float32)
    values = read(oracle.write(tmp_path))

    if "DINOv3" in name:
        model = oracle_timm.eva_model(bias="without" not in name, gated="gated" in name, classes=0)
        weights = eva.checkpoint_filter_fn(values, model)
    else:
        assert isinstance(oracle.answer, partial)
        switches = oracle.answer.args[1]
        model = oracle_originals.vision_transformer(**switches)
        weights = vision_transformer.checkpoint_filter_fn(
            values, model, adapt_layer_scale="III" in name
        )

    assert_equal(in_timm(model, weights), oracle)


@pytest.mark.parametrize("name", oracle_google.TIMM_READS)
def test_timm_s_own_reader_reads_the_arrays_as_meant(name: str, tmp_path: Path) -> None:
    oracle = oracle_google.CASES[name](torch.float32)
    assert isinstance(oracle.answer, partial)
    model = oracle_google.vision_transformer(oracle.size, oracle.answer.args[1]).eval()

    model.load_pretrained(str(oracle.write(tmp_path)))

    assert_equal(model, oracle)


@pytest.mark.parametrize("name", ["vit_jax of today", "big_vision before 2022"])
def test_arrays_that_timm_cannot_read_are_the_released_ones_renamed(
    name: str, tmp_path: Path
) -> None:
    both = []
    for case in ("vit_jax", name):
        torch.manual_seed(0)
        oracle = oracle_google.CASES[case](torch.float32)
        both.append(oracle_google.bare(read(oracle.write(tmp_path))))

    released, other = both
    assert released.keys() == other.keys()
    assert all(torch.equal(released[key], other[key]) for key in released)
