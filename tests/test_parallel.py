"""Several processes: the same run as one, the same twice, on any number of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rank_runs
from rank_runs import (
    BAD,
    EQUAL,
    FSDP,
    GRADIENT,
    PROBE,
    SHARDED,
    SHARED,
    TIMED,
    Fault,
    by,
    compiled,
    in_double,
    newest,
    none_read,
    reloaded,
    sigint,
    spread,
    stopped,
    trained,
)
from ranks import Nursery, values
from runs import assert_equal_runs, rows, with_train, write_photos
from vitrail.data.config import Augment
from vitrail.errors import ConfigError
from vitrail.training import checkpoint
from vitrail.training.joining import joined
from vitrail.training.loop import train
from vitrail.training.recipe import Parallel, Recipe, Train
from vitrail.training.session import Session
from vitrail.training.world import World

# All by which a gradient may differ; one step of each moves the weights by it.
GRADIENTS = {
    "plain": GRADIENT,
    "parts": with_train(GRADIENT, micro_batch=3),
    "clipped": replace(GRADIENT, optimizer=replace(GRADIENT.optimizer, clip=0.05)),
    "frozen": with_train(GRADIENT, freeze=2),
    "small-images": with_train(GRADIENT, first_size=(4, 4), steps=2),
    "recomputed": with_train(GRADIENT, recompute=True),
    "taught": replace(
        GRADIENT,
        model=GRADIENT.model.replace(distillation_token=True),
        objective=replace(GRADIENT.objective, name="distill", teacher="pretrained"),
    ),
}
CUT = by("adamw", with_train(EQUAL, batch_size=12))  # splits over 2 and 3
THREE = with_train(SHARED, batch_size=6)
KINDS = ("ddp", "fsdp")
# No softmax sees the biases of keys: their gradient is what rounding left, and Adam's division
# makes a whole step of it.
KEYS = "qkv.bias"


def kind(name: str, recipe: Recipe) -> Recipe:
    return spread(recipe) if name == "fsdp" else recipe


def stop(recipe: Recipe, out: str, step: int, rank: int) -> tuple[Any, ...]:
    """Stop a run after a step by a signal that only one of its processes gets."""
    return stopped, recipe, out, Fault(rank, sigint, step - 1)


JOBS_OF_TWO = [
    (trained, SHARED, "first"),
    (trained, SHARED, "again"),
    stop(SHARED, "stopped", 3, 1),
    (trained, SHARED, "stopped"),
    *((trained, kind(k, r), f"{n}-{k}") for n, r in GRADIENTS.items() for k in KINDS),
    *((in_double, trained, kind(k, EQUAL), f"muon-{k}") for k in KINDS),
    *((trained, kind(k, by("lamb", EQUAL)), f"lamb-{k}") for k in KINDS),
    *((trained, kind(k, PROBE), f"probe-{k}") for k in KINDS),
    *((none_read, kind(k, BAD), f"bad-{k}") for k in KINDS),
    (in_double, trained, EQUAL, "from-one"),
    (in_double, *stop(EQUAL, "to-one", 3, 0)),
    stop(TIMED, "timed", 1, 1),  # in the trial before its first step
    (trained, TIMED, "timed"),
    stop(spread(by("adamw", EQUAL), SHARDED), "to-ddp", 3, 1),
    (trained, by("adamw", EQUAL), "to-ddp"),
    stop(by("adamw", EQUAL), "to-fsdp", 3, 1),
    (trained, spread(by("adamw", EQUAL), SHARDED), "to-fsdp"),
    stop(spread(CUT, SHARDED), "cut-2", 2, 0),
]


@pytest.fixture(scope="module")
def two(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs on two processes, and those on one that they go on with or end as."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_photos(Path("photos"))
        rank_runs.write_bad(Path("bad"))
        rank_runs.write_pretrained()
        patch.setenv("RANK", "0")
        in_double(stopped, EQUAL, "from-one", Fault(0, sigint, 2))
        none = values(nursery.take(2, rank_runs.in_turn, JOBS_OF_TWO, seconds=1200))
        in_double(train, EQUAL, "to-one")
    # The fault fired: of most batches one process had no image.
    places = [number for number, job in enumerate(JOBS_OF_TWO) if job[0] is none_read]
    assert [any(told[place] for told in none) for place in places] == [True, True]
    return folder


@pytest.fixture(scope="module")
def one(two: Path) -> Path:
    """The same runs on one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(two)
        for name, recipe in GRADIENTS.items():
            train(recipe, f"{name}-one")
        in_double(train, EQUAL, "muon-one")
        train(by("lamb", EQUAL), "lamb-one")
        train(PROBE, "probe-one")
        train(BAD, "bad-one")
    return two


def farthest(one: Path, other: Path, *, but: str = "-") -> float:
    """Give the largest difference between two runs' weights, and their means, `but` for some."""
    a, b = newest(one), newest(other)
    assert a.keys() == b.keys()
    kept = [part for part in ("model", "ema") if part in a]
    each = [(p, n) for p in kept for n in a[p] if not n.endswith(but)]
    return max(float((a[p][n] - b[p][n]).abs().max()) for p, n in each)


@pytest.mark.slow
def test_two_processes_twice_and_stopped_on_one_of_them_are_equal_to_the_bit(two: Path) -> None:
    assert_equal_runs(two / "again", two / "first")
    assert_equal_runs(two / "stopped", two / "first")


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gradient_of_two_processes_is_that_of_one(name: str, how: str, one: Path) -> None:
    alone = one / f"{name}-one"

    assert farthest(one / f"{name}-{how}", alone) < 1e-6
    found = [rows(run)[0] for run in (one / f"{name}-{how}", alone)]
    for norm in ("grad_norm", "update_norm"):
        assert found[0][norm] == pytest.approx(found[1][norm], rel=1e-5) and found[0][norm] > 0


@pytest.mark.slow
def test_a_compiled_model_has_the_same_gradient_on_two_processes(
    two: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two)
    recipe = replace(GRADIENT, augment=Augment())
    train(recipe, "uncompiled")

    jobs = [(compiled, kind(name, recipe), f"compiled-{name}") for name in KINDS]
    values(nursery.take(2, rank_runs.in_turn, jobs, seconds=300))

    for name in KINDS:
        assert farthest(two / f"compiled-{name}", two / "uncompiled") < 1e-6


@pytest.mark.slow
def test_a_batch_in_parts_has_the_gradient_of_the_whole(one: Path) -> None:
    assert farthest(one / "parts-one", one / "plain-one") < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
def test_frozen_layers_stay_as_they_are(how: str, one: Path) -> None:
    # All runs begin with the weights of one seed.
    weights = [newest(one / name)["model"] for name in (f"frozen-{how}", f"plain-{how}")]
    name = "patch_embed.proj.weight"

    assert torch.equal(weights[0][name], newest(one / "frozen-one")["model"][name])
    assert not torch.equal(weights[0][name], weights[1][name])


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
def test_files_that_cannot_be_read_count_as_nothing_on_any_process(how: str, one: Path) -> None:
    alone, other = (json.loads((one / f"bad-{n}/summary.json").read_text()) for n in ("one", how))

    assert farthest(one / f"bad-{how}", one / "bad-one") < 5e-6  # four steps at a rate of 1
    assert sorted(b["path"] for b in alone["bad"]) == sorted(b["path"] for b in other["bad"])
    assert len(alone["bad"]) == 14


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon-ddp", "muon-fsdp", "from-one", "to-one"])
def test_a_run_is_the_same_on_other_numbers_of_processes(name: str, one: Path) -> None:
    assert farthest(one / name, one / "muon-one", but=KEYS) < 5e-6
    for row, wanted in zip(rows(one / name), rows(one / "muon-one"), strict=True):
        assert row["step"] == wanted["step"] and row["top1"] == wanted["top1"]
        assert row["loss"] == pytest.approx(wanted["loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
def test_the_lengths_that_lamb_divides_by_are_those_of_whole_matrices(how: str, one: Path) -> None:
    assert farthest(one / f"lamb-{how}", one / "lamb-one", but=KEYS) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
def test_a_head_alone_learns_the_same_on_two_processes(how: str, one: Path) -> None:
    assert farthest(one / f"probe-{how}", one / "probe-one") < 5e-6  # six steps at a rate of 1


@pytest.mark.slow
def test_minutes_are_settled_by_a_trial_of_all_processes(two: Path) -> None:
    settled = json.loads((two / "timed/settled.json").read_text())
    summary = json.loads((two / "timed/summary.json").read_text())

    assert settled["micro_batch"] == 4 and settled["steps"] == summary["step"] == summary["steps"]
    assert summary["status"] == "finished"


@pytest.mark.slow
def test_an_evaluation_on_two_processes_is_that_of_one(one: Path) -> None:
    alone, both = (
        json.loads((one / name / "summary.json").read_text())["evaluation"]
        for name in ("plain-one", "plain-ddp")
    )

    counts = ("images", "failed", "top1", "top1_interval", "top5", "per_class", "confusion")
    assert [alone[name] for name in counts] == [both[name] for name in counts]
    assert both["loss"] == pytest.approx(alone["loss"], abs=1e-6)


@pytest.mark.slow
def test_ddp_and_fsdp_go_on_with_each_others_checkpoints(two: Path) -> None:
    # One went from FSDP to DDP, the other from DDP to FSDP and to pieces, which reading joins.
    runs = [two / "to-ddp", two / "to-fsdp"]

    assert farthest(*runs) < 1e-6
    shapes = [{n: t.shape for n, t in newest(run)["optimizer"].items()} for run in runs]
    assert shapes[0] == shapes[1]
    pieces = {p.name for p in (runs[1] / "checkpoints/step-00000006").iterdir()}
    assert {"model.0-of-2.safetensors", "model.1-of-2.safetensors"} <= pieces


@pytest.mark.slow
def test_a_checkpoint_is_the_same_to_the_bit_whoever_takes_it_up(
    two: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 2 pieces, in 3, whole, by DDP, by FSDP2 from a whole one and to a whole one."""
    monkeypatch.chdir(two)
    before = newest("cut-2")

    three = [
        (reloaded, spread(CUT, SHARDED), "cut-2", "cut-3"),
        (trained, THREE, "three"),
        stop(THREE, "three-stopped", 3, 2),
        (trained, THREE, "three-stopped"),
    ]
    values(nursery.take(3, rank_runs.in_turn, three, seconds=120))
    reloaded(CUT, "cut-3", "cut-1")
    chain = [
        (reloaded, CUT, "cut-1", "cut-ddp"),
        (reloaded, spread(CUT, FSDP), "cut-ddp", "cut-fsdp"),
        (reloaded, CUT, "cut-fsdp", "cut-end"),
    ]
    values(nursery.take(2, rank_runs.in_turn, chain))

    assert "model.2-of-3.safetensors" in [p.name for p in Path("cut-3").rglob("*")]
    for name in ("cut-3", "cut-1", "cut-ddp", "cut-fsdp", "cut-end"):
        after = newest(name)
        assert after.keys() == before.keys() == {"model", "ema", "optimizer", "loop"}
        for part, tensors in before.items():
            assert tensors.keys() == after[part].keys()
            for key in tensors.keys() - {"seconds", "cpu_seconds"}:
                assert torch.equal(tensors[key], after[part][key]), (name, part, key)
    # Here, for a third process costs seconds: three of them resume to the bit.
    assert_equal_runs("three-stopped", "three")


@pytest.mark.slow
def test_a_checkpoint_in_pieces_that_lacks_one_is_passed_over(two: Path, tmp_path: Path) -> None:
    whole = two / "to-fsdp/checkpoints/step-00000006"
    beside = tmp_path / whole.name
    beside.mkdir()
    for file in whole.iterdir():
        (beside / file.name).write_bytes(file.read_bytes())
    index = json.loads((beside / "index.json").read_text())
    del index["sha256"]["model.1-of-2.safetensors"]
    (beside / "index.json").write_text(json.dumps(index))

    found, broken = checkpoint.newest(tmp_path)

    assert found is None and "index.json is not as it was written" in broken[6]


def test_each_image_is_read_once_an_epoch_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))
    from vitrail.data.sources import open_data
    from vitrail.training.run_folder import RunFolder

    data = open_data("photos", 0.2, 0)
    seen = []
    for rank in range(2):
        session = Session(SHARED, data, RunFolder(Path("run")))
        session.world = World(rank, 2, rank)
        loader = session._loader(data.train, 8, SHARED.augment)
        seen += [p for batch in loader.epoch(0, 0) for p in batch.places.tolist()]

    assert sorted(seen) == list(range(16))


def test_what_cannot_work_in_pieces_is_refused() -> None:
    with pytest.raises(ConfigError, match="with ddp each process has all weights"):
        Parallel(checkpoints="sharded")
    with pytest.raises(ConfigError, match="give --dtype bfloat16"):
        Recipe(train=Train(dtype="float16"), parallel=Parallel(kind="fsdp"))


def test_one_process_has_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    with joined("cpu") as world:
        assert (world.rank, world.size) == (0, 1)
        assert not torch.distributed.is_initialized()
        assert world.exchange(3) == world.collect(3) == [3] and world.any(True)
