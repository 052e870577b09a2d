"""What imports what: the order of the rooms, and what stays out of a quick start."""

import ast
import gc
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import vitrail

SRC = Path(vitrail.__file__).parent
FILES = sorted(SRC.rglob("*.py"))

# From the ground up: a room imports itself and what stands before it.
ROOMS = (
    "errors", "model", "data", "weights", "engines", "explaining", "inference", "reporting",
    "exporting", "serving", "training", "doctor", "flags", "verbs", "cli",
)  # fmt: skip
HEAVY = ("torch", "numpy", "PIL", "sklearn", "scipy", "safetensors", "matplotlib", "rich")


def room(module: str) -> str:
    """Give the room of `vitrail.ROOM.module`; the package itself is the ground."""
    return [*module.split("."), ""][1]


def module_of(file: Path) -> str:
    parts = file.relative_to(SRC).with_suffix("").parts
    return ".".join(["vitrail", *parts]).removesuffix(".__init__")


def imports(file: Path) -> Iterator[str]:
    """Give the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively"
            assert node.module is not None
            yield node.module
            # `from vitrail import errors` imports a room, `from vitrail import __version__` none.
            if node.module == "vitrail":
                yield from (f"vitrail.{a.name}" for a in node.names if a.name in ROOMS)


def outside(file: Path) -> set[str]:
    """Give the packages that a file imports and that come neither with Python nor from here."""
    tops = {name.partition(".")[0] for name in imports(file)}
    return tops - sys.stdlib_module_names - {"vitrail"}


def in_a_new_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout


def names_for_type_checkers() -> dict[str, str]:
    """Give the module of each name under `if TYPE_CHECKING:`."""
    tree = ast.parse((SRC / "__init__.py").read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    assert [ast.unparse(block.test) for block in blocks] == ["TYPE_CHECKING"]
    found = {}
    for node in blocks[0].body:
        assert isinstance(node, ast.ImportFrom) and node.module is not None
        found |= {alias.name: node.module for alias in node.names}
    return found


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = f"import vitrail, sys; print([m for m in {HEAVY} if m in sys.modules])"

    assert in_a_new_python(code) == "[]\n"


@pytest.mark.parametrize("name", sorted(names_for_type_checkers()))
def test_a_public_name_is_what_type_checkers_think_it_is(name: str) -> None:
    home = names_for_type_checkers()[name]

    assert getattr(vitrail, name) is getattr(import_module(home), name)
    assert name in dir(vitrail)


def test_type_checkers_and_python_know_the_same_names() -> None:
    assert names_for_type_checkers() == vitrail._MODULE_OF


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'vitrail' has no attribute 'ViTT'"):
        _ = vitrail.ViTT
    with pytest.raises(ImportError, match="cannot import name 'ViTT'"):
        exec("from vitrail import ViTT")


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_rests_while_a_name_is_imported(
    is_enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def imported(module: str) -> object:
        seen.append(gc.isenabled())
        if module != "vitrail.model.presets":
            raise ImportError(module)
        return import_module(module)

    monkeypatch.setattr(vitrail, "import_module", imported)
    monkeypatch.delitem(vars(vitrail), "presets", raising=False)
    monkeypatch.delitem(vars(vitrail), "load", raising=False)
    was_enabled = gc.isenabled()
    try:
        (gc.enable if is_enabled else gc.disable)()
        assert callable(vitrail.presets)
        with pytest.raises(ImportError):
            _ = vitrail.load
        after = gc.isenabled()
    finally:
        (gc.enable if was_enabled else gc.disable)()

    assert seen == [False, False] and after == is_enabled


@pytest.mark.slow
def test_rooms_that_were_loaded_do_not_hide_public_functions() -> None:
    code = (
        "import vitrail, vitrail.training.loop, vitrail.inference.predict, vitrail.model.shapes;"
        "print(*(callable(getattr(vitrail, n)) for n in ('train', 'predict', 'summary', 'load')))"
    )

    assert in_a_new_python(code) == "True True True True\n"


def test_every_file_is_in_a_room_that_the_house_has() -> None:
    assert len(FILES) > 30
    assert {room(module_of(file)) for file in FILES} - {""} <= set(ROOMS)


def test_packages_are_empty_but_the_top_one() -> None:
    inits = [file for file in FILES if file.name == "__init__.py" and file.parent != SRC]

    assert [file for file in inits if file.read_bytes()] == []


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_no_import_runs_up_the_street(file: Path) -> None:
    here = room(module_of(file))
    if not here:  # the top loads on first use
        return

    above = [
        name
        for name in imports(file)
        if name.startswith("vitrail.") and ROOMS.index(room(name)) > ROOMS.index(here)
    ]

    assert above == []


def test_the_model_imports_torch_and_einops_alone() -> None:
    for file in FILES:
        if room(module_of(file)) == "model":
            assert outside(file) <= {"torch", "einops"}, file
            rooms = {room(name) for name in imports(file) if name.startswith("vitrail")}
            assert rooms <= {"model", "errors"}, file


def test_data_knows_no_model() -> None:
    for file in FILES:
        if room(module_of(file)) == "data":
            assert not any(room(name) == "model" for name in imports(file)), file


@pytest.mark.parametrize(
    ("packages", "rooms"),
    [
        ({"safetensors"}, set()),  # the format is read and written here: a piece at a time
        ({"tyro", "argparse", "click"}, {"flags", "verbs"}),
    ],
)
def test_weights_need_no_library_and_the_command_line_alone_reads_flags(
    packages: set[str], rooms: set[str]
) -> None:
    users = {
        room(module_of(file))
        for file in FILES
        if packages & {name.partition(".")[0] for name in imports(file)}
    }

    assert users == rooms


def test_every_package_that_is_imported_is_declared() -> None:
    known = {"torch", "numpy", "einops", "PIL", "huggingface_hub", "tyro", "rich", "matplotlib",
             "jinja2", "markupsafe", "sklearn", "scipy", "simplejpeg",
             "fsspec"}  # fmt: skip
    # What a certificate compares with, where it is installed.
    peers = {"timm", "transformers", "torchvision", "vit_pytorch", "open_clip"}
    server = {"fastapi", "starlette", "pydantic", "uvicorn", "h11", "python_multipart"}
    extras = {"pyarrow", "datasets", "wandb", "ray", "openvino", "onnx", "onnxruntime"} | server

    assert {package for file in FILES for package in outside(file)} <= known | peers | extras


def test_what_answers_before_a_run_imports_no_torch() -> None:
    quick = (
        "vitrail.errors", "vitrail.model.config", "vitrail.model.checks", "vitrail.model.presets",
        "vitrail.training.recipe", "vitrail.data.address", "vitrail.data.config",
        "vitrail.weights.origin", "vitrail.engines.names", "vitrail.exporting.target",
        "vitrail.flags", "vitrail.cli",
    )  # fmt: skip
    code = (
        "import sys; from importlib import import_module\n"
        f"for name in {quick}:\n"
        "    import_module(name)\n"
        f"    print(name, *(m for m in {HEAVY} if m in sys.modules))"
    )

    assert in_a_new_python(code).splitlines() == list(quick)
