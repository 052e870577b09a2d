"""The verb that trains."""

import os
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from vitrail.training import launch
from vitrail.training.recipe import Recipe, to_toml
from vitrail.verbs.words import Text, as_json


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model on images in classes."""

    data: Text  # digits, or a folder of train/CLASS/* and val/CLASS/*, or of CLASS/*
    recipe: str | None = None  # the name of a recipe that comes with vitrail, or a TOML file
    model: str | None = None  # a preset, in place of the recipe's model
    out: str | None = None  # the run's folder, else the lowest unused runs/DATA-N
    resume: bool = False  # continue the newest unfinished run of this data
    override: bool = False  # continue a run although its recipe or data were others
    processes: int = 1  # on this machine, which share each batch; on several: docs/scale.md
    max_restarts: int = 0  # of all processes, when one of them dies
    print_recipe: bool = False  # print the whole recipe as TOML, and train nothing
    dry_run: bool = False  # take a few steps, say what time and memory to expect, write nothing
    json: bool = False  # print the summary as JSON
    tree: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)

    def run(self) -> int:
        if self.print_recipe:
            print(to_toml(self.tree), end="")
            return 0
        launch.check(self.tree, self.processes, self.max_restarts)
        if self.processes > 1:
            given = {"--resume": self.resume, "--override": self.override}
            given |= {"--dry-run": self.dry_run, "--json": self.json}
            return launch.launch(self.tree, self.out, given, self.processes, self.max_restarts)
        recipe = launch.handed() or self.tree
        from vitrail.inference.formats import run_text, trial_text
        from vitrail.training.loop import dry_run, train

        if self.dry_run:
            found = dry_run(recipe).to_json()
            text = as_json(found) if self.json else trial_text(found)
        else:
            run = train(recipe, self.out, resume=self.resume, override=self.override)
            text = as_json(run.summary) if self.json else run_text(run.folder, run.summary)
        if os.environ.get("RANK", "0") == "0":  # the first process speaks for all
            print(text)
        return 0
