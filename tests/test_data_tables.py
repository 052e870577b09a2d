import json
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_sets import greys, listing, pack, picture, pictures
from vitrail.data.overview import overview
from vitrail.data.sources import largest_side, open_data
from vitrail.errors import DataError


def write(root: Path, table: str, files: dict[str, bytes], name: str = "split.csv") -> str:
    for file, data in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(data)
    (root / name).write_text(table, encoding="utf-8")
    return str(root if name == "split.csv" else root / name)


def parquet(path: Path, first: int, count: int, labels: Any = None, **more: Any) -> None:
    """Write a file in the Hugging Face layout, three rows a group; a picture's grey is its row."""
    rows = range(first, first + count)
    images = [{"bytes": picture(i), "path": None} for i in rows]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"img": pa.array(images, kind), "label": [i % 3 for i in rows]}
    table = pa.table({**columns, **({"label": labels} if labels else {}), **more})
    features = {"label": {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"}}
    said = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(said), path, row_group_size=3)


ROWS = "path,label,split\na/0.png,ant,train\na/1.png,bee,train\nb/2.png,bee,val\nb/3.png,ant,test\n"
FILES = pictures("a/0.png", "a/1.png", "b/2.png", "b/3.png")


def test_a_split_csv_in_a_folder_is_followed(tmp_path: Path) -> None:
    found = open_data(write(tmp_path, ROWS, FILES))

    assert listing(found.train) == {"a/0.png": "ant", "a/1.png": "bee"}
    assert greys(found.held_out) == {"b/2.png": 2}
    assert found.test is not None and greys(found.test) == {"b/3.png": 3}


def test_a_csv_without_splits_is_split_by_class(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{i % 2}\n" for i in range(10))
    data = write(
        tmp_path, "file,class\n" + rows, pictures(*(f"{i}.png" for i in range(10))), "a.csv"
    )

    found = open_data(data)

    assert found.train.classes == ("0", "1")
    assert {**greys(found.train), **greys(found.held_out)} == {f"{i}.png": i for i in range(10)}
    assert sorted(listing(found.held_out).values()) == ["0", "1"]


def test_numbered_labels_are_named_by_classes_txt(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("zebra\nant\n")
    rows = ROWS.replace("ant", "0").replace("bee", "1")

    assert open_data(write(tmp_path, rows, FILES)).train.classes == ("zebra", "ant")


def test_ten_comes_after_nine(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{i % 11}\n" for i in range(22))

    data = write(tmp_path, "path,label\n" + rows, {}, "a.csv")

    assert open_data(data).train.classes == tuple(map(str, range(11)))


@pytest.mark.parametrize(
    ("table", "telling"),
    [
        ("", "no rows"),
        ("path,label\n", "no rows"),
        ("path,kind\n1.png,a\n", r"column of labels.*path, kind.*--data\.label-column"),
        ("photo,label\n1.png,a\n", r"column of images.*--data\.image-column"),
        ("path,label\n1.png,a\n2.png\n", "line 3: 1 fields"),
        ("path,label,label\n1.png,a,b\n", 'the column "label" twice'),
        ("path,label\n1.png,a\n2.png,\n", r"row 2, '2\.png', has no label"),
        ("path,label,split\n1.png,a,trian\n", 'split "trian".*Did you mean "train"'),
        ("path,label,split\n1.png,a,train\n2.png,b,train\n3.png,c,val\n", "lack: c"),
        ("path,label,split\n1.png,a,train\n2.png,b,val\n", "1 class"),
        ("path,label,split\n1.png,a,val\n2.png,b,test\n", "no split train"),
    ],
)
def test_a_csv_that_no_run_can_use_is_refused(tmp_path: Path, table: str, telling: str) -> None:
    with pytest.raises(DataError, match=telling):
        open_data(write(tmp_path, table, {}))


@pytest.mark.parametrize("column", ["split", "Split", "SPLIT"])
def test_the_column_split_is_found_in_either_case(tmp_path: Path, column: str) -> None:
    rows = ROWS.replace(",split", "," + column)
    (tmp_path / "b").mkdir()
    table = {"path": ["1.png", "2.png", "3.png"], "label": ["x", "y", "x"]}
    pq.write_table(pa.table({**table, column: ["train", "train", "dev"]}), tmp_path / "b/a.parquet")

    for found in (
        open_data(write(tmp_path / "a", rows, FILES)),
        open_data(str(tmp_path / "b/a.parquet")),
    ):
        assert (len(found.train), len(found.held_out)) == (2, 1)
        assert found.names[:2] == ("train", "val")


def test_parquet_files_that_contradict_each_other_on_splits_are_refused(tmp_path: Path) -> None:
    splits = ["train", "val"] * 4
    parquet(tmp_path / "a" / "one.parquet", 0, 8, split=splits)
    parquet(tmp_path / "a" / "two.parquet", 8, 8)
    parquet(tmp_path / "b" / "train-0.parquet", 0, 8, split=splits)
    parquet(tmp_path / "b" / "val-0.parquet", 8, 8)

    with pytest.raises(DataError, match=r'two\.parquet" has no column "split"'):
        open_data(str(tmp_path / "a"))
    with pytest.raises(DataError, match=r'val-0\.parquet" and .* both have the split "val"'):
        open_data(str(tmp_path / "b"))


def test_a_column_of_other_things_than_images_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [7, 8], "label": ["x", "y"]}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match='column "image" but int64; name another with --data'):
        open_data(str(tmp_path / "a.parquet"))


def test_a_path_that_no_file_can_have_is_a_bad_file(tmp_path: Path) -> None:
    rows = "path,label\na\0b.png,x\nc.png,x\nd.png,y\ne.png,y\n"
    data = write(tmp_path, rows, pictures("c.png", "d.png", "e.png"), "a.csv")

    bad = overview(data, open_data(data)).bad

    assert [(b.path, b.reason.partition(":")[0]) for b in bad] == [
        ("a\0b.png", f"no file can be called '{tmp_path}/a\\x00b.png'")
    ]


def test_numbers_are_the_same_label_with_and_without_zeros_before_them(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{'0' * (i // 2)}{i % 2 + 1}\n" for i in range(8))

    found = open_data(write(tmp_path, "path,label\n" + rows, {}, "a.csv"))

    assert found.train.classes == ("1", "2")
    assert set(listing(found.train).items()) <= {(f"{i}.png", str(i % 2 + 1)) for i in range(8)}


def test_labels_that_are_names_of_numbers_are_names(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("001\n002\n003\n")
    rows = ROWS.replace("ant", "001").replace("bee", "002")

    assert set(listing(open_data(write(tmp_path, rows, FILES)).train).values()) == {"001", "002"}


def test_a_label_outside_of_classes_txt_is_named(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ant\nbee\n")

    with pytest.raises(DataError, match="the label cow, but there are 2 classes: ant, bee"):
        open_data(write(tmp_path, ROWS.replace("bee,val", "cow,val"), FILES))


def test_parquet_files_in_the_hugging_face_layout_are_read_by_row(tmp_path: Path) -> None:
    parquet(tmp_path / "train-00000-of-00002.parquet", 0, 8)
    parquet(tmp_path / "train-00001-of-00002.parquet", 8, 7)
    parquet(tmp_path / "test-00000-of-00001.parquet", 100, 6)

    found = open_data(str(tmp_path))

    assert found.train.classes == ("ant", "bee", "cow")
    assert list(greys(found.train).values()) == list(range(15))
    assert list(greys(found.held_out).values()) == list(range(100, 106))
    assert [found.train.label(i) for i in range(15)] == [i % 3 for i in range(15)]
    assert found.train.name(9) == "train-00001-of-00002.parquet/1.png"
    assert largest_side(str(tmp_path)) == 4


def test_only_the_row_groups_used_last_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.data.layout.KEPT_BYTES", 1)
    parquet(tmp_path / "train-0.parquet", 0, 9)
    parquet(tmp_path / "val-0.parquet", 20, 3)

    train = open_data(str(tmp_path)).train

    assert list(greys(train).values()) == list(range(9))
    assert len(train.read_row.__self__.kept.pieces) == 1  # type: ignore[attr-defined]


def test_columns_may_be_named(tmp_path: Path) -> None:
    kinds = [str(i % 2) for i in range(8)]
    parquet(tmp_path / "data" / "all.parquet", 0, 8, kind=kinds)

    found = open_data(str(tmp_path), image_column="img", label_column="kind")

    assert found.train.classes == ("0", "1")
    with pytest.raises(DataError, match=r'"knd".*Did you mean "kind"'):
        open_data(str(tmp_path), label_column="knd")


def test_a_parquet_file_may_list_paths(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(6)]
    write(tmp_path, "", pictures(*names), "x.txt")
    table = pa.table({"path": names, "label": [i % 2 for i in range(6)]})
    pq.write_table(table, tmp_path / "a.parquet")

    found = open_data(str(tmp_path / "a.parquet"))

    assert {**greys(found.train), **greys(found.held_out)} == {f"{i}.png": i for i in range(6)}


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")

    with pytest.raises(DataError, match=r"a\.parquet.*no parquet file"):
        open_data(str(tmp_path / "a.parquet"))


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", 0, 3, labels=[0, None, 1])

    with pytest.raises(DataError, match=r"row 2.*no label"):
        open_data(str(tmp_path / "a.parquet"))


def test_what_lies_in_memory_is_read_like_a_local_file() -> None:
    memory = fsspec.filesystem("memory")
    files = {f"/set/{c}/{i}.png": picture(i) for c in ("cat", "dog") for i in range(3)}
    memory.pipe(files)
    memory.pipe("/table/split.csv", ROWS.encode())
    memory.pipe({f"/table/{name}": data for name, data in FILES.items()})

    folders, table = open_data("memory://set"), open_data("memory://table")

    assert len(folders.train) == 4 and greys(folders.train)
    assert greys(table.held_out) == {"b/2.png": 2}
    with pytest.raises(DataError, match="no data at"):
        open_data("memory://nowhere")
    with pytest.raises(DataError, match="cannot be reached"):
        open_data("nothing-known://x")


def test_a_tar_in_memory_is_read_by_range(tmp_path: Path) -> None:
    names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)]
    path = pack(tmp_path / "set.tar", pictures(*names))
    fsspec.filesystem("memory").pipe("/set.tar", path.read_bytes())

    found = open_data("memory://set.tar")

    assert found.digest == open_data(str(path)).digest
    assert {**greys(found.train), **greys(found.held_out)} == dict(
        zip(names, range(6), strict=True)
    )


def test_a_table_elsewhere_names_no_file_of_this_machine(tmp_path: Path) -> None:
    secret = tmp_path / "0.png"
    secret.write_bytes(picture())
    text = ROWS.replace("a/0.png", str(secret)).replace("a/1.png", "../x.png")
    fsspec.filesystem("memory").pipe("/far/split.csv", text.encode())

    train = open_data("memory://far").train

    for i in range(2):
        with pytest.raises(DataError, match="is not below"):
            train.read(i)


def test_a_data_set_of_the_hub_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    names = datasets.ClassLabel(names=["ant", "bee"])
    features = datasets.Features({"image": datasets.Image(), "label": names})

    def part(split: str, first: int) -> datasets.Dataset:
        rows = {
            "image": [{"bytes": picture(i), "path": None} for i in range(first, first + 4)],
            "label": [0, 1, 0, 1],
        }
        return datasets.Dataset.from_dict(rows, features=features, split=datasets.Split(split))

    asked = []

    def load(name: str, revision: str | None) -> datasets.DatasetDict:
        asked.append((name, revision))
        return datasets.DatasetDict(
            {"train": part("train", 0), "validation": part("validation", 4)}
        )

    monkeypatch.setattr(datasets, "load_dataset", load)

    found = open_data("hf:someone/insects@v1")

    assert asked == [("someone/insects", "v1")]
    assert found.train.classes == ("ant", "bee")
    assert greys(found.held_out) == {f"validation-{i}.png": 4 + i for i in range(4)}
    assert [found.train.label(i) for i in range(4)] == [0, 1, 0, 1]


def test_a_data_set_that_the_hub_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, revision: str | None) -> None:
        raise FileNotFoundError(f"Dataset {name} doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)

    with pytest.raises(DataError, match=r"hf:someone/insects.*doesn't exist"):
        open_data("hf:someone/insects")
    with pytest.raises(DataError, match="wanted is hf:OWNER/NAME"):
        open_data("hf:insects")


@given(
    labels=st.lists(st.integers(0, 5), min_size=12, max_size=60),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_holds_each_image_once_and_each_class_twice(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], share: float, seed: int
) -> None:
    labels = [*labels, *range(6), *range(6)]
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
    data = write(tmp_path_factory.mktemp("csv"), "path,label\n" + rows, {}, "a.csv")

    train, held_out, *_ = open_data(data, share, seed)

    both = [*listing(train).items(), *listing(held_out).items()]
    assert sorted(both) == sorted((f"{i}.png", str(label)) for i, label in enumerate(labels))
    for source in (train, held_out):
        assert set(listing(source).values()) == set("012345")
    assert open_data(data, share, seed).digest == open_data(data, share, seed).digest
