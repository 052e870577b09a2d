"""Two machines, of which one is killed: the rows are those of one machine, each of them once.

Both are on this one, as Ray's own tests have them: a raylet, a store and workers each.
"""

import json
import logging
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from conftest import TINY, randomize
from data_sets import picture
from vitrail.data.inputs import Item, inputs
from vitrail.data.preprocess import Preprocess
from vitrail.engines.build import torch_engine
from vitrail.errors import ConfigError, OutputError
from vitrail.inference.cluster import connected
from vitrail.inference.distributed import Cluster, embed_parts, predict_parts
from vitrail.inference.embed import embedded
from vitrail.inference.predict import batches
from vitrail.inference.rows import FORMS
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Ray's own are many, and other ones in each version
]
HOW: dict[str, Any] = {"batch_size": 2, "threads": 1}
# A busy machine takes longer to start than Ray waits by itself.
PATIENT = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster that this process is connected to: one core here, and one to be taken away."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT.items():
            patch.setenv(name, value)
        ray = pytest.importorskip("ray")
        from ray.cluster_utils import Cluster as LocalCluster  # pyright: ignore[reportMissingImports]

        small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}
        machines = LocalCluster(initialize_head=True, head_node_args=small)
        machines.add_node(**small)
        ray.init(machines.address, log_to_driver=False, logging_level=logging.ERROR)
        yield machines
        ray.shutdown()
        machines.shutdown()


def test_a_cluster_that_was_killed_is_told_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray._private import services  # pyright: ignore[reportMissingImports]

    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(address)  # what `ray start` leaves
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)  # others on this machine

    with pytest.raises(ConfigError, match=rf"nothing answers at \S+:{address[10:]}") as told:
        connected("auto").__enter__()

    assert "`ray stop` forgets one that was killed" in str(told.value)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(2)
    model = randomize(ViT(TINY)).eval()
    return Bundle(model=model, preprocess=Preprocess(size=(40, 56)), labels=tuple("abcdefghi"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A folder, a tar and a parquet file of 8 images each; the folder has a broken one."""
    root = tmp_path_factory.mktemp("images")
    data = [picture(grey) for grey in range(0, 240, 10)]
    (root / "photos").mkdir()
    for place in range(8):
        (root / "photos" / f"{place}.png").write_bytes(data[place])
    (root / "photos" / "3.png").write_bytes(b"poison")
    with tarfile.open(root / "more.tar", "w") as tar:
        for place in range(8, 16):
            file = root / f"{place}.png"
            file.write_bytes(data[place])
            tar.add(file, file.name)
    table = pa.table({"image": [{"bytes": image, "path": None} for image in data[16:]]})
    parquet.write_table(table, root / "rest.parquet")
    return [str(root / name) for name in ("photos", "more.tar", "rest.parquet")]


def opening(words: list[str], victim: str, begun: Path) -> Any:
    """Give what opens the list: on the machine `victim`, it hangs in the middle of a part."""

    def items() -> Iterator[Item]:
        import ray  # pyright: ignore[reportMissingImports]

        context = ray.get_runtime_context()
        is_victim = context.get_node_id() == victim
        if context.get_actor_id() is not None and not is_victim:
            while not begun.exists():  # so that the other one gets a part
                time.sleep(0.05)
        for place, item in enumerate(inputs(words)):
            if is_victim and place == 5:
                begun.touch()
                time.sleep(3600)
            yield item

    return items


def test_a_machine_that_is_killed_loses_no_row_and_doubles_none(
    cluster: Any, bundle: Bundle, words: list[str], tmp_path: Path
) -> None:
    (victim,) = cluster.worker_nodes
    begun, folder = tmp_path / "begun", tmp_path / "answers"

    def kill() -> None:
        while not (begun.exists() and list(folder.glob("part-*"))):
            time.sleep(0.05)
        cluster.remove_node(victim, allow_graceful=False)

    killer = Thread(target=kill, daemon=True)
    killer.start()

    found = predict_parts(
        bundle,
        opening(words, victim.node_id, begun),
        folder,
        form="jsonl",
        cluster=Cluster(part_images=4, **HOW),
    )

    killer.join()
    engine = torch_engine(bundle, "float32", "cpu")
    rows = [r for b in batches(engine, bundle.labels, inputs(words), **HOW) for r in b]
    files = sorted(folder.glob("part-*"))
    assert [file.name for file in files] == [f"part-{n:05}.jsonl" for n in range(6)]
    assert b"".join(map(Path.read_bytes, files)) == FORMS["jsonl"].encoded(rows, True)
    assert (found.images, found.failed) == (24, 1)
    assert [json.loads(x)["error"] is None for x in files[0].read_text().splitlines()] == [
        True
    ] * 3 + [False]


def test_embeddings_in_parts_are_those_of_one_machine(
    cluster: Any, bundle: Bundle, words: list[str], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"tokens": "mean", "cluster": Cluster(part_images=8, **HOW)}

    found = embed_parts(bundle, words, tmp_path / "parts", **how)

    table = parquet.read_table(tmp_path / "parts")  # passes over what tells of the parts
    engine = torch_engine(bundle, "float32", "cpu")
    one = list(embedded(engine, inputs(words), "mean", **HOW))
    assert table.column("path").to_pylist() == [item.name for b in one for item in b.items]
    rows = np.array(table.column("embedding").to_pylist(), np.float32)
    assert np.array_equal(rows, np.concatenate([b.vectors for b in one]))
    assert (found.failed, found.shape, found.bad[0][0]) == (1, (24,), f"{words[0]}/3.png")


def test_an_image_that_kills_its_process_is_told_and_all_others_are_answered(
    cluster: Any, bundle: Bundle, words: list[str], tmp_path: Path
) -> None:
    def items() -> Iterator[Item]:
        import os
        import signal

        def dies() -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        for place, item in enumerate(inputs(words[:1])):
            yield item._replace(open=dies) if place == 2 else item

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in sorted(tmp_path.glob("part-*"))}

    how: dict[str, Any] = {"form": "csv", "cluster": Cluster(part_images=2, **HOW)}
    with pytest.raises(
        OutputError, match=r"3 processes were killed at part-00001.csv \(images 3 to"
    ):
        predict_parts(bundle, items, tmp_path, **how)
    before = times()

    found = predict_parts(bundle, words[:1], tmp_path, **how)

    assert list(before) == ["part-00000.csv", "part-00002.csv", "part-00003.csv"]
    assert {name: time for name, time in times().items() if name != "part-00001.csv"} == before
    assert (found.images, found.failed) == (8, 1)


def test_a_cluster_without_a_gpu_says_so(
    cluster: Any, bundle: Bundle, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no machine of the cluster has a GPU"):
        predict_parts(bundle, words, tmp_path, cluster=Cluster(device="cuda", **HOW))
