"""The verb that looks at a data set."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.data.address import parse
from vitrail.training.recipe import Recipe, default_recipe, read_recipe
from vitrail.verbs.words import SPLIT, Text, as_json


@dataclass(frozen=True, kw_only=True)
class Data:
    """Show what a data set holds: classes, sizes, bad files, duplicates, leaks."""

    data: Text  # digits, a folder, or another address, as for train
    show: str | None = None  # draw the first training images instead: a .png, .svg ...
    recipe: str | None = None  # a recipe's name or a TOML file, else the one that fits the data
    seed: int | None = None  # of --show, else the recipe's
    held_out_share: float | None = None  # of data without a split, else the recipe's (0.2)
    split_seed: int | None = None  # else the recipe's (0)
    image_column: str | None = None  # of a table, else image, img, path or file
    label_column: str | None = None  # else label, labels, class or fine_label
    threads: int | None = None  # that decode, else the recipe's (2)
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.reporting.batch_picture import check_suffix

        suffix = "" if self.show is None else check_suffix(self.show)
        parse(self.data)
        recipe = self._recipe()
        from vitrail.data.sources import open_data

        splits = open_data(self.data, **{name: getattr(recipe.data, name) for name in SPLIT})
        if self.json or self.show is not None:  # the page has a place for them
            for note in splits.notes:
                print(note, file=sys.stderr)
        if self.show is None:
            return self._overview(recipe, splits)
        from vitrail.data.listing import one_line
        from vitrail.training.first_batch import picture
        from vitrail.weights.disk import write_bytes

        drawn, batch = picture(recipe, splits, self.recipe or "the default recipe", suffix)
        for file in batch.bad:
            print(f"not read: {one_line(file.path)}: {one_line(file.reason)}", file=sys.stderr)
        write_bytes(Path(self.show), drawn)
        print(as_json({"show": self.show}) if self.json else self.show)
        return 0

    def _recipe(self) -> Recipe:
        """Give the recipe, with what the flags say in its section data."""
        recipe, note = Recipe(), ""
        if self.recipe is not None:
            recipe = read_recipe(self.recipe)
        elif self.show is not None:
            recipe, note = default_recipe(self.data, self.image_column, self.label_column)
        if note:
            print(note, file=sys.stderr)
        names = (*SPLIT, "threads")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        seed = recipe.train.seed if self.seed is None else self.seed
        return replace(
            recipe,
            data=replace(recipe.data, source=self.data, **given),
            train=replace(recipe.train, seed=seed),
        )

    def _overview(self, recipe: Recipe, splits: Any) -> int:
        from vitrail.data.overview import overview
        from vitrail.data.overview_page import page
        from vitrail.data.progress import Counter

        how, notes = recipe.data, [*splits.notes]
        if not splits.names:
            share = f"{how.held_out_share:.0%} are held out"
            notes.append(f"no split of its own: {share}, by class, with seed {how.split_seed}")
        with Counter("images", sum(map(len, splits.parts().values()))) as counter:
            found = overview(
                self.data, splits, threads=how.threads, timeout=how.timeout, seen=counter.add
            )
        print(as_json(found.to_json()) if self.json else page(found, notes))
        return 0
