"""Faults of training: how often each was provoked, and what came of it.

    python tests/faults.py [PART ...] [--rounds 30] [--write docs/faults.md]

- The whole process group of a tiny run is killed by SIGKILL at random moments after its start, and
  the same command given again, until it ends; then weights, their mean, the optimizer's state and
  all rows but for times must equal those of a run that was never killed, bit for bit.
- A checkpoint's files are cut at random places, or one bit of them is flipped, 1,000 times: the
  one before must be used.
- A child is killed right before each of its touches of the disk: in a checkpoint, in a bundle that
  takes the place of another, in a whole run.
- A disk of 4 MB fills up or is read-only (where this user may mount one).
- One of two processes that `--processes 2 --max-restarts 1` has started is killed by SIGKILL at a
  random step; the end must equal that of a run that was never killed, bit for bit.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rank_runs import LONG
from ranks import descendants
from runs import RECIPE, assert_equal_runs, rows, with_train, write_photos
from vitrail.training import checkpoint, lock
from vitrail.training.loop import train
from vitrail.training.recipe import to_toml

HERE = Path(__file__).parent
LONGER = with_train(epochs=8)
INTERVAL = 5  # steps from one save to the next
BROKEN = 1000
RESTARTS = 10


class Result(NamedTuple):
    fault: str
    provoked: str
    outcome: str


def started(out: Path) -> subprocess.Popen[str]:
    """Start the run as a process group of its own, and wait until it holds its folder."""
    words = [sys.executable, "-m", "vitrail.cli", "train", "photos", "--recipe", "recipe.toml"]
    process = subprocess.Popen(
        [*words, "--out", str(out)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not _is_held(out, process.pid):
        time.sleep(0.002)
    return process


def _is_held(out: Path, pid: int) -> bool:
    try:
        return json.loads((out / lock.NAME).read_text())["pid"] == pid
    except (OSError, ValueError):
        return False


def killed(out: Path, after: float) -> bool:
    """Start the run and kill its group after some seconds; False where it has ended by then."""
    process = started(out)
    try:
        _, told = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0, told
    return False


def check_loss(out: Path) -> None:
    """At most one interval is lost, and no row stands twice."""
    steps = [(row["step"], row["split"]) for row in rows(out)] if _begun(out) else []
    assert len(steps) == len(set(steps))
    found, broken = checkpoint.newest(out / "checkpoints") if steps else (None, {})
    assert not broken
    assert not steps or max(steps)[0] - (found.step if found else 0) <= INTERVAL


def _begun(out: Path) -> bool:
    return (out / "metrics.jsonl").is_file()


def kills(rounds: int) -> Result:
    """Kill a run at random moments, `rounds` times in all, as many runs as that takes."""
    Path("recipe.toml").write_text(to_toml(LONGER))
    began = time.monotonic()
    process = started(Path("reference"))
    held = time.monotonic()
    process.communicate()
    lasts = time.monotonic() - held
    draws, done, ended = random.Random(0), 0, 0
    print(f"a run takes {held - began:.1f} s to start and {lasts:.1f} s to end", file=sys.stderr)
    out = Path("killed")
    while done < rounds or out.exists():
        after = draws.uniform(0, lasts) if done < rounds else 600
        if killed(out, after):
            done += 1
            check_loss(out)
            continue
        assert_equal_runs(out, "reference")
        assert not list(out.rglob(".*"))
        shutil.rmtree(out)
        ended += 1
    return Result(
        "SIGKILL of the process group", f"{done} times", f"{ended} of {ended} runs end equal"
    )


def spoil(path: Path, draws: random.Random) -> tuple[Path, bytes]:
    """Cut a file of a checkpoint, or flip a bit of it; give the file and what it was."""
    file = draws.choice(sorted(path.iterdir()))
    whole = file.read_bytes()
    if draws.random() < 0.5:
        # But for the last byte: a JSON file without its last line break says what it said.
        file.write_bytes(whole[: draws.randrange(len(whole) - 1)])
    else:
        spoilt = bytearray(whole)
        spoilt[draws.randrange(len(spoilt))] ^= 1 << draws.randrange(8)
        file.write_bytes(spoilt)
    return file, whole


def broken_checkpoints() -> Result:
    train(RECIPE, "spoilt")
    folder = Path("spoilt/checkpoints")
    draws, found = random.Random(0), 0
    for _ in range(BROKEN):
        file, whole = spoil(checkpoint.steps(folder)[10], draws)
        used, broken = checkpoint.newest(folder)
        found += used is not None and used.step == 5 and list(broken) == [10]
        file.write_bytes(whole)
    return Result(
        "a checkpoint is cut, or a bit of it flipped",
        f"{BROKEN} times",
        f"{found} of {BROKEN} noticed, the one before used",
    )


def kill_points() -> Iterator[Result]:
    for kind in ("checkpoint", "bundle", "run"):
        Path(kind).mkdir()
        words = [sys.executable, str(HERE / "kill_points.py"), kind, kind]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout)
        good = told["points"] - len(told["wrong"])
        for problem in told["wrong"]:
            print(problem, file=sys.stderr)
        yield Result(
            f"SIGKILL before a touch of the disk, in a {kind}",
            f"each of {told['points']}",
            f"{good} of {told['points']} leave what was good, and end as if nothing had been",
        )


def full_disk() -> Result:
    words = [sys.executable, "-m", "pytest", "-rs", str(HERE / "test_full_disk.py")]
    done = subprocess.run(words, capture_output=True, text=True)
    told = done.stdout.strip().splitlines()[-1].strip("= ").rpartition(" in ")[0]
    return Result("a full, a small, a read-only disk", "by tests/test_full_disk.py", told)


def restarts() -> Result:
    """Kill one of two processes at a random step, and see what the others' new start comes to."""
    Path("ranks.toml").write_text(to_toml(with_train(LONG, log_every=1)))
    draws, equal = random.Random(0), 0
    _trained("unkilled")
    last = rows("unkilled")[-1]["step"]
    for number in range(RESTARTS):
        out, step, rank = f"restarted-{number}", draws.randrange(1, last - 5), draws.randrange(2)
        told = _trained(out, step, rank)
        assert f"process {rank} of 2 was ended by SIGKILL; all start again" in told, told
        try:
            assert_equal_runs(out, "unkilled")
            equal += 1
        except AssertionError as error:
            print(f"process {rank}, killed at step {step}: {error}", file=sys.stderr)
    return Result(
        "SIGKILL of one of two processes", f"{RESTARTS} times", f"{equal} of {RESTARTS} end equal"
    )


def _trained(out: str, step: int | None = None, rank: int = 0) -> str:
    """Train by two processes, one of which is killed once a step is taken; give what was told."""
    words = "-m vitrail.cli train photos --recipe ranks.toml --processes 2 --max-restarts 1 --out"
    process = subprocess.Popen(
        [sys.executable, *words.split(), out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = Path(out, "metrics.jsonl")  # a row for each step
    while step is not None and process.poll() is None:
        if metrics.is_file() and metrics.read_text().count("\n") >= step:
            os.kill(descendants(process.pid)[rank], signal.SIGKILL)
            break
        time.sleep(0.005)
    _, told = process.communicate()
    assert process.returncode == 0, told
    return told


def _written(results: list[Result], path: Path) -> None:
    """Write the table; of faults that were not provoked now the rows stay as they are."""
    assert __doc__
    new = {result.fault: result for result in results}
    lines = path.read_text().splitlines() if path.exists() else []
    found = [Result(*line.strip("| ").split(" | ")) for line in lines if line.startswith("| ")]
    old = {result.fault: result for result in found if result.fault != "fault"}
    title, _, about = __doc__.split("\n\n", 2)
    again = "`make faults` repeats it."
    table = _table([*(old | new).values()])
    path.write_text("\n\n".join(["# Faults", title, about.strip(), again, table]) + "\n")


def _table(results: list[Result]) -> str:
    lines = ["| fault | provoked | outcome |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(result)} |" for result in results])


def main() -> None:
    parts: dict[str, Callable[[], list[Result]]] = {
        "broken": lambda: [broken_checkpoints()],
        "disk": lambda: [full_disk()],
        "points": lambda: [*kill_points()],
        "kills": lambda: [kills(given.rounds)],
        "restarts": lambda: [restarts()],
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; none: all")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    if strange := set(given.parts) - set(parts):
        parser.error(f"there is no part {', '.join(strange)}; there are {', '.join(parts)}")
    write = given.write and given.write.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_photos(Path("photos"))
        results = [result for name in given.parts or parts for result in parts[name]()]
        os.chdir(HERE)
    print(_table(results))
    if write:
        _written(results, write)


if __name__ == "__main__":
    main()
