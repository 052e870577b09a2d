"""The command line. Its verbs are in the folder `verbs`; each imports a room only when it runs.

Results go to standard output, all else to standard error. Nothing on the way to `--help`, or to a
mistake in a flag, a recipe or a path, imports torch: the answer comes at once.
"""

import os
import sys
from collections.abc import Sequence

from vitrail import __version__
from vitrail.errors import ConfigError, VitrailError, nearest
from vitrail.flags import front_page, read_flags, read_train
from vitrail.verbs.answers import Embed, Explain, Predict
from vitrail.verbs.benching import Bench
from vitrail.verbs.data import Data
from vitrail.verbs.evaluating import Eval
from vitrail.verbs.exporting import Export
from vitrail.verbs.models import Convert, Doctor, Presets, Push, Summary
from vitrail.verbs.reporting import Report
from vitrail.verbs.serving import Serve
from vitrail.verbs.training import Train

VERBS: dict[str, type] = {
    verb.__name__.lower(): verb
    for verb in (
        Train,
        Data,
        Eval,
        Predict,
        Embed,
        Explain,
        Report,
        Serve,
        Summary,
        Presets,
        Convert,
        Push,
        Export,
        Bench,
        Doctor,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (0 done, 2 usage or bad input, ...)."""
    words = list(sys.argv[1:] if argv is None else argv)
    flags = words[: words.index("--") if "--" in words else None]
    debug = "--debug" in flags
    words = [flag for flag in flags if flag != "--debug"] + words[len(flags) :]
    try:
        return _dispatch(words)
    except VitrailError as error:
        if debug:
            raise
        if not error.quiet:
            print(f"vitrail: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        print(
            f"vitrail: {type(error).__name__}: {error}\n"
            "This is a defect of vitrail; the same command with --debug shows where it is.",
            file=sys.stderr,
        )
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(front_page(VERBS))
        return 0 if words else 2
    if words[0] == "--version":
        print(f"vitrail {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise ConfigError(
            f'there is no command "{verb}".{nearest(verb, VERBS)} `vitrail --help` lists them all'
        )
    read = read_train if verb == "train" else read_flags
    return read(VERBS[verb], verb, rest).run()


if __name__ == "__main__":
    sys.exit(main())
