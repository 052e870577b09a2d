"""Which folder a run takes: `--out`, `--resume`, `--override`, and what each of them refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from runs import RECIPE, rows, status, stopped, with_train, write_photos
from vitrail.errors import ConfigError, DataError, OutputError
from vitrail.training import checkpoint
from vitrail.training.loop import train

SHORT = with_train(epochs=1, steps=2)


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of ten noisy pictures, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"))


def listing(folder: str | Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_without_out_a_run_takes_the_lowest_unused_number() -> None:
    for name in ("photos-1", "photos-3", "photos-x", "other-2"):
        Path("runs", name).mkdir(parents=True)

    folders = [train(SHORT).folder for _ in range(2)]

    assert folders == [Path("runs/photos-2"), Path("runs/photos-4")]


@pytest.mark.parametrize("made", [True, False])
def test_out_that_is_absent_or_empty_is_a_new_run(made: bool) -> None:
    if made:
        Path("runs/b").mkdir(parents=True)

    run = train(SHORT, "runs/b")

    assert (run.folder, run.summary["status"]) == (Path("runs/b"), "finished")


def test_a_finished_run_gives_its_summary_and_takes_no_step() -> None:
    first = train(SHORT, "run")
    before = listing("run")

    again = train(SHORT, "run")

    assert again.summary == first.summary
    assert listing("run") == before


def test_a_run_that_was_stopped_while_it_was_begun_is_begun_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = ("write_bytes", "write_json")
    for i, name in enumerate(begun):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"vitrail.training.run_folder.{name}", _interrupted)
            train(SHORT, f"run-{i}")

        assert train(SHORT, f"run-{i}").summary["status"] == "finished"


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def other_seed(_: Path) -> None: ...


def more_images(photos: Path) -> None:
    Image.new("RGB", (8, 8)).save(photos / "dark" / "new.png")


def another_class(photos: Path) -> None:
    write_photos(photos, ("middle",))


def renamed_class(photos: Path) -> None:
    (photos / "dark").rename(photos / "black")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_seed, "train.seed: 0 in the run, 7 now"),
        (more_images, "data_digest: "),
        (another_class, "classes: ['dark', 'light'] in the run, ['dark', 'light', 'middle'] now"),
        (renamed_class, "classes: ['dark', 'light'] in the run, ['black', 'light'] now"),
    ],
)
def test_another_run_s_folder_is_refused_with_the_difference(
    change: Callable[[Path], None], told: str, photos: Path
) -> None:
    run = stopped(3, "run")
    before = listing(run)
    change(photos)

    with pytest.raises(ConfigError) as caught:
        train(with_train(seed=7) if change is other_seed else RECIPE, run)

    assert told in str(caught.value) and "--override" in str(caught.value)
    assert listing(run) == before


def test_another_data_set_is_refused_and_threads_are_not_another_recipe() -> None:
    run = stopped(3, "run")
    write_photos(Path("others"))

    with pytest.raises(ConfigError, match=r"data\.source: photos in the run, others now"):
        train(replace(RECIPE, data=replace(RECIPE.data, source="others")), run)
    done = train(replace(RECIPE, data=replace(RECIPE.data, threads=1)), run)

    assert done.summary["status"] == "finished"


def test_override_goes_on_with_what_is_new() -> None:
    run = stopped(3, "run")
    longer = with_train(epochs=3)

    done = train(longer, run, override=True)

    assert done.summary["step"] == 15
    assert [row["step"] for row in rows(run)][:2] == [2, 4]
    assert train(longer, run).summary == done.summary


def test_override_with_another_model_is_refused_and_harms_nothing() -> None:
    run = stopped(3, "run")
    wider = replace(RECIPE, model=RECIPE.model.replace(width=32))

    with pytest.raises(ConfigError, match="width"):
        train(wider, run, override=True)

    found, _ = checkpoint.newest(run / "checkpoints")
    assert found is not None and found.step == 3
    assert train(RECIPE, run).summary["status"] == "finished"


def test_resume_picks_the_newest_unfinished_run_of_the_data() -> None:
    first = stopped(3, "runs/photos-1")
    second = stopped(3, "runs/photos-2")
    train(SHORT, "runs/photos-3")
    stopped(3, "runs/other-4")
    Path("runs/photos-5").mkdir()  # a folder that holds no run

    done = train(RECIPE, resume=True)

    assert done.folder == second
    assert (status(second), status(first)) == ("finished", "interrupted")


def test_resume_without_an_unfinished_run_is_refused() -> None:
    train(SHORT)

    with pytest.raises(ConfigError, match='no unfinished run of "photos"'):
        train(SHORT, resume=True)


def test_a_folder_of_something_else_is_refused_and_left_alone() -> None:
    Path("papers").mkdir()
    Path("papers/thesis.txt").write_text("years of work")

    with pytest.raises(ConfigError, match="papers holds other files and no run"):
        train(SHORT, "papers")

    assert listing("papers") == {Path("papers/thesis.txt"): b"years of work"}


@pytest.mark.parametrize("out", ["file", "file/run", "file/a/run", "file-not-there/run"])
def test_a_folder_that_cannot_be_made_is_told_before_the_first_step(out: str) -> None:
    Path("file").write_text("mine")

    with pytest.raises(OutputError, match="file"):
        train(SHORT, out)

    assert Path("file").read_text() == "mine"


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written() -> None:
    with pytest.raises(DataError) as caught:
        train(with_train(batch_size=17), "run")

    assert "17" in str(caught.value) and "16" in str(caught.value)
    assert not Path("run").exists()


def test_the_environment_says_what_made_the_run() -> None:
    train(SHORT, "run")

    facts = json.loads(Path("run/environment.json").read_text())

    assert facts["classes"] == ["dark", "light"]
    assert len(facts["data_digest"]) == 64
    assert {"vitrail", "python", "torch", "platform", "cores", "command"} <= facts.keys()
    assert facts["matrix_tflops"] > 0
