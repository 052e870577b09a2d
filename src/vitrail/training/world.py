"""The processes of one run: which of them this one is, and what they agree on.

A world of one has no process group, and nothing here costs it anything.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vitrail.data.loader import Batch
from vitrail.engines.torch_engine import pick_device
from vitrail.errors import ConfigError, VitrailError
from vitrail.training.interrupt import Interrupt, Interrupted

T = TypeVar("T")
Parts = Mapping[str, Mapping[str, Tensor]]


class World:
    """All processes of a run, seen from one of them."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.interrupt = Interrupt()
        self.images = 0  # that all processes together have in the batch agreed on last
        self.control: dist.ProcessGroup | None = None  # on the CPU, whatever trains

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Give the device called `name`, a GPU by the place of this process on its machine."""
        device = pick_device(name)
        if self.size > 1 and device.type == "mps":
            raise ConfigError(
                f"the device is mps, by which {self.size} processes cannot exchange anything; "
                "give --device cpu, or train by one process"
            )
        if self.size == 1 or device.type != "cuda":
            return device
        if self.local_rank >= (count := torch.cuda.device_count()):
            raise ConfigError(
                f"process {self.local_rank} of this machine finds {count} GPUs, and none for "
                f"itself; start at most {count} processes on each machine, or give --device cpu"
            )
        return torch.device("cuda", self.local_rank)

    def alone(self, do: Callable[[], T]) -> T:
        """Have the first process do something; all get its result, or raise its error."""
        if self.size == 1:
            return do()
        value, error = self._tried(do) if self.is_first else (None, None)
        box = [(value, _portable(error, 0))]
        dist.broadcast_object_list(box, src=0, group=self.control)
        value, told = box[0]
        self._settle([told], error)
        return value  # type: ignore[return-value]

    def together(self, do: Callable[[], T], *, leaves: bool = False) -> T:
        """Do something that needs no other process, on each; an error of one is raised on all.

        A signal waits until it is done, or with `leaves` ends it at once.
        """
        if self.size == 1:
            return do()
        value, error = self._tried(lambda: self._now(do) if leaves else do())
        self._settle(self.exchange(_portable(error, self.rank)), error)
        return value  # type: ignore[return-value]

    def exchange(self, value: T) -> list[T]:
        """Give the value of each process, by rank: for small ones."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def collect(self, value: T) -> list[T]:
        """Give the first process the value of each, by rank, and the others their own."""
        if self.size == 1:
            return [value]
        values = [value] * self.size if self.is_first else None
        dist.gather_object(value, values, dst=0, group=self.control)
        return [value] if values is None else values

    def any(self, flag: bool) -> bool:
        """Say whether any process says so."""
        if self.size == 1:
            return flag
        total = torch.tensor(int(flag))
        dist.all_reduce(total, group=self.control)
        return bool(total)

    def spread(self, parts: Parts | None) -> dict[str, dict[str, Tensor]]:
        """Give every process, on the CPU, the tensors of the first."""
        first = parts if self.is_first and parts is not None else {}
        empty = {part: {n: t.to("meta") for n, t in first[part].items()} for part in first}
        shared = self.alone(lambda: empty)
        for part, tensors in shared.items():
            for name, like in tensors.items():
                if self.is_first:
                    value = first[part][name].cpu().contiguous()
                else:
                    value = torch.empty(like.shape, dtype=like.dtype)
                dist.broadcast(value, src=0, group=self.control)
                tensors[name] = value
        return shared

    def agreed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Give this process' batches when all have theirs; what ends one process ends all.

        An error, a signal and the number of images are exchanged on the CPU in one small sum, which
        waits for no device.
        """
        if self.size == 1:
            yield from batches
            return
        while True:
            batch, error = self._tried(lambda: self._now(lambda: next(batches, None)))
            counts = torch.tensor([error is not None, 0 if batch is None else len(batch.labels)])
            dist.all_reduce(counts, group=self.control)
            failed, self.images = counts.tolist()
            if failed:
                self._settle(self.exchange(_portable(error, self.rank)), error)
            if batch is None:
                return
            yield batch

    def _tried(self, do: Callable[[], T]) -> tuple[T | None, BaseException | None]:
        try:
            return do(), None
        except (Exception, Interrupted) as error:
            if self.interrupt.caused(error):
                return None, Interrupted(self.interrupt.received)
            return None, error

    def _now(self, do: Callable[[], T]) -> T:
        with self.interrupt.now():
            return do()

    def _settle(self, told: list[BaseException | None], own: BaseException | None) -> None:
        """Raise on every process what one of them met, if any did: an error before a signal."""
        errors = [error for error in told if isinstance(error, Exception)]
        if errors:
            mine = [rank for rank, error in enumerate(told) if error is errors[0]] == [self.rank]
            if mine and own is not None:
                raise own
            if isinstance(errors[0], VitrailError):
                errors[0].quiet = True
            raise errors[0]
        for error in told:
            if isinstance(error, Interrupted):
                self.interrupt.told = error.number
                raise error


def _portable(error: BaseException | None, rank: int) -> BaseException | None:
    """Give what can be told to another process: not every exception can be pickled."""
    if error is None or isinstance(error, VitrailError | Interrupted):
        return error
    return VitrailError(f"process {rank}: {type(error).__name__}: {error}")
