"""What is shipped: the wheel and the sdist, the same bytes from any checkout, and whole."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "from hatchling.build import {0}; print({0}('dist'))"


def checkout(folder: Path, umask: int) -> Path:
    """Copy what git has of the tree, as somebody with that umask and another clock has it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if not (ROOT / name).exists():  # deleted, and not committed yet
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
        target.chmod(0o666 & ~umask)
        os.utime(target, (umask * 10**6, umask * 10**6))
    return folder


def built(tree: Path, kind: str) -> Path:
    """Build the `wheel` or the `sdist` of a tree."""
    command = [sys.executable, "-c", BUILD.format(f"build_{kind}")]
    done = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    return tree / "dist" / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("trees")
    first, second = checkout(folder / "first", 0o022), checkout(folder / "second", 0o077)
    (second / "runs/digits-1").mkdir(parents=True)  # what lies about in a worked-in tree
    (second / "runs/digits-1/model.safetensors").write_bytes(b"large")
    (second / "src/vitrail/__pycache__").mkdir()
    (second / "src/vitrail/__pycache__/cli.cpython-311.pyc").write_bytes(b"old")
    (second / "notes.txt").write_text("mine")
    return first, second


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_two_checkouts_build_the_same_bytes(trees: tuple[Path, Path], kind: str) -> None:
    one, other = (built(tree, kind) for tree in trees)

    assert one.name == other.name
    assert sha256(one.read_bytes()).digest() == sha256(other.read_bytes()).digest()


def test_the_sdist_builds_the_same_wheel(trees: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built(trees[0], "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()

    again = built(unpacked, "wheel")

    assert again.read_bytes() == built(trees[0], "wheel").read_bytes()


def test_the_wheel_trains_and_answers_by_itself(trees: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built(trees[0], "wheel")) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def run(*words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import vitrail; print(vitrail.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "site")
    run("-m", "vitrail.cli", "train", "digits", "--train.steps", "2", "--out", "run")
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    found = run("-m", "vitrail.cli", "predict", "run", "run/examples", "--json")
    assert len(json.loads(found)) == 10
