"""Where predictions go: standard output, a pipe, or a file that can be begun again."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vitrail.data.inputs import Item
from vitrail.errors import ConfigError
from vitrail.inference.journal import begun
from vitrail.inference.predict import Prediction
from vitrail.inference.resumable import SECONDS, ResumableFile
from vitrail.inference.rows import FORMS, Form
from vitrail.weights.disk import check_place, written

Answers = Callable[[Iterable[Item]], Iterator[list[Prediction]]]  # images in, batches out


def form_of(output: str | None) -> str:
    """Give the form that the name of a file asks for: of `.csv` csv; of none a table."""
    suffix = Path(output or "").suffix.removeprefix(".")
    return suffix if suffix in (*FORMS, "parquet") else "table"


def check_output(how: str, output: str | None) -> None:
    """Raise `ConfigError` for a parquet file without a name, or without pyarrow.

    Raises `OutputError` for a place where no file can be.
    """
    if output is not None:
        check_place(output)
    if how != "parquet":
        return
    if output is None:
        raise ConfigError("parquet is no text for a terminal: name a file with -o")
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ConfigError("parquet needs pyarrow: pip install vitrail[datasets]") from error


def made_before(output: str | None) -> Mapping[str, Any]:
    """Give the `made_by` of the command that began the file; nothing where none did."""
    return {} if output is None else begun(Path(os.path.realpath(Path(output).expanduser())))


def write_predictions(
    answers: Answers,
    items: Iterable[Item],
    how: str,
    output: str | None,
    made_by: Mapping[str, Any],
    seconds: float = SECONDS,
) -> int:
    """Write answers as `table`, `csv`, `jsonl`, `json` or `parquet`; gives how many images failed.

    A file is written in parts, and what is in it already is not answered for again; `made_by` is
    what another command would have otherwise. Raises as `ResumableFile` does.
    """
    check_output(how, output)
    if output is None:
        return _streamed(answers(items), FORMS[how], sys.stdout.buffer)
    path = Path(output).expanduser()
    made_by = {**made_by, "format": how}
    if path.exists() and not path.is_file() and not path.is_dir():  # /dev/null, a pipe
        with written(path), path.open("wb") as file:
            return _streamed(answers(items), FORMS[how], file)
    if how == "parquet":
        return _parquet(answers, items, path, made_by, seconds)
    with ResumableFile(path, made_by, seconds) as file:
        return _added(answers, items, FORMS[how], file)


def _streamed(batches: Iterable[list[Prediction]], form: Form, file: BinaryIO) -> int:
    images = failed = 0
    file.write(form.head.encode())
    for batch in batches:
        file.write(form.encoded(batch, not images))
        file.flush()
        images += len(batch)
        failed += sum(row.error is not None for row in batch)
    file.write(form.tail.encode())
    file.flush()
    return failed


def _added(answers: Answers, items: Iterable[Item], form: Form, file: ResumableFile) -> int:
    left = file.left(items)
    if form.head and not file.part.bytes:
        file.add(form.head.encode())
    for batch in answers(left):
        failed = sum(row.error is not None for row in batch)
        rows = form.encoded(batch, not file.images)
        file.add(rows, (row.path for row in batch), failed)
    file.finish(form.tail.encode())
    return file.failed


def _parquet(
    answers: Answers,
    items: Iterable[Item],
    path: Path,
    made_by: Mapping[str, Any],
    seconds: float,
) -> int:
    """Write rows as JSON lines into a hidden file, and all of them as parquet at the end."""
    from vitrail.inference.parquet import convert

    with ResumableFile(path, made_by) as whole:
        rows = ResumableFile(whole.path.with_name(f".{whole.path.name}.rows"), made_by, seconds)
        if whole.part.done:
            whole.left(items)
        else:
            with rows:
                _added(answers, items, FORMS["jsonl"], rows)
                whole.replace(lambda target: convert(rows.path, target), rows.part)
        rows.remove()
        return whole.part.failed
