"""What a user can cause, one kind for each exit code, and the checks of every configuration.

A message has three parts: what was found, what was wanted, what to do. The command line prints
it without a traceback; anything that is not a `VitrailError` is a defect of ours and exits 1.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

UNIONS = (UnionType, Union)  # of `X | None`; before Python 3.14 one with a Literal is the other


class VitrailError(Exception):
    """Base of every error that a user can cause."""

    exit_code = 1
    quiet = False  # another process of the run tells it


class ConfigError(VitrailError):
    """A configuration, recipe, flag or argument that cannot work."""

    exit_code = 2


class DataError(VitrailError):
    """Data that is missing, empty or cannot be read."""

    exit_code = 2


class WeightsError(VitrailError):
    """A weight file or bundle that does not fit, or is not one."""

    exit_code = 2


class UnsafeError(VitrailError):
    """A file that was refused: opening it could run code, or reach outside of it."""

    exit_code = 3


class NonFiniteError(VitrailError):
    """Training that met a loss, gradient or weight that is not finite."""

    exit_code = 4


class OutputError(VitrailError):
    """A folder or file that cannot be written."""

    exit_code = 5


def nearest(word: str, choices: Iterable[str]) -> str:
    """Give ` Did you mean "..."?` for the closest of `choices`, or nothing where none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f' Did you mean "{by_lower[close[0]]}"?' if close else ""


def check_names(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Raise `ConfigError` with the nearest right word where a name is no field of `owner`."""
    known = list(known)
    for name in given:
        if name not in known:
            raise ConfigError(f'{owner} has no "{name}".{nearest(name, known)}')


def check_types(config: object) -> None:
    """Raise `ConfigError` where a dataclass holds a value that its annotation does not allow."""
    owner = type(config)
    check_values({name: getattr(config, name) for name in get_type_hints(owner)}, owner)


def check_values(values: Mapping[str, object], owner: type) -> None:
    """Raise `ConfigError` where a value is not what the field of `owner` with its name allows."""
    hints = get_type_hints(owner)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ConfigError(f"{name} is {value!r}; it should be {_wanted(value, hints[name])}")


def check_range(
    config: object, names: str, low: float, high: float = float("inf"), *, open_low: bool = False
) -> None:
    """Raise `ConfigError` where one of the fields `names` is below `low` or above `high`.

    With `open_low` it must be above `low` itself; an absent value, None, passes.
    """
    for name in names.split():
        value = getattr(config, name)
        if value is None or (
            value != float("inf") and (low < value <= high if open_low else low <= value <= high)
        ):
            continue
        wanted = f"above {low}" if open_low else f"{low} or more"
        if high != float("inf"):
            wanted = f"above {low}, at most {high}" if open_low else f"from {low} to {high}"
        raise ConfigError(f"{name} is {value}; it should be {wanted}")


def check_counts(**counts: object) -> None:
    """Raise `ConfigError` where one of these is no whole number, or below 1."""
    for name, value in counts.items():
        if not is_whole(value):
            raise ConfigError(f"{name} is {value!r}; it should be a whole number, 1 or more")
        if value < 1:
            raise ConfigError(f"{name} is {value}; it should be 1 or more")


def is_whole(value: object) -> TypeGuard[int]:
    """Say whether a value is a whole number, of Python or of numpy; true and false are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in UNIONS:
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and [type(v) for v in value] == list(get_args(hint))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _wanted(value: object, hint: Any) -> str:
    if get_origin(hint) is Literal:
        choices = [str(choice) for choice in get_args(hint)]
        return f"one of {', '.join(choices)}.{nearest(str(value), choices)}"
    if get_origin(hint) in UNIONS:  # a list of choices ends in a question: it comes last
        choices = sorted(get_args(hint), key=lambda choice: get_origin(choice) is Literal)
        return " or ".join(_wanted(value, choice) for choice in choices)
    if get_origin(hint) is tuple:
        return f"{len(get_args(hint))} whole numbers, such as (224, 160)"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return "absent" if hint is NoneType else words.get(hint, getattr(hint, "__name__", str(hint)))
