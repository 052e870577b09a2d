"""Two runs on one folder: the second is refused and names the first, which goes on unharmed."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runs import status, with_train, write_photos
from vitrail.errors import ConfigError
from vitrail.training import lock
from vitrail.training.loop import train

SHORT = with_train(epochs=1, steps=2)


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of ten noisy pictures, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"))


def test_a_run_in_use_is_refused_and_its_holder_named() -> None:
    run = Path("run")
    with lock.held(run):
        before = [path.name for path in run.iterdir()]

        with pytest.raises(ConfigError) as caught:
            train(SHORT, run)

        assert [path.name for path in run.iterdir()] == before
        holder = json.loads((run / lock.NAME).read_text())

    assert caught.value.exit_code == 2
    assert holder["pid"] == os.getpid() and holder["host"] == socket.gethostname()
    told = str(caught.value)
    assert f"process {os.getpid()} on {holder['host']}, since {holder['since']}" in told
    assert not list(run.iterdir())
    assert train(SHORT, run).summary["status"] == "finished"


def test_the_lock_of_a_killed_process_is_free_and_goes(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from vitrail.training.lock import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match=f"process {process.pid} "):
                train(SHORT, "run")
        finally:
            process.send_signal(signal.SIGKILL)
    assert Path("run", lock.NAME).exists()

    train(SHORT, "run")

    assert not Path("run", lock.NAME).exists()


def test_a_finished_run_is_rid_of_the_lock_of_its_killed_process() -> None:
    train(SHORT, "run")
    Path("run", lock.NAME).write_text("")

    train(SHORT, "run")

    assert not Path("run", lock.NAME).exists()


def test_of_several_processes_of_one_run_only_the_first_holds_it() -> None:
    with lock.held(Path("run")), lock.held(Path("run"), rank=1):
        assert Path("run", lock.NAME).exists()

    assert not Path("run", lock.NAME).exists()


def test_a_lock_that_was_removed_under_its_name_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, late = lock._lock, []

    def removed_meanwhile(descriptor: int, path: Path) -> None:
        real(descriptor, path)
        if not late:  # as by a holder that ended between our two calls
            late.append(path.unlink())

    monkeypatch.setattr(lock, "_lock", removed_meanwhile)

    with lock.held(Path("run")):
        assert json.loads(Path("run", lock.NAME).read_text())["pid"] == os.getpid()
        with pytest.raises(ConfigError), lock.held(Path("run")):
            pass


def test_two_runs_that_take_a_number_at_once_get_two(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrail.training import run_folder

    choose, asked = run_folder.choose, []

    def beaten(*given: object, **more: object) -> run_folder.RunFolder:
        run = choose(*given, **more)  # type: ignore[arg-type]
        if not asked:
            asked.append(run.path.mkdir(parents=True))  # by the other
        return run

    monkeypatch.setattr(run_folder, "choose", beaten)

    assert train(SHORT).folder == Path("runs/photos-2")
    assert status("runs/photos-2") == "finished"
