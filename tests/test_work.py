"""What a training step computes, as torch counts it, and what a device can do at most."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from conftest import TINY
from runs import RECIPE, rows, stopped, with_train, write_photos
from vitrail.inference import peak
from vitrail.inference.peak import matrix_rate
from vitrail.model.config import DropRates
from vitrail.model.vit import ViT
from vitrail.training.clock import Clock
from vitrail.training.learner import Learner
from vitrail.training.loop import train
from vitrail.training.optimizer import Optimizer
from vitrail.training.schedule import image_size
from vitrail.training.start import freeze
from vitrail.training.work import training_macs

CPU = torch.device("cpu")
SIZE = (16, 88)
NO_CLASS: dict[str, Any] = {"class_token": False, "prefix_positions": 0}
CONFIGS = {
    "plain": TINY,
    "mean": TINY.replace(pooling="mean", final_norm="pooled"),
    "map": TINY.replace(pooling="map", mlp="swiglu", **NO_CLASS),
    "rope": TINY.replace(positions="rope", prefix_positions=0, registers=4, qkv_bias="no_key"),
    "distilled": TINY.replace(distillation_token=True, prefix_positions=2),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))


def metrics(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def counted(model: nn.Module, size: tuple[int, int]) -> int:
    """Have torch count a forward and a backward pass; it sees written-out attention."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.train()(torch.randn(1, 3, *size)).sum().backward()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("drop", [DropRates(), DropRates(patches=0.4)], ids=["whole", "dropped"])
@pytest.mark.parametrize("frozen", [0, 1, 2, 3, -1])
def test_multiply_adds_of_training_are_those_that_torch_counts(
    name: str, drop: DropRates, frozen: int
) -> None:
    model = ViT(CONFIGS[name], drop)
    freeze(model, frozen)

    assert training_macs(model, SIZE) == counted(model, SIZE)


def test_a_head_alone_is_counted_alone() -> None:
    model = ViT(TINY)
    freeze(model, -1)

    assert training_macs(model, SIZE, head_alone=True) == 2 * TINY.classes * TINY.width


@pytest.mark.usefixtures("here")
def test_the_share_of_peak_is_the_work_over_the_time_and_images_may_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitrail.training.resume.matrix_rate", lambda *_: 1e9)
    recipe = with_train(first_size=(4, 4))

    run = train(recipe, "run")

    model = run.bundle().model
    for row in [row for row in metrics("run") if row["split"] == "train"]:
        steps = (row["step"] - 2, row["step"] - 1)
        sizes = [image_size(recipe, step, 10) or (8, 8) for step in steps]
        macs = sum(training_macs(model, size) for size in sizes) / 2
        wanted = 2 * macs * row["images_per_second"] / 1e9
        assert row["peak_share"] == pytest.approx(wanted, rel=0.01, abs=1e-4)
        assert row["peak_share"] > 0


@pytest.mark.usefixtures("here")
def test_where_the_rate_is_not_known_there_is_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.training.resume.matrix_rate", lambda *_: None)

    train(with_train(epochs=1), "run")

    assert [row["peak_share"] for row in metrics("run")] == [None] * 4


def test_a_rate_is_measured_once_and_draws_nothing_from_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_rng_state()

    rate = matrix_rate(CPU, "float32")

    assert rate is not None and rate > 1e6
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(peak, "_fastest", None)
    assert matrix_rate(CPU, "float32") == rate


def test_a_device_that_cannot_multiply_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise RuntimeError('"addmm_impl_cpu_" not implemented')

    monkeypatch.setattr(torch, "mm", refuses)

    assert matrix_rate.__wrapped__(CPU, "float32") is None


@pytest.mark.usefixtures("here")
def test_a_row_says_how_far_the_last_step_moved_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, moves, measured = Learner.step, {}, []
    whole = Optimizer.measured_step

    def watched(self: Learner, batch: Any, number: int) -> None:
        before = nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()
        step(self, batch, number)
        after = nn.utils.parameters_to_vector(self.model.parameters()).detach()
        moves[number + 1] = float((after - before).norm())

    def noted(self: Optimizer, factor: float) -> torch.Tensor:
        measured.append(factor)
        return whole(self, factor)

    monkeypatch.setattr(Learner, "step", watched)
    monkeypatch.setattr(Optimizer, "measured_step", noted)
    train(with_train(log_every=4), "run")

    found = {row["step"]: row["update_norm"] for row in rows("run") if row["split"] == "train"}
    assert found == {at: pytest.approx(moves[at], rel=1e-5) for at in (4, 8, 10)}
    assert len(measured) == 4  # the first step, and those of the rows
    assert [row["update_norm"] for row in rows("run") if row["split"] == "val"] == [None, None]


@pytest.mark.usefixtures("here")
def test_measuring_changes_no_bit_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    train(with_train(log_every=1), "measured")
    train(with_train(log_every=10), "hardly")

    weights = [Path(run, "last/model.safetensors").read_bytes() for run in ("measured", "hardly")]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("here")
def test_the_first_rate_after_a_stop_counts_the_images_of_this_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = with_train(log_every=10)
    monkeypatch.setattr(Clock, "lap", lambda _: 1.0)

    stopped(6, "run", recipe)
    train(recipe, "run")

    (row,) = [row for row in metrics("run") if row["split"] == "train"]
    assert row["images_per_second"] == 4 * 3  # four steps of three images took the second


@pytest.mark.usefixtures("here")
def test_a_run_of_before_these_figures_goes_on_and_has_its_page() -> None:
    run = stopped(5, "run")
    new = ("update_norm", "peak_share")
    old = [{k: v for k, v in row.items() if k not in new} for row in metrics("run")]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))

    found = train(RECIPE, "run")

    assert found.summary["status"] == "finished"
    assert "update_norm" not in rows("run")[0] and "update_norm" in rows("run")[-1]
    assert "Step length" in (run / "report.html").read_text()
