import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_sets import greys, listing, pack, picture, pictures
from vitrail.data.archives import tar_index
from vitrail.data.sources import open_data
from vitrail.data.storage import read_range
from vitrail.errors import DataError, UnsafeError

CATS = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)]


@pytest.mark.parametrize("top", ["", "./", "photos/", "a/b/"])
def test_a_tar_of_class_folders_reads_as_the_folder_does(tmp_path: Path, top: str) -> None:
    path = pack(tmp_path / "set.tar", {top + k: v for k, v in pictures(*CATS).items()})

    train, held_out, *_ = open_data(str(path))

    assert {**listing(train), **listing(held_out)} == {n: n.split("/")[0] for n in CATS}
    assert {**greys(train), **greys(held_out)} == {n: i for i, n in enumerate(CATS)}


def test_a_tar_may_hold_splits(tmp_path: Path) -> None:
    names = ["train/cat/1.png", "train/dog/2.png", "val/dog/3.png", "test/cat/4.png"]

    found = open_data(str(pack(tmp_path / "set.tar", pictures(*names))))

    assert listing(found.train) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert listing(found.held_out) == {"dog/3.png": "dog"}
    assert found.test is not None and listing(found.test) == {"cat/4.png": "cat"}
    assert "no image of cat" in found.notes[0]


@pytest.mark.parametrize("place", ["inside", "beside", "folder"])
def test_a_split_csv_of_a_tar_is_followed(tmp_path: Path, place: str) -> None:
    rows = [f"{name},{name[0] == 'd':d},{'val' if '4' in name else 'train'}" for name in CATS]
    text = "\n".join(["path,label,split", *rows]).encode()
    files = {f"set/{name}": data for name, data in pictures(*CATS).items()}
    if place == "inside":
        files["set/split.csv"] = text
    else:
        (tmp_path / "split.csv").write_bytes(text)
    path = pack(tmp_path / "set.tar", files)

    train, held_out, *_ = open_data(str(tmp_path if place == "folder" else path))

    assert train.classes == ("cat", "dog")  # as their folders are called
    assert listing(held_out) == {"cat/4.png": "cat", "dog/4.png": "dog"}
    assert greys(held_out) == {"cat/4.png": 4, "dog/4.png": 9}
    assert len(train) == 8


def test_a_split_csv_that_lists_what_the_tar_lacks_is_refused(tmp_path: Path) -> None:
    text = b"path,label,split\ncat/0.png,cat,train\nemu/9.png,emu,val\n"

    with pytest.raises(DataError, match=r"lists 1 images .*emu/9\.png"):
        open_data(str(pack(tmp_path / "set.tar", {**pictures(*CATS), "split.csv": text})))


def test_paths_of_a_split_csv_may_begin_with_a_dot(tmp_path: Path) -> None:
    text = b"path,label,split\n./cat/0.png,x,train\n./cat/1.png,y,train\n./cat/2.png,x,val\n"
    data = str(pack(tmp_path / "set.tar", {**pictures(*CATS), "split.csv": text}))

    assert list(greys(open_data(data).train).values()) == [0, 1]


def test_the_columns_of_a_tar_s_split_csv_may_be_named(tmp_path: Path) -> None:
    text = b"fname,species,split\ncat/0.png,x,train\ncat/1.png,y,train\ncat/2.png,x,val\n"
    path = str(pack(tmp_path / "set.tar", {**pictures(*CATS), "split.csv": text}))

    with pytest.raises(DataError, match=r"--data\.image-column"):
        open_data(path)
    found = open_data(path, image_column="fname", label_column="species")

    assert listing(found.train) == {"cat/0.png": "x", "cat/1.png": "y"}


@pytest.mark.parametrize("name", ["../cat/1.png", "cat/../../1.png", "/etc/cat/1.png"])
def test_a_member_outside_of_the_archive_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "in" / "set.tar", {**pictures(*CATS), name: picture()})

    with pytest.raises(UnsafeError, match=name.replace(".", r"\.")):
        open_data(str(path))

    assert [file.name for file in tmp_path.rglob("*")] == ["in", "set.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_a_device_is_refused_by_name(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        member = tarfile.TarInfo("cat/link.png")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)

    with pytest.raises(UnsafeError, match=r"cat/link\.png"):
        open_data(str(tmp_path / "set.tar"))


def test_a_compressed_tar_called_tar_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = pack(tmp_path / "set.tar", pictures(*CATS))
    path.write_bytes(gzip.compress(path.read_bytes()))

    with pytest.raises(DataError, match=r"gzip.*unpack it"):
        open_data(str(path))


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.37, 0.45])
def test_a_tar_that_was_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = pack(tmp_path / "set.tar", pictures(*CATS))
    end = tar_index(str(path)).starts[-1] + 512
    path.write_bytes(path.read_bytes()[: int(share * 2 * end)])

    with pytest.raises(DataError, match=r"cut short|no tar"):
        open_data(str(path))


def test_a_damaged_header_in_the_middle_does_not_end_the_listing_in_silence(
    tmp_path: Path,
) -> None:
    path = pack(tmp_path / "set.tar", pictures(*CATS))
    data = bytearray(path.read_bytes())
    data[5 * 1024 : 5 * 1024 + 512] = b"x" * 512
    path.write_bytes(data)

    with pytest.raises(DataError, match="damaged"):
        open_data(str(path))


def test_hidden_members_and_what_is_no_image_are_counted(tmp_path: Path) -> None:
    strange = {"cat/._1.png": b"", "__MACOSX/cat/1.png": b"", "cat/notes.txt": b""}

    found = open_data(str(pack(tmp_path / "set.tar", {**pictures(*CATS), **strange})))

    assert len(found.train) + len(found.held_out) == 10
    assert "2 hidden" in found.notes[0] and "1 without the name of an image" in found.notes[0]


@given(
    files=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="/\0."), min_size=1).map(
            lambda name: f"a{name}b"
        ),
        st.binary(max_size=2000),
        max_size=8,
    ),
    kind=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_the_index_of_a_tar_finds_every_byte(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], kind: int
) -> None:
    path = tmp_path_factory.mktemp("tar") / "set.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

    names, starts, lengths = tar_index(str(path))

    found = {
        names[i]: read_range(str(path), int(starts[i]), int(lengths[i])) for i in range(len(names))
    }
    assert found == files
