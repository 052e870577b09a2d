import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub import ModelCard, close_session, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from conftest import TINY, randomize
from hub_server import READER, WRITER, Hub, Repository
from vitrail.data.preprocess import Preprocess
from vitrail.errors import OutputError, WeightsError
from vitrail.model.vit import ViT
from vitrail.weights import hub_client
from vitrail.weights.bundle import Bundle
from vitrail.weights.card import model_card
from vitrail.weights.hub import fetch, push, timm_repository
from vitrail.weights.loading import load

VIT = "google/vit"
FILES = {
    "README.md": b"# A model",
    "config.json": b"{}",
    "preprocessor_config.json": b"{}",
    "model.safetensors": b"weights" * 100,
    "pytorch_model.bin": b"the same as a pickle",
    "onnx/model.safetensors": b"in a folder",
}
WANTED = ["config.json", "model.safetensors", "preprocessor_config.json"]

# The client's own way to send a file.
uploads = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Give a hub that the client in this process talks to, with a cache and tokens of its own."""
    with Hub().running() as hub:
        home = tmp_path / "home"
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        yield hub
        close_session()


@pytest.fixture
def bundle() -> Bundle:
    return Bundle(
        model=randomize(ViT(TINY)).eval(),
        preprocess=Preprocess(size=TINY.image_size, crop=0.875, mean=(0.4, 0.5, 0.6)),
        labels=("a|b", "c\nd", "<i>", "*", "é", "_f_", "7", "8", "9"),
        origin={
            "run": "/home/someone/runs/photos-1",
            "data": "/home/someone/photos",
            "held_out_share": 0.2,
            "split_seed": 0,
            "step": 12,
        },
        metrics={"top1": 0.75, "top5": 0.9, "loss": 1.25},
    )


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# What is fetched.


def test_what_is_needed_is_fetched_and_nothing_else(hub: Hub) -> None:
    hub.add(VIT, FILES)

    folder = fetch(VIT)

    assert names(folder) == WANTED
    assert all((folder / name).read_bytes() == FILES[name] for name in WANTED)


def test_what_the_cache_has_is_not_brought_again(hub: Hub) -> None:
    hub.add(VIT, FILES)
    first = fetch(VIT)
    hub.requests.clear()

    second = fetch(VIT)

    assert second == first
    assert hub.requests == [f"GET /api/models/{VIT}"]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ("pytorch_model.bin open_clip_pytorch_model.bin", "open_clip_pytorch_model.bin"),
        ("open_clip_pytorch_model.bin open_clip_model.safetensors", "open_clip_model.safetensors"),
        ("pytorch_model.bin training_args.pt", "pytorch_model.bin"),
        ("ViT-B_16.npz README.md", "ViT-B_16.npz"),
        ("checkpoint.pth config.yaml", "checkpoint.pth"),
        ("a.safetensors folder/b.safetensors", "a.safetensors"),
    ],
)
def test_one_weight_file_is_chosen(hub: Hub, there: str, taken: str) -> None:
    hub.add(VIT, {name: name.encode() for name in there.split()})

    assert names(fetch(VIT)) == [taken]


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_brings_all_of_its_shards(hub: Hub, kind: str) -> None:
    index = {"weight_map": {"a": "part-1", "b": "part-2", "c": "part-1"}}
    files = {f"{kind}.index.json": json.dumps(index).encode(), "part-1": b"1", "part-2": b"2"}
    hub.add(VIT, {**files, "part-3": b"of something else"})

    assert names(fetch(VIT)) == sorted(files)


@pytest.mark.parametrize(
    ("files", "telling"),
    [
        ({}, "no file"),
        ({"README.md": b"", "model.h5": b""}, "model.h5"),
        ({"a.pth": b"", "b.pth": b""}, r"several weight files.*\n  a.pth\n  b.pth"),
        ({"model.safetensors.index.json": b"{}"}, "weight_map"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "x"}}'}, r"not there:\n  x"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../../x"}}'}, "not there"),
    ],
)
def test_a_repository_without_one_set_of_weights_lists_what_it_has(
    hub: Hub, files: dict[str, bytes], telling: str
) -> None:
    hub.add(VIT, files)

    with pytest.raises(WeightsError, match=telling):
        fetch(VIT)


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub) -> None:
    repository = hub.add(VIT, {"model.safetensors": b"first"})
    commit = repository.refs["v1.0"] = repository.refs["main"]
    repository.commit({"model.safetensors": b"second"}, "refs/pr/1")
    hub.add(VIT, {"model.safetensors": b"third"})

    found = {r: fetch(VIT, r) / "model.safetensors" for r in ("v1.0", commit, "refs/pr/1", None)}

    assert [file.read_bytes() for file in found.values()] == [
        b"first",
        b"first",
        b"second",
        b"third",
    ]


# Without the hub.


class Client(NamedTuple):
    """A Python of its own, which reads the environment as a user's does."""

    home: Path
    url: str

    def __call__(self, call: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.url, "NO_PROXY": "127.0.0.1"}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        code = f"from vitrail.weights.hub import fetch; print({call})"
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**kept, **settings, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )


def test_the_environment_says_where_the_hub_and_the_cache_are(tmp_path: Path) -> None:
    with Hub().running() as hub:
        hub.add(VIT, FILES, gated=True)
        client = Client(tmp_path / "home", hub.url)
        online = client(f"fetch('{VIT}')", HF_TOKEN=READER)
        seen = list(hub.requests)
    offline = client(f"fetch('{VIT}')", HF_HUB_OFFLINE="1")
    unreachable = client(f"fetch('{VIT}')")

    folder = Path(online.stdout.strip())
    assert (online.returncode, online.stderr) == (0, "")
    assert names(folder) == WANTED
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert {request.rpartition("/")[2] for request in seen} == {"vit", *WANTED}
    assert (offline.stdout, offline.stderr) == (online.stdout, "")
    assert unreachable.stdout == online.stdout
    assert "The copy in the cache is used" in unreachable.stderr


def test_importing_the_hub_imports_no_client_and_no_torch() -> None:
    code = "import sys, vitrail.weights.hub, vitrail.weights.card; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not {"torch", "huggingface_hub", "safetensors"} & set(done.stdout.split())


def test_offline_nothing_is_requested(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = hub.add(VIT, FILES)
    hub.add("timm/vit_tiny.a1", FILES)
    commit = repository.refs["main"]
    online = fetch(VIT)
    fetch("timm/vit_tiny.a1")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert fetch(VIT) == fetch(VIT, commit) == online
    assert timm_repository("vit_tiny") == "timm/vit_tiny.a1"
    with pytest.raises(WeightsError, match=r'"v2" is not in the cache.*HF_HUB_OFFLINE'):
        fetch(VIT, "v2")
    with pytest.raises(WeightsError, match=r"google/other.*not in the cache.*HF_HUB_OFFLINE"):
        fetch("google/other")
    with pytest.raises(WeightsError, match="in the cache, and HF_HUB_OFFLINE is set"):
        timm_repository("vit_small")
    assert hub.requests == []


def test_offline_a_part_of_a_repository_is_not_taken_for_the_whole(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(VIT, FILES)
    (fetch(VIT) / "model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(WeightsError, match=r"holds no weights(.|\n)*without HF_HUB_OFFLINE"):
        fetch(VIT)


def test_what_was_not_brought_whole_is_not_remembered(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(VIT, FILES)
    hub.short.add("model.safetensors")
    with pytest.raises(WeightsError, match="incomplete"):
        fetch(VIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(WeightsError, match="not in the cache"):
        fetch(VIT)


# What goes wrong.


@pytest.mark.parametrize(
    ("name", "revision", "telling"),
    [
        ("google/unknown", None, "google/unknown is not there, or is private.*HF_TOKEN"),
        ("google/private", None, "is not there, or is private.*HF_TOKEN"),
        ("google/gated", None, "google/gated is gated.*HF_TOKEN"),
        (VIT, "v9", 'no branch, tag or commit "v9"'),
        (VIT, "0" * 40, "no branch, tag or commit"),
    ],
)
@pytest.mark.parametrize("token", [None, WRITER[:-1]])
def test_what_the_hub_does_not_give_is_told_with_what_to_do(
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    revision: str | None,
    telling: str,
    token: str | None,
) -> None:
    hub.add(VIT, FILES)
    hub.add("google/private", FILES, private=True)
    hub.add("google/gated", FILES, gated=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)

    with pytest.raises(WeightsError, match=telling):
        fetch(name, revision)


@pytest.mark.parametrize("status", [500, 503, 401, 403, 418, 429])
@pytest.mark.parametrize("path", ["/api/models", "/resolve/"])
def test_a_status_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before the client tries again
    hub.add(VIT, FILES)
    hub.status[path] = status

    with pytest.raises(WeightsError, match=rf"HTTP {status}|is not there, or is private"):
        fetch(VIT)


def test_no_network_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")

    with pytest.raises(WeightsError, match=r"127.0.0.1:1 gives no usable answer.*refused.*network"):
        fetch(VIT)


def test_a_server_that_is_no_hub_is_told(hub: Hub) -> None:
    hub.status["/api/models"] = 200

    with pytest.raises(WeightsError, match=r"no usable answer.*HF_ENDPOINT"):
        fetch(VIT)


@pytest.mark.parametrize("path", ["/api/models", "/resolve/"])
def test_silence_ends(hub: Hub, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add(VIT, FILES)
    hub.silent.add(path)

    with pytest.raises(WeightsError, match=r"no usable answer.*timed out"):
        fetch(VIT)


def test_a_file_that_comes_short_is_refused_and_not_kept(hub: Hub) -> None:
    hub.add(VIT, FILES)
    hub.short.add("model.safetensors")
    with pytest.raises(WeightsError, match=r"incomplete: .* size 700 but has size 350.*try again"):
        fetch(VIT)
    hub.short.clear()

    assert (fetch(VIT) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_connection_that_breaks_is_taken_up_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add(VIT, FILES)
    hub.broken.add("model.safetensors")

    folder = fetch(VIT)

    assert not hub.broken
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_cache_that_cannot_be_written_is_told(hub: Hub) -> None:
    hub.add(VIT, FILES)
    home = Path(constants.HF_HOME)
    home.write_text("a file where a folder should be")

    with pytest.raises(OutputError, match=rf"{home}.* cannot be written"):
        fetch(VIT)


NAMES = ("a/b", "A-1/b_c.d", "a" * 96 + "/b", "vit", "a/b/c", "a/", "/b", "a/b--c", "a/b..c",
         "a/b.git", "-a/b", "a/b.", "é/b", "a b/c", "../b", "a/b\n", "",
         "a/" + "b" * 97)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_is_refused_before_a_request(hub: Hub, name: str) -> None:
    try:
        validate_repo_id(name)
        possible = "/" in name
    except HFValidationError:
        possible = False

    with pytest.raises(WeightsError, match="is not there" if possible else "OWNER/NAME"):
        fetch(name)
    assert bool(hub.requests) == possible


def test_the_address_of_a_page_is_answered_with_the_name() -> None:
    with pytest.raises(WeightsError, match='Did you mean "google/vit"'):
        fetch("https://huggingface.co/google/vit/tree/main")


@pytest.mark.parametrize("revision", ["", "../main", "/main", "a b", "main/", "a/../b"])
def test_a_revision_that_cannot_be_is_refused_before_a_request(hub: Hub, revision: str) -> None:
    with pytest.raises(WeightsError, match="is no revision"):
        fetch(VIT, revision)
    assert hub.requests == []


# The models of timm.


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("vit_tiny", "timm/vit_tiny.augreg"),
        ("vit_small.dino", "timm/vit_small.dino"),
        ("ViT-B-16-SigLIP", "timm/ViT-B-16-SigLIP"),
    ],
)
def test_a_model_of_timm_is_found_by_its_name(hub: Hub, name: str, found: str) -> None:
    for there in ("vit_tiny.augreg", "vit_tiny_r.a1", "vit_small.dino", "ViT-B-16-SigLIP"):
        hub.add(f"timm/{there}", FILES)

    assert timm_repository(name) == found


def test_several_trainings_of_a_model_of_timm_are_listed(hub: Hub) -> None:
    hub.add("timm/vit_tiny.a1", FILES)
    hub.add("timm/vit_tiny.a2", FILES)

    with pytest.raises(WeightsError, match=r"name one:\n  timm:vit_tiny.a1\n  timm:vit_tiny.a2"):
        timm_repository("vit_tiny")
    with pytest.raises(WeightsError, match=r'on the hub. Did you mean "vit_tiny.a'):
        timm_repository("vit_tinny")


# Pushing.


@uploads
def test_what_is_pushed_is_what_is_fetched(
    hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)

    url = push(bundle, "somebody/photos")
    found = load(fetch("somebody/photos"))

    commit = hub.repositories["somebody/photos"].refs["main"]
    assert url == f"{hub.url}/somebody/photos/commit/{commit}"
    ours, theirs = bundle.model.state_dict(), found.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.labels == bundle.labels and found.preprocess == bundle.preprocess
    assert found.metrics == bundle.metrics
    assert capfd.readouterr() == ("", "")  # no progress bar where there is no terminal


@uploads
def test_a_path_of_this_machine_is_not_published(
    hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)

    push(bundle, "somebody/photos")

    files = hub.repositories["somebody/photos"].files("main")
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert not any(b"/home/" in data for data in files.values())
    assert json.loads(files["config.json"])["origin"]["data"] == "photos"


@uploads
def test_a_branch_that_is_missing_is_made(
    hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub.add("somebody/photos", {"README.md": b"the first"})

    push(bundle, "somebody/photos", revision="better", message="Better")

    repository = hub.repositories["somebody/photos"]
    assert repository.files("main") == {"README.md": b"the first"}
    assert "model.safetensors" in repository.files("better")


@uploads
def test_what_should_be_private_is_not_put_in_public(
    hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub.add("somebody/public", {"README.md": b"for all"})

    push(bundle, "somebody/new", private=True)
    with pytest.raises(OutputError, match="is public: nothing was uploaded"):
        push(bundle, "somebody/public", private=True)

    assert hub.repositories["somebody/new"].private
    assert hub.repositories["somebody/public"].files("main") == {"README.md": b"for all"}


@pytest.mark.parametrize(
    ("token", "repository", "telling"),
    [
        (None, "somebody/photos", "wants a token.*hf auth login.*HF_TOKEN"),
        ("hf_unknown", "somebody/photos", "knows no such token.*HF_TOKEN"),
        (READER, "somebody/photos", "no right.*HTTP 403.*HF_TOKEN"),
        (WRITER, "nobody/photos", "no right.*HTTP 403.*HF_TOKEN"),
    ],
)
def test_who_may_not_write_is_told_what_to_do(
    hub: Hub,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    repository: str,
    telling: str,
) -> None:
    hub.repositories["somebody/photos"] = Repository()
    if token:
        monkeypatch.setenv("HF_TOKEN", token)

    with pytest.raises(OutputError, match=telling):
        push(bundle, repository)


def test_a_push_that_gets_no_answer_ends(
    hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(hub_client, "SECONDS_TO_WRITE", 0.05)
    hub.silent.add("/api/repos/create")

    with pytest.raises(OutputError, match=r"no usable answer.*timed out"):
        push(bundle, "somebody/photos")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match="HF_HUB_OFFLINE"):
        push(bundle, "somebody/photos")


def test_a_card_that_the_hub_does_not_take_is_told(
    hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub.status["/api/validate-yaml"] = 400

    with pytest.raises(OutputError, match=r"the hub refuses \(HTTP 400.*the test says so"):
        push(replace(bundle, origin={"license": "none of theirs"}), "somebody/photos")


# The model card.


def test_the_card_tells_what_the_bundle_knows(bundle: Bundle) -> None:
    card = ModelCard(model_card(bundle, "somebody/photos"))

    facts = card.data.to_dict()
    assert facts["library_name"] == "vitrail"
    assert facts["pipeline_tag"] == "image-classification"
    assert facts["tags"] == ["vision-transformer"]
    assert "license" not in facts
    result = facts["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "photos"
    assert result["metrics"] == [{"type": "accuracy", "value": 0.75, "name": "top-1 accuracy"}]
    parameters = sum(p.numel() for p in bundle.model.parameters())
    for told in (
        f"{parameters:,} parameters", "9 classes", "| depth | 2 |", "40 x 56 (height x width)",
        "cover 46 x 64 pixels, and its centre of 40 x 56", "mean 0.4, 0.5, 0.6",
        "| steps taken | 12 |", "| top-5 accuracy | 0.9 |", "held out of the training",
        'vitrail.load("hf:somebody/photos")', "vitrail predict hf:somebody/photos photo.jpg",
        "No license is recorded", "- 0: a\\|b\n- 1: c d\n- 2: \\<i\\>\n- 3: \\*\n",
    ):  # fmt: skip
        assert told in card.text, told


def test_the_card_makes_nothing_up(bundle: Bundle) -> None:
    model = randomize(ViT(TINY.replace(classes=0)))
    bare = Bundle(model=model, preprocess=bundle.preprocess, labels=())

    card = ModelCard(model_card(bare, "somebody/features"))

    assert card.data.to_dict() == {
        "library_name": "vitrail",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["vision-transformer"],
    }
    assert "This is not recorded." in card.text
    assert "No measurement is recorded." in card.text
    assert "Classes" not in card.text and "predict" not in card.text
    assert "24 features" in card.text


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ({"license": "mit", "data": "hf:org/birds"}, "license: mit"),
        ({"license": "mit", "data": "hf:org/birds"}, "datasets: org/birds"),
        ({"preset": "nano"}, "the weights are random"),
        ({"data": "photos"}, "on which images is not"),
        ({"weights": "hf:google/vit", "dialect": "huggingface"}, "| weights | hf:google/vit |"),
    ],
)
def test_the_card_says_where_the_weights_come_from(
    bundle: Bundle, origin: dict[str, Any], told: str
) -> None:
    assert told in model_card(replace(bundle, origin=origin), "somebody/photos")


@pytest.mark.parametrize("count", [21, 1001])
def test_many_classes_are_folded(bundle: Bundle, count: int) -> None:
    model = ViT(TINY.replace(classes=count))
    labels = tuple(f"class-{i}" for i in range(count))

    card = model_card(replace(bundle, model=model, labels=labels), "somebody/many")

    assert f"<summary>{count} classes</summary>" in card
    assert ("and 1 more, in `config.json`" in card) == (count == 1001)
