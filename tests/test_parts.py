"""Folders of parts: whole or not at all, of one command alone; and who takes what of a cluster."""

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from conftest import TINY, randomize
from data_sets import picture
from vitrail.cli import main
from vitrail.data.inputs import Item, file_item, inputs
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, DataError, OutputError
from vitrail.inference import cluster as module
from vitrail.inference import distributed
from vitrail.inference.cluster import Claim, Machine, claim
from vitrail.inference.distributed import Cluster, predict_parts
from vitrail.inference.part_worker import Cursor, Job
from vitrail.inference.part_writers import embedder, predictor
from vitrail.inference.parts import DEATHS, DeadPart, Parts, Range, Written, digest, ranges
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle, save

ITEMS = [file_item(f"{place}.png") for place in range(7)]
PLAN = list(ranges(ITEMS, 3))
NAMES = digest(part.names for part in PLAN)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    model = randomize(ViT(TINY)).eval()
    return Bundle(model=model, preprocess=Preprocess(size=(40, 56)), labels=tuple("abcdefghi"))


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(folder=tmp_path / "answers", suffix=".txt", made_by={"model": "0123", "top": 2})


def fill(items: Iterable[Item], path: Path) -> Written:
    names = [item.name for item in items]
    path.write_text("\n".join(names))
    return Written(len(names), 1, (), ((names[0], "no image"),))


def refuse(items: Iterable[Item], path: Path) -> Written:
    raise AssertionError("this part is there already")


def killed(items: Iterable[Item], path: Path) -> Written:
    """Leave what a process leaves that is killed while it fills a part."""
    path.write_text("half")
    os.link(path, path.with_stem(f"{path.stem}-kept"))
    raise DataError("gone")


def test_ranges_are_the_list_in_parts() -> None:
    assert [part[:3] for part in PLAN] == [(0, 0, 3), (1, 3, 3), (2, 6, 1)]
    assert PLAN[1].names == digest(["3.png", "4.png", "5.png"])
    assert digest(["ab"]) != digest(["a", "b"])
    assert list(ranges([], 3)) == []


def test_a_part_of_images_that_have_changed_is_refused(parts: Parts) -> None:
    changed = [item._replace(stamp="later") if item.name == "4.png" else item for item in ITEMS]
    first, second, _ = ranges(changed, 3)

    with parts.begun(7, NAMES):
        for part in PLAN[:2]:
            parts.write(part, ITEMS[part.start : part.start + 3], fill)

        assert parts.found(first) == parts.found(PLAN[0])
        with pytest.raises(ConfigError, match=r"part-00001.txt.* of those 4 to 6: remove it"):
            parts.found(second)
        parts.path(second).unlink()
        assert parts.write(second, changed[3:6], fill).images == 3
        assert parts.found(second) is not None


def test_a_part_is_written_once(parts: Parts) -> None:
    with parts.begun(7, NAMES):
        assert parts.found(PLAN[1]) is None

        parts.write(PLAN[1], ITEMS[3:6], fill)

        wanted = Written(3, 1, (), (("3.png", "no image"),))
        assert parts.found(PLAN[1]) == parts.write(PLAN[1], (), refuse) == wanted
        assert parts.path(PLAN[1]).read_text() == "3.png\n4.png\n5.png"
        assert [path.name for path in parts.folder.glob("[!_]*")] == ["part-00001.txt"]


def test_a_part_without_its_note_and_a_note_without_its_part_count_as_nothing(parts: Parts) -> None:
    with parts.begun(7, NAMES):
        for part in PLAN[:2]:
            parts.write(part, ITEMS[part.start :][: part.images], fill)
        (parts.folder / "_parts" / "part-00000.json").write_text('{"half')
        parts.path(PLAN[1]).unlink()

        assert [parts.found(part) for part in PLAN] == [None] * 3


def test_what_fails_in_the_middle_leaves_nothing(parts: Parts) -> None:
    def fails(items: Iterable[Item], path: Path) -> Written:
        path.write_text("half")
        raise DataError("gone")

    with parts.begun(7, NAMES):
        with pytest.raises(DataError, match="gone"):
            parts.write(PLAN[0], ITEMS[:3], fails)

        left = {path.name for path in parts.folder.rglob("*")}
        assert left == {"_parts", "command.json", "lock"}


def test_a_part_at_which_processes_die_is_left_out_until_the_command_is_given_again(
    parts: Parts,
) -> None:
    with parts.begun(7, NAMES):
        for _ in range(DEATHS):
            with pytest.raises(DataError):
                parts.write(PLAN[1], ITEMS[3:6], killed)
        with pytest.raises(DeadPart, match=r"part-00001.txt \(images 4 to 6 of the list\)"):
            parts.write(PLAN[1], ITEMS[3:6], fill)
        parts.write(PLAN[0], ITEMS[:3], fill)

    with parts.begun(7, NAMES):
        assert parts.write(PLAN[1], ITEMS[3:6], fill).images == 3


@pytest.mark.parametrize(
    ("made_by", "names", "told"),
    [
        ({"model": "0124", "top": 2}, NAMES, "was written by another model: remove it"),
        ({"model": "0123", "top": 5}, NAMES, "was written with top 2, not 5"),
        ({"model": "0123", "top": 2}, "0", "was written for other images, or in another order"),
    ],
)
def test_the_folder_of_another_command_is_refused(
    parts: Parts, made_by: dict[str, Any], names: str, told: str
) -> None:
    with parts.begun(7, NAMES):
        pass
    other = Parts(folder=parts.folder, suffix=".txt", made_by=made_by)

    with pytest.raises(ConfigError, match=told), other.begun(7, names):
        pass


def test_a_part_of_another_command_is_refused(parts: Parts) -> None:
    with parts.begun(7, NAMES):
        parts.write(PLAN[0], ITEMS[:3], fill)
        parts.path(PLAN[0]).write_text("something else")

        with pytest.raises(ConfigError, match=r'part-00000.txt" was written by another command'):
            parts.found(PLAN[0])


def test_a_folder_of_something_else_is_left_as_it_is(parts: Parts) -> None:
    parts.folder.mkdir()
    (parts.folder / "part-00000.txt").touch()
    with pytest.raises(ConfigError, match=r'holds "part-00000.txt" already'), parts.begun(7, NAMES):
        pass
    assert os.listdir(parts.folder) == ["part-00000.txt"]

    file = Parts(folder=parts.folder / "part-00000.txt", suffix=".txt", made_by={})
    with pytest.raises(OutputError, match="is a file; parts need a folder"), file.begun(7, NAMES):
        pass


def test_two_commands_do_not_write_one_folder(parts: Parts) -> None:
    with (
        parts.begun(7, NAMES),
        pytest.raises(OutputError, match="another process is writing"),
        parts.begun(7, NAMES),
    ):
        pass


def test_a_machine_that_sees_another_folder_is_told_of(parts: Parts, tmp_path: Path) -> None:
    with parts.begun(7, NAMES):
        parts.check_seen("here")
        elsewhere = Parts(folder=tmp_path / "local", suffix=".txt", made_by=parts.made_by)

        with pytest.raises(OutputError, match='local" on node-7 is not the folder in which'):
            elsewhere.check_seen("node-7")


def test_a_cursor_walks_the_list_once_and_back_where_it_must() -> None:
    walks = []

    def items() -> Iterable[Item]:
        walks.append(1)
        return iter(ITEMS)

    cursor = Cursor(items)

    assert [cursor.take(PLAN[n]) for n in (0, 2)] == [ITEMS[:3], ITEMS[6:]]
    assert (cursor.take(PLAN[1]), len(walks)) == (ITEMS[3:6], 2)
    with pytest.raises(DataError, match="the images 4 to 6 are not those of the list"):
        cursor.take(Range(1, 3, 3, "other", PLAN[1].stamps))


@pytest.mark.parametrize(
    ("machines", "device", "cores", "wanted"),
    [
        ([(1, 0), (1, 0)], "auto", None, Claim(0.75, 0, 2, 1)),  # a quarter core of each is left
        ([(8, 0), (4, 0)], "cpu", None, Claim(3.875, 0, 3, 4)),
        ([(8, 0), (0, 0)], "auto", 1, Claim(0.9687, 0, 8, 1)),  # a head node that gives nothing
        ([(64, 8), (64, 8)], "auto", None, Claim(2, 1, 16, 7)),
        ([(2, 8)], "cuda", None, Claim(0.2187, 1, 8, 1)),  # fewer CPUs than GPUs: none waits
        ([(64, 8), (16, 0)], "cpu", 16, Claim(15.9375, 0, 5, 16)),
    ],
)
def test_models_take_what_there_is_and_leave_a_share(
    machines: list[tuple[float, float]], device: str, cores: int | None, wanted: Claim
) -> None:
    found = claim([Machine(*machine) for machine in machines], device, cores, readers=2)

    assert found == wanted
    for cpus, gpus in machines:
        models = int(gpus) if wanted.gpus else int(cpus // wanted.threads)
        assert models * found.cpus <= cpus


@pytest.mark.parametrize(
    ("machines", "device", "cores", "told"),
    [
        ([(4, 0)], "cuda", None, "no machine of the cluster has a GPU"),
        ([(4, 0)], "mps", None, "not on mps"),
        ([(4, 1)], "auto", 2, "--cores-per-model is for CPUs"),
        ([(4, 0), (8, 0)], "cpu", 9, "cores per model are 9; they should be 1 to 8"),
        ([(4, 0)], "cpu", 0, "cores per model are 0"),
        ([(0, 0)], "auto", None, "no machine of the cluster has a CPU to give"),
    ],
)
def test_a_cluster_without_room_is_refused(
    machines: list[tuple[float, float]], device: str, cores: int | None, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        claim([Machine(*machine) for machine in machines], device, cores, readers=2)


def test_parts_are_whole_batches() -> None:
    assert Cluster().size == 1024
    assert Cluster(batch_size=100).size == 1100
    with pytest.raises(ConfigError, match="the nearest that are: 900 and 1000"):
        Cluster(batch_size=100, part_images=950)
    with pytest.raises(ConfigError, match="threads is 0"):
        Cluster(threads=0)


def test_what_is_there_needs_no_cluster(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(b"broken")
    how = {
        "form": "jsonl",
        "top": 5,
        "name": "torch",
        "dtype": "float32",
        "merge": 0,
        "aspect": False,
    }
    made_by = {"command": "predict", "format": "jsonl", "top": 5, "engine": "torch"}
    made_by |= {
        "dtype": "float32",
        "merge": 0,
        "aspect": False,
        "part_images": 64,
        "model": bundle.digest(),
    }
    items = list(inputs([str(tmp_path)]))
    (part,) = ranges(items, 64)
    parts = Parts(folder=tmp_path / "answers", suffix=".jsonl", made_by=made_by)
    with parts.begun(2, digest([part.names])):
        parts.write(part, items, predictor(bundle, **how, device="cpu"))

    found = predict_parts(
        bundle,
        lambda: items,
        tmp_path / "answers",
        form="jsonl",
        cluster=Cluster(address="nowhere:1", part_images=64),
    )

    assert found == Written(2, 1)
    rows = [json.loads(line) for line in parts.path(part).read_text().splitlines()]
    assert [row["error"] is None for row in rows] == [True, False]


def test_a_part_without_a_readable_image_has_the_columns_of_the_others(
    bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(b"broken")
    write = embedder(bundle, tokens="patches", layer=0, dtype="float32", device="cpu")

    found = [
        write([file_item(tmp_path / f"{name}.png")], tmp_path / f"{name}.parquet") for name in "ab"
    ]

    tables = [parquet.read_table(tmp_path / f"{name}.parquet") for name in "ab"]
    assert tables[0].schema == tables[1].schema
    assert [len(table) for table in tables] == [1, 0]
    assert np.array(tables[0].column("embedding").to_pylist()).shape == (1, *found[0].shape)
    assert [(part.images, part.failed) for part in found] == [(1, 0), (1, 1)]


def here(bundle: Bundle, job: Job, missing: Iterable[Range], cluster: Cluster) -> Any:
    """Do in this process what a cluster does."""
    fill, cursor = job.writer(bundle, device="cpu"), Cursor(job.items)
    return {part.number: job.parts.write(part, cursor.take(part), fill) for part in missing}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_the_command_line_writes_the_rows_of_one_machine(
    form: str,
    bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: ModuleSpec(name, None, origin="here"))
    monkeypatch.setattr(distributed, "_run", here)
    monkeypatch.chdir(tmp_path)
    save(bundle, "model")
    for place in range(5):
        (tmp_path / f"{place}.png").write_bytes(picture(place) if place != 3 else b"broken")
    words = ["*.png", "--batch-size", "2", "--device", "cpu"]
    parts = ["--ray", "local", "--part-images", "2"]

    codes = [main(["predict", "model", *words, "--format", form, "-o", "one"])]
    codes += [main(["predict", "model", *words, "--format", form, "-o", "many", *parts])]
    codes += [main(["embed", "model", *words, "-o", "one.parquet"])]
    one = capsys.readouterr().out
    codes += [main(["embed", "model", *words, "-o", "vectors", *parts])]

    assert (codes, capsys.readouterr().out) == ([2] * 4, one)
    assert parquet.read_table("vectors").equals(parquet.read_table("one.parquet"))
    files = sorted((tmp_path / "many").glob(f"part-0000?.{form}"))
    assert len(files) == 3
    if form == "parquet":
        assert parquet.read_table("many").equals(parquet.read_table("one"))
    else:
        head = 1 if form == "csv" else 0
        rows = [line for file in files for line in file.read_text().splitlines()[head:]]
        assert rows == (tmp_path / "one").read_text().splitlines()[head:]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ray", "auto"], "name a folder for them with -o"),
        (["--ray", "auto", "-o", "x"], "a table has no parts: give --format csv, jsonl or parquet"),
        (["--ray", "auto", "-o", "x", "--json"], "--json has no parts"),
        (["--ray", "here", "-o", "x"], '--ray is "here"; it should be auto, local or HOST:PORT'),
        (["--ray", "ray://a:1", "-o", "x"], "give this command on a machine of it"),
        (["--part-images", "8"], "--part-images is a matter of --ray"),
        (["--cores-per-model", "8"], "--cores-per-model is a matter of --ray"),
    ],
)
def test_flags_that_do_not_go_together_are_told_at_once(
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: ModuleSpec(name, None, origin="here"))
    (tmp_path / "a.png").write_bytes(picture())

    code = main(["predict", "nano", str(tmp_path / "a.png"), *words])

    assert (code, told in capsys.readouterr().err) == (2, True)


def test_neighbours_need_all_embeddings_in_one_place(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: ModuleSpec(name, None, origin="here"))
    (tmp_path / "a.png").write_bytes(picture())
    words = ["--ray", "auto", "-o", "x", "--neighbours", "1"]

    assert main(["embed", "nano", str(tmp_path), *words]) == 2
    assert "compare all embeddings on one machine" in capsys.readouterr().err


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (None, ModuleSpec("ray", None)):  # a folder called ray is no package
        monkeypatch.setattr(module, "find_spec", lambda name, found=found: found)
        with pytest.raises(ConfigError, match=r"pip install 'vitrail\[ray\]'"):
            module.check_ray("auto")


@pytest.fixture
def server() -> Iterator[Callable[[bytes | None], str]]:
    """Give what makes a server that answers with some bytes, or never; and give its HOST:PORT."""
    done, listening = Event(), socket.create_server(("127.0.0.1", 0))

    def answer(with_bytes: bytes | None) -> str:
        def serve() -> None:
            # The test may be over, and the socket closed, before this thread begins.
            with suppress(OSError), listening.accept()[0] as connection:
                if with_bytes is None:
                    done.wait()
                else:
                    connection.recv(100)
                    connection.sendall(with_bytes)

        Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listening.getsockname()[1]}"

    yield answer
    done.set()
    listening.close()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "nothing answers at 127.0.0.1:[0-9]+ within 0 s"),
        (b"HTTP/1.1 400 Bad Request", "what answers at 127.0.0.1:[0-9]+ is no Ray"),
        (b"", "is no Ray"),
    ],
)
def test_a_server_that_is_no_cluster_is_not_waited_for(
    answer: bytes | None,
    told: str,
    server: Callable[[bytes | None], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.2)

    with pytest.raises(OSError, match=told):
        module._check_alive(server(answer))


def test_what_answers_with_settings_may_be_a_cluster(
    server: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module._check_alive(server(bytes((0, 0, 24, 4, 0, 0, 0, 0, 0, 0, 2))))

    monkeypatch.setenv("RAY_USE_TLS", "1")  # which would be asked in another way
    module._check_alive(server(None))


def test_where_nothing_listens_that_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"

    with pytest.raises(OSError, match=f"nothing answers at {address}: Connection refused"):
        module._check_alive(address)
