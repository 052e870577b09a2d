"""What a user can cause, one kind for each exit code of the command line.

A message has three parts: what was found, what was wanted, what to do. The command line prints
it without a traceback; anything that is not a `VitrailError` is a defect of ours and exits 1.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class VitrailError(Exception):
    """Base of every error that a user can cause."""

    exit_code = 1


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
    """A file that was refused because opening it could run code."""

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
