"""The command line: what a person types, what is told, and with which exit code."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from runs import write_photos
from vitrail import __version__
from vitrail.cli import VERBS, Train, main
from vitrail.errors import ConfigError
from vitrail.flags import SHORT, read_train
from vitrail.model.presets import preset, presets
from vitrail.training.recipe import Recipe, default_recipe, read_recipe

TINY = ["--model.width", "16", "--model.heads", "2", "--model.depth", "1", "--batch-size", "4"]


def recipe_of(*words: str) -> Recipe:
    """Give the recipe that `train` makes of these words."""
    return read_train(Train, "train", [*words]).tree


class Said(NamedTuple):
    """What a command gave: its exit code and both streams."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of ten noisy pictures, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return write_photos(Path("photos"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended; tests change nothing in it."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_photos(folder / "photos")
    assert main(["train", str(data), *TINY, "--epochs", "1", "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Any:
    def say(*words: object) -> Said:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return Said(code, str(out), str(err))

    return say


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("trian digits", 2, ['"trian"', '"train"']),
        ("train digits --epoch 3", 2, ["--epoch", "--epochs"]),
        ("train digits --optimizer.lrr=3", 2, ["--optimizer.lrr", "--optimizer.lr"]),
        ("predict nano x.png --tpo 3", 2, ["--tpo", "--top"]),
        ("train digits --model vit-ti61", 2, ['"vit-ti61"', '"vit-ti16"']),
        ("summary vit-ti61", 2, ['"vit-ti61"', '"vit-ti16"']),
        ("train digits --recipe digist", 2, ['"digist"', '"digits"']),
        ("train digits --recipe wrong.toml", 2, ["wrong.toml", "[train]", '"epoch"', '"epochs"']),
        ("train digits --recipe text.toml", 2, ["text.toml", "[model]", "a table"]),
        ("train digits --recipe number.toml", 2, ["number.toml", "preset", "3"]),
        ("train digits --model.width 30", 2, ["width 30", "4 heads", "28 and 32"]),
        ("train digits --model.image-size 9 9", 2, ["9 x 9", "patch size 2", "8 and 10"]),
        ("summary nano --image-size 9 9", 2, ["9 x 9", "patch size 2", "8 and 10"]),
        ("train photos --model.channels 2 --batch-size 4", 2, ["2", "1 or 3"]),
        ("train digits --optimizer.name admw", 2, ["admw", "adamw"]),
        ("train digits --epochs three", 2, ["three", "--train.epochs"]),
        ("train digits --epochs 0", 2, ["epochs is 0", "1 or more"]),
        ("train digits --seed 99999999999", 2, ["seed", "99999999999"]),
        ("train photos --batch-size 4 --data.held-out-share 0", 2, ["held_out_share"]),
        ("train photos --data.split-seed -1", 2, ["split_seed", "-1"]),
        ("train photos --batch-size 17", 2, ["17", "16", "--batch-size"]),
        ("train phottos", 2, ['"phottos"', '"photos"']),
        ("train nothing", 2, ["nothing", "holds no images in class folders"]),
        ("train file", 2, ['"file" is a file']),
        ("eval nano nowhere", 2, ['"nowhere"']),
        ("eval nano photos --batch-size 0", 2, ["batch", "0"]),
        ("eval nano photos", 2, ["dark", "does not know"]),
        ("predict nano", 2, ["no image to answer for"]),
        ("predict nano nothing", 2, ['"nothing" holds no image']),
        ("predict nano x.png --top 0", 2, ["top is 0"]),
        ("predict nano x.png --batch-size 0", 2, ["batch", "0"]),
        ("predict nowhere x.png", 2, ['no model "nowhere"']),
        ("predict dino-s16 x.png", 2, ["no classes"]),
        ("train photos --batch-size 4 --out file/run", 5, ["file/run", "cannot be written"]),
        ("train photos --batch-size 4 --out photos", 2, ["photos holds other files and no run"]),
        ("predict nano photos/dark/0.png -o file/x.csv", 5, ["x.csv", "cannot be written"]),
    ],
)
def test_a_mistake_is_told_in_one_message_with_its_code(
    words: str, code: int, told: list[str], say: Any
) -> None:
    Path("nothing/empty").mkdir(parents=True)
    Path("file").write_text("mine")
    Path("wrong.toml").write_text("[train]\nepoch = 3\n")
    Path("text.toml").write_text('model = "nano"\n')
    Path("number.toml").write_text("[model]\npreset = 3\n")

    said = say(*words.split())

    assert (said.code, said.out) == (code, "")
    assert [part for part in told if part not in said.err] == []
    assert "Traceback" not in said.err and "defect" not in said.err
    assert Path("file").read_text() == "mine"


def test_no_command_at_all_shows_the_help_and_is_a_mistake(say: Any) -> None:
    assert say() == Said(2, say("--help").out, "")


def test_help_and_version_answer(say: Any) -> None:
    assert say("--version") == Said(0, f"vitrail {__version__}\n", "")
    front = say("--help")
    assert front.code == 0 and all(f"  {verb} " in front.out for verb in VERBS)
    for verb in VERBS:
        said = say(verb, "--help")
        assert (said.code, said.err) == (0, "") and verb in said.out


def test_the_short_help_of_train_has_the_short_forms_and_the_long_one_every_leaf(say: Any) -> None:
    short, long = say("train", "--help"), say("train", "--help-all")

    assert (short.code, long.code) == (0, 0)
    assert all(flag in short.out for flag in [*SHORT, "--recipe", "--resume", "--model.*"])
    leaves = ["--train.drop.mlp", "--model.position-resize.mode", "--data.threads", "--ema.decay"]
    assert all(leaf in long.out and leaf not in short.out for leaf in leaves)


def test_short_forms_are_their_leaves() -> None:
    words = ["--epochs=3", "--batch-size", "8", "--lr=0.5", "--seed", "4", "--device", "cpu"]

    tree = recipe_of("digits", *words, "--dtype=bfloat16")

    assert (tree.train.epochs, tree.train.batch_size, tree.train.seed) == (3, 8, 4)
    assert (tree.optimizer.lr, tree.train.device, tree.train.dtype) == (0.5, "cpu", "bfloat16")


def test_a_flag_stands_over_the_recipe_and_leaves_the_rest_of_it() -> None:
    tree = recipe_of("digits", "--train.drop.mlp", "0.25")
    recipe = read_recipe("digits")

    assert tree.train.drop.mlp == 0.25
    assert (tree.model, tree.optimizer, tree.augment) == (
        recipe.model,
        recipe.optimizer,
        recipe.augment,
    )


@pytest.mark.parametrize(
    ("words", "name", "changes"),
    [
        ("", "nano", {}),
        ("--model.width 32", "nano", {"width": 32}),
        ("--model vit-ti16 --model.width 96", "vit-ti16", {"width": 96}),
        ("--model vit-s16 --model.patch-size 32", "vit-s16", {"patch_size": 32}),
        ("--model.width 32 --model.mlp-width 256", "nano", {"width": 32, "mlp_width": 256}),
        ("--model.width 32 --model.head-width 16", "nano", {"width": 32, "head_width": 16}),
        ("--model.mlp swiglu", "nano", {"mlp": "swiglu"}),
    ],
)
def test_a_preset_and_its_changes_make_the_model(
    words: str, name: str, changes: dict[str, Any]
) -> None:
    model = recipe_of("digits", *words.split()).model

    assert model == preset(name).replace(**changes)


def test_a_flag_is_held_against_the_recipe_that_it_changes() -> None:
    # 16 pixels fit into the 24 of this model, and not into the 8 of the default one.
    recipe = recipe_of("digits", "--recipe", "mnist", "--train.first-size", "16", "16")

    assert (recipe.train.first_size, recipe.model.image_size) == ((16, 16), (24, 24))
    with pytest.raises(ConfigError, match=r"whole patches of 4, and no more than .*\(24, 24\)"):
        recipe_of("digits", "--recipe", "mnist", "--train.first-size", "16", "18")


def test_photos_without_a_recipe_are_told_at_which_size_they_are_learned(say: Any) -> None:
    for i in range(4):
        Path(f"large/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60)).save(f"large/{i % 2}/{i}.png")

    assert "64 x 64 pixels" in say("train", "large", "--batch-size", 9).err
    assert "64 x 64 pixels" not in say("train", "large", "--print-recipe").err


def test_the_printed_recipe_reads_back(say: Any) -> None:
    said = say("train", "photos", "--epochs", 3, "--print-recipe")
    Path("mine.toml").write_text(said.out)
    again = say("train", "photos", "--recipe", "mine.toml", "--print-recipe")

    assert (said.code, again.out) == (0, said.out)
    recipe = read_recipe("mine.toml")
    assert (recipe.train.epochs, recipe.data.source) == (3, "photos")
    assert recipe.model == default_recipe("photos")[0].model
    assert not Path("runs").exists()


@pytest.mark.parametrize("verb", ["train", "eval", "predict", "summary", "presets", "doctor"])
def test_json_is_one_document_and_nothing_else(verb: str, trained: Path, say: Any) -> None:
    image = next((trained / "examples").iterdir())
    words = {
        "train": ["photos", *TINY, "--epochs", "1"],
        "eval": [trained, "photos"],
        "predict": [trained, "photos", image],
        "summary": [trained],
    }.get(verb, [])

    said = say(verb, *words, "--json")

    found = json.loads(said.out)
    keys = {
        "train": {"status", "step", "top1", "top5", "loss", "parameters", "seconds"},
        "eval": {"images", "failed", "top1", "top1_interval", "per_class", "confusion"},
        "summary": {"model", "image_size", "rows", "parameters", "macs", "activation_bytes"},
        "presets": set(presets()),
        "doctor": {"python", "packages", "cpu", "problems"},
        "predict": {"path", "error", "top"},
    }[verb]
    assert said.code == 0
    assert keys <= (found[0] if verb == "predict" else found).keys()
    # What was held out is told, and which engine was chosen.
    assert bool(said.err) == (verb in ("train", "eval", "predict"))
