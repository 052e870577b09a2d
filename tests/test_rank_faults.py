"""What befalls one of several processes: all of them end, in time, with one message and one code.

Each test proves by a file that its fault came.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rank_runs
from rank_runs import (
    BAD,
    EQUAL,
    SHARDED,
    SHARED,
    Fault,
    command,
    newest,
    poison,
    sigint,
    sigterm,
    sigterm_twice,
    spread,
    trained,
)
from ranks import Ended, Nursery, values
from runs import assert_equal_runs, rows, status, with_train, write_photos
from vitrail.data.loader import Loader
from vitrail.errors import ConfigError, DataError
from vitrail.training import checkpoint, opening
from vitrail.training.joining import joined
from vitrail.training.loop import train
from vitrail.training.recipe import Optimizer
from vitrail.training.session import Session

KINDS = ("ddp", "fsdp")
LOOP, RECORD = "vitrail.training.loop", "vitrail.training.record"


def kind(name: str, recipe: Any) -> Any:
    return spread(recipe) if name == "fsdp" else recipe


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `SHARED` on two processes that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_photos(Path("photos"))
        values(nursery.take(2, trained, SHARED, "run"))
    return folder / "run"


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))


def fired() -> list[str]:
    """Give the processes that a fault befell."""
    return sorted(path.name.removeprefix("fired-") for path in Path().glob("fired-*"))


def codes(ended: Sequence[Ended]) -> list[int]:
    return [each.code for each in ended]


def told(ended: Sequence[Ended]) -> str:
    """Give the one message that all processes together gave, which no traceback is in."""
    errors = "\n".join(each.err for each in ended)
    assert "Traceback" not in errors
    (message,) = re.findall(r"^vitrail: (.+)", errors, re.MULTILINE)
    return message


# The disk.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "recipe", "fault"),
    [
        (0, SHARED, rank_runs.small_files),
        (0, SHARED, rank_runs.no_room),
        (1, spread(SHARED, SHARDED), rank_runs.small_files),
        (1, spread(SHARED, SHARDED), rank_runs.no_room),
    ],
    ids=["limit", "full", "limit-of-pieces", "full-of-pieces"],
)
def test_a_checkpoint_that_one_process_cannot_write_ends_all(
    rank: int, recipe: Any, fault: Any, nursery: Nursery
) -> None:
    ended = nursery.take(2, command, recipe, "run", Fault(rank, fault, 3))

    assert (codes(ended), fired()) == ([5, 5], [str(rank)])
    assert "cannot be written" in told(ended)
    assert list(checkpoint.steps(Path("run/checkpoints"))) == [2]
    newest("run")
    assert not list(Path("run/checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_run_goes_on_once_the_disk_has_room(nursery: Nursery, whole: Path) -> None:
    nursery.take(2, command, SHARED, "run", Fault(0, rank_runs.no_room, 3))
    values(nursery.take(2, trained, SHARED, "run"))

    assert fired() == ["0"]
    assert_equal_runs("run", whole)


# Signals.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ([Fault(0, sigterm, 2)], 143),
        ([Fault(0, sigterm, 2), Fault(1, sigterm, 0, Session, "settle")], 143),
        # A cluster signals every process, and torchrun, which is one, passes its signal on.
        ([Fault(0, sigterm_twice, 2), Fault(1, sigterm_twice, 2)], 143),
        ([Fault(1, sigint, 0, LOOP, "take_up")], 130),
        ([Fault(0, sigint, 1, RECORD, "save"), Fault(1, sigint, 0, RECORD, "evaluate")], 130),
    ],
    ids=["one", "while it saves", "twice", "start", "save and evaluation"],
)
def test_signals_at_any_moment_save_once_and_end_all(
    faults: list[Fault], code: int, nursery: Nursery, whole: Path
) -> None:
    ended = nursery.take(2, command, SHARED, "run", *faults)

    assert str(faults[0].rank) in fired()
    assert set(codes(ended)) == {code}
    assert sum(each.err.count("this goes on:") for each in ended) == 1
    assert "Traceback" not in "".join(each.err for each in ended)
    assert status("run") == "interrupted"
    step = rank_runs.summary("run")["step"]
    assert max(checkpoint.steps(Path("run/checkpoints")), default=0) == step
    values(nursery.take(2, trained, SHARED, "run"))
    assert_equal_runs("run", whole)


@pytest.mark.slow
def test_a_signal_that_comes_when_all_is_done_stops_nothing(nursery: Nursery, whole: Path) -> None:
    ended = nursery.take(2, command, SHARED, "run", Fault(1, sigterm, 0, LOOP, "finish"))

    assert (codes(ended), fired(), status("run")) == ([0, 0], ["1"], "finished")
    assert_equal_runs("run", whole)


@pytest.mark.slow
def test_a_second_wish_to_stop_leaves_at_once(nursery: Nursery, whole: Path) -> None:
    faults = [Fault(0, rank_runs.sigint_twice_slowly, 3)]

    ended = nursery.take(2, command, SHARED, "run", *faults)

    # The other one finds itself alone.
    assert (codes(ended), fired()) == ([130, 1], ["0"])
    assert list(checkpoint.steps(Path("run/checkpoints"))) == [2]
    values(nursery.take(2, trained, SHARED, "run"))
    assert_equal_runs("run", whole)


# Numbers.


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
def test_a_number_that_is_none_on_one_process_stops_all_and_names_the_step(
    how: str, nursery: Nursery
) -> None:
    ended = nursery.take(2, command, kind(how, SHARED), "run", Fault(1, poison, 3))

    assert (codes(ended), fired()) == ([4, 4], ["1"])
    message = told(ended)
    assert "the loss was nan" in message and "at step 3" in message
    assert "step-00000002" in message
    assert list(checkpoint.steps(Path("run/checkpoints"))) == [2]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"skip_nonfinite": True}, {"dtype": "float16"}], ids=str)
def test_a_step_that_one_process_cannot_take_is_left_out_by_all(
    change: dict[str, Any], nursery: Nursery
) -> None:
    recipe = with_train(SHARED, **change)

    found = values(nursery.take(2, trained, recipe, "run", Fault(1, poison, 3)))

    assert fired() == ["1"]
    assert [each.summary["skipped_steps"] for each in found] == [1, 1]
    assert found[0].digest == found[1].digest
    assert [row["step"] for row in rows("run") if row["split"] == "train"] == [2, 4, 6]


@pytest.mark.slow
def test_a_step_is_left_out_by_all_where_weights_lie_in_pieces(nursery: Nursery) -> None:
    recipe = spread(with_train(SHARED, skip_nonfinite=True))

    found = values(nursery.take(2, trained, recipe, "run", Fault(1, poison, 3)))

    assert (fired(), found[0].summary["skipped_steps"]) == (["1"], 1)


# Data.


@pytest.mark.slow
def test_a_process_whose_storage_hangs_ends_all(nursery: Nursery) -> None:
    recipe = replace(SHARED, data=replace(SHARED.data, timeout=2.0))
    fault = Fault(1, rank_runs.hang_reading, 3, Loader, "_fill")

    ended = nursery.take(2, command, recipe, "run", fault)

    assert (codes(ended), fired()) == ([2, 2], ["1"])
    assert "no answer within 2 s" in told(ended)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.6, 0.8])
def test_bad_files_of_all_processes_count_together(share: float, nursery: Nursery) -> None:
    """14 of 20 cannot be read: of 16 to train on no process meets as many as both."""
    rank_runs.write_bad(Path("bad"))
    recipe = replace(BAD, data=replace(BAD.data, max_bad_share=share))

    ended = nursery.take(2, command, with_train(recipe, log_every=1), "run")

    if share == 0.8:
        assert codes(ended) == [0, 0]
        return
    assert codes(ended) == [2, 2]
    assert "files cannot be read" in told(ended)
    with pytest.raises(DataError, match="files cannot be read"):
        train(recipe, "one")


# The end of a run, and of a process.


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
def test_patience_ends_all_at_the_same_step(how: str, nursery: Nursery) -> None:
    tiny = Optimizer(lr=1e-12)  # nothing gets better
    recipe = kind(how, with_train(replace(EQUAL, optimizer=tiny), patience=1, epochs=9))

    found = values(nursery.take(2, trained, recipe, "run"))

    assert [each.summary["step"] for each in found] == [4, 4]
    assert max(checkpoint.steps(Path("run/checkpoints"))) == 4
    assert train(recipe, "one").summary["step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("fault", [rank_runs.fail, rank_runs.out_of_memory])
@pytest.mark.parametrize("minutes", [None, 0.02], ids=["step", "trial"])
def test_a_process_that_fails_ends_the_others_in_time(
    fault: Any, minutes: float | None, nursery: Nursery
) -> None:
    recipe = with_train(SHARED, minutes=minutes)

    ended = nursery.take(2, command, recipe, "run", Fault(1, fault, 2))

    code, told = (1, "is on fire") if fault is rank_runs.fail else (2, "does not fit the memory")
    assert (codes(ended), fired()) == ([1, code], ["1"])
    assert told in ended[1].err
    assert "process 0 of 2 lost another one" in ended[0].err


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up(nursery: Nursery) -> None:
    ended = nursery.take(2, rank_runs.impatient, SHARED, "run", Fault(1, rank_runs.hang, 3))

    assert (ended[0].code, fired()) == (1, ["1"])
    assert "process 0 of 2 lost another one" in ended[0].err


@pytest.mark.slow
def test_more_processes_than_held_out_images_evaluate_them(nursery: Nursery) -> None:
    held_out = replace(EQUAL.data, held_out_share=0.1)  # two images
    recipe = replace(with_train(EQUAL, batch_size=6, steps=1), data=held_out)

    found = values(nursery.take(3, trained, recipe, "run"))

    assert found[0].summary["evaluation"]["images"] == 2


# Processes that are not of one run.


@pytest.mark.slow
def test_another_recipe_on_another_machine_is_refused(nursery: Nursery) -> None:
    other = replace(SHARED, optimizer=replace(SHARED.optimizer, lr=0.5))

    ended = nursery.take(2, rank_runs.each_its_own, [SHARED, other], "run")

    assert codes(ended) == [2, 2]
    assert "process 0 has lr = 0.02, and process 1 lr = 0.5" in told(ended)
    assert not Path("run").exists()


def test_other_data_on_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="process 0 has data of digest a, and process 2 data"):
        opening.check_alike([["data of digest a"], ["data of digest a"], ["data of digest b"]])


@pytest.mark.slow
def test_a_port_in_use_is_told(nursery: Nursery) -> None:
    ended = nursery.take(1, rank_runs.meets_at_a_port_in_use)

    assert codes(ended) == [1]
    assert "which another program of this machine uses" in told(ended)


def test_slurm_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")

    with pytest.raises(ConfigError, match="SLURM runs this command 8 times"):
        train(SHARED)
    assert train(SHARED, "mine").summary["status"] == "finished"


def test_numbers_of_a_world_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(ConfigError, match="RANK, LOCAL_RANK"), joined("cpu"):
        pass
