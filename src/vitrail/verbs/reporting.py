"""The verb that writes pages."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from vitrail.errors import ConfigError
from vitrail.verbs.words import Output, as_json

Runs = tyro.conf.Positional[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a run, or an evaluation, as a page for a browser; several as a comparison."""

    runs: Runs  # folders of runs, or of `vitrail eval -o`
    output: Output = None  # the page, else report.html in the folder, or comparison.html here
    open: bool = False  # in the browser
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.reporting.report import report

        if not self.runs:
            raise ConfigError("which run? `vitrail report RUN` writes its page, RUN RUN compares")
        folders = [Path(run).expanduser() for run in self.runs]
        path = report(folders, None if self.output is None else Path(self.output).expanduser())
        print(as_json({"page": str(path)}) if self.json else path)
        if self.open:
            import webbrowser

            if not webbrowser.open(path.resolve().as_uri()):
                print(f"no browser was found; open {path} in one", file=sys.stderr)
        return 0
