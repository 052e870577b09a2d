"""Which engines there are and what each needs; nothing of theirs is imported, nor torch."""

from importlib.util import find_spec

from vitrail.errors import ConfigError, nearest

# What is imported beside torch, and the extra of vitrail that installs it.
_NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": ((), ""),
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "export"),
    "openvino": (("openvino",), "openvino"),
}
ENGINES = tuple(_NEEDS)
# What each can compute in, where the processor can.
DTYPES = {
    "torch": ("float32", "bfloat16", "float16"),
    "onnx": ("float32",),
    "openvino": ("float32", "bfloat16"),
}


def is_installed(name: str) -> bool:
    """Say whether all that the engine needs can be imported."""
    return not _missing(name)


def check_engine(name: str, device: str = "auto", merge: int = 0, aspect: bool = False) -> None:
    """Raise `ConfigError` for an engine that there is not, not here, or not for what is asked."""
    if name == "auto":
        return
    if name not in ENGINES:
        raise ConfigError(
            f'there is no engine "{name}", but {", ".join(ENGINES)}.{nearest(name, ENGINES)}'
        )
    if name != "torch" and device not in ("auto", "cpu"):
        raise ConfigError(
            f'engine "{name}" runs on the CPU, not on "{device}": leave the device out, or take '
            'engine "torch"'
        )
    if name != "torch" and (merge or aspect):
        asked = "merge" if merge else "aspect"
        raise ConfigError(
            f'engine "{name}" has no {asked}: leave it out, or take engine "torch", which has'
        )
    if missing := _missing(name):
        raise ConfigError(
            f'engine "{name}" needs {" and ".join(missing)}, not installed here: '
            f"pip install 'vitrail[{_NEEDS[name][1]}]'"
        )


def _missing(name: str) -> list[str]:
    return [package for package in _NEEDS[name][0] if find_spec(package) is None]
