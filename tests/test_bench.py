"""`vitrail bench`: what is measured, what fails by itself, and what is said of it."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import vitrail
from conftest import needs, randomize
from runs import write_photos
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.inference import bench as benching
from vitrail.inference import bench_plan, bench_process
from vitrail.inference.bench import Row
from vitrail.inference.bench_plan import Setting, sample_size, settings
from vitrail.inference.bench_process import Process, started
from vitrail.inference.bench_text import advice, beginning, table
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT

MODEL = ViTConfig(image_size=(16, 24), patch_size=8, classes=2, width=16, depth=1, heads=2)
KEYS = ["engine", "dtype", "batch", "images_per_second", "share_of_peak", "memory_mib", "agreement"]
CPU = torch.device("cpu")


class Said(NamedTuple):
    code: int
    out: str
    err: str


def tiny(config: ViTConfig = MODEL) -> vitrail.Bundle:
    return vitrail.Bundle(
        model=randomize(ViT(config)),
        preprocess=Preprocess(size=config.image_size),
        labels=("dark", "light"),
    )


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `bench` on a tiny model beside twenty photos; each row is timed for a moment."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    vitrail.save(tiny(), "model")

    def say(*words: str) -> Said:
        short = () if "--seconds" in words else ("--seconds", "0.01")
        code = main(["bench", *words, "--device", "cpu", "--threads", "1", *short])
        return Said(code, *map(str, capsys.readouterr()))

    return say


def row(
    engine: str, dtype: str, batch: int, speed: float, alike: float = 1.0, memory: float = 9
) -> Row:
    return Row(Setting(engine, dtype, batch), speed, 0.5, memory, alike, None)


@pytest.mark.slow
def test_every_setting_has_a_row_in_a_process_of_its_own(say: Any) -> None:
    needs("openvino")
    words = ["--engine", "torch", "openvino", "--dtype", "float32", "--batch-size", "4", "1"]

    said = say("model", "--data", "photos", "--json", *words)

    rows = json.loads(said.out)
    assert said.code == 0 and all(list(found) == KEYS for found in rows)
    assert [(found["engine"], found["dtype"], found["batch"]) for found in rows] == [
        ("torch", "float32", 1),
        ("openvino", "float32", 1),
        ("torch", "float32", 4),
        ("openvino", "float32", 4),
    ]
    assert {found["agreement"] for found in rows} == {1.0}
    assert all(found["images_per_second"] > 0 and found["share_of_peak"] > 0 for found in rows)
    assert all(found["memory_mib"] >= 0 for found in rows)
    assert "of 20 images" in said.err and "vitrail predict model" in said.err


def test_the_table_says_on_what_engines_agree_and_what_to_take(say: Any) -> None:
    said = say("model", "--engine", "torch", "--dtype", "float32", "--batch-size", "2")

    lines = said.out.splitlines()
    assert said.code == 0
    assert lines[0] == (
        "model on cpu, 1 thread; agreement with torch in float32 on 64 images of noise"
    )
    assert lines[3].split()[:3] == ["torch", "float32", "2"] and lines[3].endswith("100.0%")
    assert lines[-1].startswith(
        "Take `OMP_NUM_THREADS=1 vitrail predict model IMAGES --device cpu --engine torch"
    )


def test_an_engine_that_crashes_is_a_row_and_not_the_end(
    say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = bench_process._CODE.replace("main()", "import os, signal\nos.kill(os.getpid(), 11)")
    plain, started_before = bench_process._CODE, []

    class Second(Process):
        def __init__(self, log: Any) -> None:
            monkeypatch.setattr(bench_process, "_CODE", crash if started_before else plain)
            started_before.append(1)
            super().__init__(log)

    monkeypatch.setattr(bench_process, "Process", Second)

    said = say("model", "--dtype", "float32", "bfloat16", "--engine", "torch", "--batch-size", "1",
               "--json")  # fmt: skip

    well, ill = json.loads(said.out)
    assert said.code == 2
    assert list(well) == KEYS and well["images_per_second"] > 0
    assert list(ill) == [*KEYS, "error"] and ill["images_per_second"] is None
    assert ill["error"] == "its process crashed with SIGSEGV"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed: most likely for want of memory"),
        ("raise SystemExit('no room')", "ended with code 1: no room"),
        ("pass", "ended with code 0: without a word"),
    ],
)
def test_how_a_process_ended_is_told(code: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_process, "_CODE", code)

    with started() as process, pytest.raises(bench_process.Failed, match=told):
        process.ask("time", 0.1)


def test_what_an_engine_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    torch.save(torch.zeros(1, 3, 16, 24, dtype=torch.uint8), tmp_path / "sample.pt")
    about = {"engine": "onnx", "dtype": "bfloat16", "batch": 1, "device": "cpu", "threads": 1}

    with started() as process, pytest.raises(bench_process.Failed, match="no bfloat16 on a CPU"):
        process.ask("build", {**about, "folder": str(tmp_path)})


def test_a_process_prints_no_reply_and_leaves_with_its_owner() -> None:
    with started() as process:
        code = process.process
        assert code.poll() is None

    assert code.poll() == -signal.SIGKILL


def test_ctrl_c_gives_what_was_measured(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ask = [], Process.ask

    def interrupted(self: Process, task: str, *given: Any) -> Any:
        asked.append(task)
        if asked.count("time") == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return ask(self, task, *given)

    monkeypatch.setattr(Process, "ask", interrupted)

    said = say("model", "--engine", "torch", "--dtype", "float32", "--batch-size", "1", "2")

    assert said.code == 130 and "stopped" in said.err
    assert said.out.count("torch     float32") == 1  # nothing of batch 2 was begun
    assert "not measured" not in said.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("model --engine onnx --dtype bfloat16", 'engine "onnx" has no bfloat16, but float32'),
        ("model --batch-size 1 0", "batch_size is 0"),
        ("model --seconds 0", "seconds is 0.0; it should be above 0"),
        ("model --seconds nan", "seconds is nan"),
        ("model --engine", "--engine names none"),
        ("model --data nowhere.png", "no image can be read; the first is nowhere.png"),
        ("model --data empty", 'folder "empty" holds no image'),
        ("modle", 'no model "modle"'),
        ("model --enigne torch", 'Did you mean "--engine"?'),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(say: Any, words: str, told: str) -> None:
    Path("empty").mkdir()

    said = say(*words.split())

    assert (said.code, said.out) == (2, "") and told in said.err


def test_an_engine_or_a_device_that_is_not_here_is_told(
    say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    assert "pip install 'vitrail[openvino]'" in say("model", "--engine", "openvino").err
    assert main(["bench", "model", "--engine", "onnx", "--device", "mps"]) == 2


def test_more_threads_than_the_machine_has_are_refused(
    say: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)

    assert main(["bench", "model", "--threads", "5"]) == 2
    assert "threads is 5; this machine runs 4 at a time" in capsys.readouterr().err


def test_auto_is_what_is_here_and_what_makes_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_plan, "is_installed", lambda name: name != "openvino")
    monkeypatch.setattr(bench_plan, "_fast_dtypes", lambda device: ("float32", "bfloat16"))
    bundle = tiny()

    found = settings(bundle, CPU)

    kinds = [("torch", "float32"), ("torch", "bfloat16"), ("onnx", "float32")]
    assert found == [(*kind, batch) for batch in (1, 8, 64) for kind in kinds]
    assert {s.engine for s in settings(bundle, torch.device("cuda"))} == {"torch"}
    named = settings(bundle, CPU, ["openvino"], ["float16", "bfloat16"], [3, 3])
    assert named == [("openvino", "bfloat16", 3)]


def test_a_large_model_is_given_less_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_plan, "macs", lambda bundle: 10**11)

    assert {s.batch for s in settings(tiny(), CPU, ["torch"])} == {1}
    assert {s.batch for s in settings(tiny(), CPU, ["torch"], batches=[64])} == {64}
    assert sample_size(tiny(), CPU, 256) == 16
    assert sample_size(tiny(), torch.device("cuda"), 256) == 256


def test_the_fastest_that_answers_alike_is_advised() -> None:
    rows = [
        row("torch", "float32", 1, 100),
        row("torch", "float32", 8, 200),
        row("openvino", "float32", 8, 390, memory=50),
        row("openvino", "float32", 64, 400, memory=300),
        row("openvino", "bfloat16", 8, 800, alike=0.9),
        Row(Setting("onnx", "float32", 8), None, None, None, None, "it broke"),
    ]

    said = advice(rows, 256, True, beginning("a run", "auto", None))

    assert said == (
        "Take `vitrail predict 'a run' IMAGES --engine openvino --dtype float32 --batch-size 8`: "
        "390 images/s, 1.9 times as fast as torch in float32; it answers 100.0% of 256 images as "
        "that does."
    )
    assert table(rows).splitlines()[-1] == "onnx      float32       8   it broke"


def test_noise_proves_nothing_of_bfloat16() -> None:
    rows = [row("torch", "float32", 8, 200), row("torch", "bfloat16", 8, 500)]

    said = advice(rows, 64, False, "vitrail predict m IMAGES")

    assert "--engine torch --dtype float32 --batch-size 8`: 200 images/s;" in said
    assert "torch in bfloat16 is 2.5 times as fast as that, and --data DATA tells" in said
    assert advice(rows[1:], 64, False, "").startswith("No setting was measured")


def test_figures_are_those_of_the_median_round(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting("torch", "float32", 8)
    race = benching._Race([setting], {}, [], 1.0)
    race.times[setting], race.memory[setting] = [0.1, 9.0, 0.2], 3 * 2**20

    found = race.row(setting, flops=100, peaks={"float32": 8000.0})

    assert found == Row(setting, 40.0, 0.5, 3.0, None, None)
