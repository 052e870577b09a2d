"""`vitrail report`: the page of a run or an evaluation, or one page that compares several."""

from collections.abc import Sequence
from pathlib import Path

from vitrail.errors import DataError, OutputError, nearest
from vitrail.reporting.evaluated import EVALUATION
from vitrail.reporting.run_files import is_run

COMPARISON = "comparison.html"  # in the current folder, where -o names no other file


def report(folders: Sequence[Path], path: Path | None = None) -> Path:
    """Write the page of one folder into it, or a comparison of several; gives the page's path.

    `path` names another file. Raises `DataError` where a folder holds neither a run nor an
    evaluation, or a file in it cannot be read, `OutputError` where the page cannot be written.
    """
    for folder in folders:
        check(folder)
    if path is not None and path.is_dir():
        raise OutputError(f"{path} is a folder; -o names the page's file, {path / 'report.html'}")
    if len(folders) > 1:
        from vitrail.reporting.comparison import write_comparison_page

        return write_comparison_page(folders, path or Path(COMPARISON))
    from vitrail.reporting.page import write_evaluation_page, write_run_page

    write = write_run_page if is_run(folders[0]) else write_evaluation_page
    return write(folders[0], path=path)


def check(folder: Path) -> None:
    """Raise `DataError` where a folder holds neither a run nor an evaluation."""
    if folder.is_dir() and (is_run(folder) or (folder / EVALUATION).is_file()):
        return
    wanted = "give a folder that `vitrail train` or `vitrail eval -o` wrote"
    if not folder.exists():
        beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
        near = nearest(folder.name, [path.name for path in beside if path.is_dir()])
        raise DataError(f"there is no {folder}; {wanted}.{near}")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file and no folder of a run; {wanted}")
    inside = [p for p in sorted(folder.iterdir()) if p.is_dir() and is_run(p)]
    if inside:
        raise DataError(
            f"{folder} is no run but holds {len(inside)}, such as {inside[0]}; {wanted}"
        )
    if is_run(folder.parent):
        raise DataError(f"{folder} is a part of the run {folder.parent}; give that")
    raise DataError(f"{folder} holds neither a run nor an evaluation; {wanted}")
