"""What a killed process left is mended, and what training changes outside of itself is put back."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vitrail.cli import main
from vitrail.training.process import repeatable, undisturbed
from vitrail.weights.disk import mend


def test_mending_clears_half_written_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / ".best.part").mkdir()
    (tmp_path / ".summary.json.part").write_text("{")
    (tmp_path / "summary.json").write_text("{}")

    mend(tmp_path)

    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_mending_brings_back_a_folder_that_was_moved_aside(tmp_path: Path) -> None:
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "config.json").write_text("{}")
    (tmp_path / ".last.old").mkdir()
    (tmp_path / "last").mkdir()

    mend(tmp_path)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last"]
    assert (tmp_path / "best" / "config.json").is_file()


def test_training_puts_threads_and_random_numbers_back() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()

    with undisturbed(threads + 1):
        inside = torch.get_num_threads()
        torch.manual_seed(7)

    assert inside == threads + 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--model.channels", "2"), "reads 2 channels, but images are read as grey or RGB"),
        (("--model.classes", "7"), "a run has the classes of its data"),
        (("--lr", "inf"), "lr is inf"),
    ],
)
def test_what_cannot_be_trained_is_told_before_a_run_begins(
    flags: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    code = main(["train", "digits", *flags])

    assert code == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("device", "wanted", "expected"),
    [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)],
)
def test_a_gpu_is_asked_for_sums_in_one_order_while_it_trains(
    device: str, wanted: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's
    memory: Any = torch.utils.deterministic

    with repeatable(torch.device(device), wanted):
        inside = torch.are_deterministic_algorithms_enabled()
        fills = memory.fill_uninitialized_memory

    assert inside == expected
    assert fills != expected
    assert not torch.are_deterministic_algorithms_enabled()
    assert memory.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


_MEMORY = """
import contextlib, ctypes, resource, sys, torch
from vitrail.training.process import memory_kept

def faults_of_ten() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [torch.empty(16 << 20, dtype=torch.uint8).fill_(1) for _ in range(6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

M_MMAP_THRESHOLD = -3
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 << 10)  # as a process begins, and no rule moves it
with memory_kept() if sys.argv[1] == "kept" else contextlib.nullcontext():
    faults_of_ten()
    print(faults_of_ten())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_is_kept_for_the_next_tensor() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", _MEMORY, how]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    assert faults("kept") < 100 < 10 * 1000 < faults("as it is")
