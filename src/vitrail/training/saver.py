"""Saving while the training goes on: it waits for the writing, and the disk works beside it."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from vitrail.training import checkpoint
from vitrail.training.run_folder import RunFolder
from vitrail.weights import disk

_PATIENCE = 0.1  # seconds that a save waits for the disk, enough for a small checkpoint


class Saver:
    """Writes the checkpoints of a run, of which the newest `keep` stay."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.broken: dict[int, str] = {}  # steps that were passed over, which are not kept
        self.saving: Future[None] | None = None

    def save(self, run: RunFolder, step: int, parts: checkpoint.Parts) -> None:
        """Write the checkpoint of `step`; a small one is on the disk when this returns.

        The rest of a large one goes there until the next `save` or `settle`: a process that is
        killed meanwhile goes on from the one before.
        """
        self.settle()
        written = checkpoint.write(run.checkpoints, step, parts)
        pool = ThreadPoolExecutor(1, "checkpoint")
        self.saving = pool.submit(self._settle, run, written)
        pool.shutdown(wait=False)
        wait([self.saving], _PATIENCE)

    def settle(self) -> None:
        """Wait until the last checkpoint is on the disk; raises `OutputError` if it never is."""
        if self.saving is not None:
            self.saving.result()
            self.saving = None

    def prune(self, run: RunFolder, step: int) -> None:
        """Drop the checkpoints that are not among the newest ones up to `step`."""
        checkpoint.prune(run.checkpoints, step, self.keep, self.broken)

    def _settle(self, run: RunFolder, written: checkpoint.Written) -> None:
        with disk.filling(written.beside, written.path):
            run.settle_metrics()  # no checkpoint outlives the rows that came before it
        self.saved(run, written.step, written.settle())

    def saved(self, run: RunFolder, step: int, path: Path) -> None:
        """Count the checkpoint of `step`, which is on the disk, among those that stay."""
        self.broken.pop(step, None)
        self.prune(run, step)
        run.log(f"saved {path.name}")
