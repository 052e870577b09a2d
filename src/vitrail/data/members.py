"""The files inside tars, read where they lie: one by one, or in runs where storage is slow."""

import numpy as np

from vitrail.data.layout import Kept, layout
from vitrail.data.storage import is_remote, read_range

RUN_BYTES = 32 * 2**20  # that one request fetches: an answer takes longer than its bytes do


class Members:
    """Bytes of members by row: `files` says in which of `paths`, and `starts` where each begins."""

    def __init__(
        self, paths: list[str], files: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> None:
        self.paths, self.files, self.starts, self.lengths = paths, files, starts, lengths
        # A member is in the run in which it begins.
        numbers = files.astype(np.int64) << 40 | starts // RUN_BYTES
        _, firsts, groups = np.unique(numbers, return_index=True, return_inverse=True)
        self.file_of_run = files[firsts]
        self.begins = np.full(len(firsts), 2**62)
        self.ends = np.zeros(len(firsts), np.int64)
        np.minimum.at(self.begins, groups, starts)
        np.maximum.at(self.ends, groups, starts + lengths)
        self.remote = is_remote(paths[0])
        self.layout = layout(groups, self.ends - self.begins, slow=self.remote)
        self.runs = Kept(self._run, len)

    def read(self, row: int) -> bytes:
        """Give the bytes of one member."""
        start, length = int(self.starts[row]), int(self.lengths[row])
        if not self.remote:
            return read_range(self.paths[self.files[row]], start, length)
        group = int(self.layout.groups[row])
        within = start - int(self.begins[group])
        return self.runs[group][within : within + length]

    def _run(self, group: int) -> bytes:
        begin, end = int(self.begins[group]), int(self.ends[group])
        return read_range(self.paths[self.file_of_run[group]], begin, end - begin)
