"""What processes of a world do in the tests: runs, and the faults that befall them."""

import errno
import hashlib
import json
import os
import resource
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from runs import MODEL, with_train, write_photos
from vitrail import cli
from vitrail.data.config import Augment
from vitrail.model.config import DropRates
from vitrail.model.vit import seeded
from vitrail.training import checkpoint, interrupt, joining, loop, record
from vitrail.training.learner import Learner
from vitrail.training.opening import opened
from vitrail.training.parallel import local
from vitrail.training.recipe import Ema, Optimizer, Parallel, Recipe, Schedule, to_toml
from vitrail.training.resume import take_up
from vitrail.training.run_folder import RunFolder
from vitrail.training.session import Session
from vitrail.weights.bundle import Bundle, default_preprocess, save

# Two steps an epoch, whose batches split in whole blocks of 2 over 2 processes.
SHARED = with_train(batch_size=8, epochs=3, log_every=2)
LONG = with_train(SHARED, epochs=25, evaluate_every=25, save_every=2)
# The same numbers on any number of processes: dropout is another draw on each.
EQUAL = with_train(SHARED, drop=DropRates())
# One step of it moves each weight by its gradient.
GRADIENT = replace(
    with_train(EQUAL, steps=1),
    optimizer=Optimizer(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, clip=0.0),
    schedule=Schedule(name="constant", warmup=0.0),
    ema=Ema(),
)
# Of most batches one process can read none of its images.
BAD = replace(
    with_train(GRADIENT, steps=4, micro_batch=2),
    data=replace(GRADIENT.data, source="bad", max_bad_share=0.9),
)
# Of a frozen model that `write_pretrained` has written the head alone learns.
PROBE = replace(with_train(GRADIENT, steps=6, freeze=-1, weights="pretrained"), augment=Augment())
TIMED = with_train(EQUAL, minutes=0.02)
FSDP, SHARDED = Parallel(kind="fsdp"), Parallel(kind="fsdp", checkpoints="sharded")


def spread(recipe: Recipe, parallel: Parallel = FSDP) -> Recipe:
    return replace(recipe, parallel=parallel)


def by(name: str, recipe: Recipe) -> Recipe:
    return replace(recipe, optimizer=Optimizer(name=name))  # type: ignore[arg-type]


def write_pretrained() -> None:
    names, how = ("dark", "light"), default_preprocess(MODEL)
    save(Bundle(model=seeded(MODEL, seed=9), preprocess=how, labels=names), "pretrained")


def write_bad(root: Path) -> None:
    """Write photos of which six of twenty can be read."""
    for file in write_photos(root).rglob("*.png"):
        if file.stem not in ("0", "3", "7"):
            file.write_bytes(b"no image")


def load_all() -> None:
    """Load what a run loads only when it comes to it: who is forked later has it then."""
    import torch._dynamo  # noqa: F401  # DDP does

    with tempfile.TemporaryDirectory() as folder:
        photos = str(write_photos(Path(folder, "photos")))
        recipe = replace(EQUAL, data=replace(EQUAL.data, source=photos))
        loop.train(recipe, Path(folder, "run"))


class Fault(NamedTuple):
    """What befalls one process right before a function of `owner` is called for the N-th time."""

    rank: int
    do: Callable[..., Any]  # gets what the function gets
    at: int = 0
    owner: type | str = Learner  # a module goes by its name: it cannot be sent to a process
    name: str = "step"


@contextmanager
def _befalling(faults: Sequence[Fault]) -> Iterator[None]:
    """Have faults befall this process, and leave a file for each that did."""
    with pytest.MonkeyPatch.context() as patch:
        for fault in faults:
            if os.environ["RANK"] == str(fault.rank):
                owner: Any = fault.owner
                if isinstance(owner, str):
                    owner = import_module(owner)
                patch.setattr(owner, fault.name, _faulty(getattr(owner, fault.name), fault))
        yield


def _faulty(whole: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    calls = 0

    def faulty(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault.at + 1:
            Path(f"fired-{fault.rank}").touch()
            fault.do(*args)
        return whole(*args, **more)

    return faulty


class Trained(NamedTuple):
    """What a run gave: its summary, and a digest of this process' weights at its end."""

    summary: dict[str, Any]
    digest: str


def trained(recipe: Recipe, out: str, *faults: Fault) -> Trained:
    finish, digests = loop.finish, [""]

    def finishing(session: Session, evaluation: Any) -> Any:
        weights = (local(p).detach().numpy().tobytes() for p in session.learner.model.parameters())
        digests.append(hashlib.sha256(b"".join(weights)).hexdigest())
        return finish(session, evaluation)

    with _befalling([*faults]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "finish", finishing)
        return Trained(loop.train(recipe, out).summary, digests[-1])


def stopped(recipe: Recipe, out: str, *faults: Fault) -> None:
    """Train until a signal stops it."""
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, out, *faults)


def in_double(do: Callable[..., Any], *args: Any) -> Any:
    """Do it where Muon makes its steps orthogonal in float64.

    torch does in bfloat16, where the last bit of a gradient can become the last bit of a step: how
    far that leads depends on the processor, and says nothing about who computes the gradient.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
        return do(*args)


def compiled(recipe: Recipe, out: str) -> None:
    """Train with torch.compile, but for the minute in which it writes and builds kernels."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # torch's tracer asks every tensor that it meets.
        warnings.filterwarnings("ignore", r"The \.grad attribute", UserWarning)
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        trained(with_train(recipe, compile=True), out)


def command(recipe: Recipe, out: str, *faults: Fault, words: Sequence[str] = ()) -> None:
    """Train by the command, and end with its exit code."""
    file = Path(f".recipe-{os.environ['RANK']}.toml")
    file.write_text(to_toml(recipe))
    given = ["train", recipe.data.source, "--recipe", str(file), "--out", out, *words]
    with _befalling(faults):
        raise SystemExit(cli.main(given))


def each_its_own(recipes: Sequence[Recipe], out: str) -> None:
    """Train by the command, each process by a recipe of its own."""
    command(recipes[int(os.environ["RANK"])], out)


def impatient(recipe: Recipe, out: str, *faults: Fault) -> None:
    """Train where nobody waits five minutes for a process that hangs."""
    joining.STEP_TIMEOUT = joining.CONTROL_TIMEOUT = timedelta(seconds=3)
    command(recipe, out, *faults)


def meets_at_a_port_in_use() -> None:
    """Train by the command, as the first of two processes that cannot meet."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        os.environ |= {"MASTER_PORT": str(taken.getsockname()[1]), "WORLD_SIZE": "2"}
        command(SHARED, "run")


def in_turn(jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Do many things, each a function and its arguments, by processes that have met already."""
    dist.init_process_group("gloo")
    done = [do(*args) for do, *args in jobs]
    dist.destroy_process_group()
    return done


# Faults.


def sigint(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def sigterm(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def sigterm_twice(*_: Any) -> None:
    """As where a cluster signals all processes of a job, and torchrun passes its signal on."""
    sigterm()
    sigterm()


def sigint_twice_slowly(*_: Any) -> None:
    """As a person who will not wait."""
    interrupt.ECHO_SECONDS = 0.0
    sigint()
    sigint()


def hang(*_: Any) -> None:
    """Hang until the others have given this process up."""
    while summary("run")["status"] != "failed":
        time.sleep(0.05)
    os._exit(1)


def fail(*_: Any) -> None:
    raise RuntimeError("the machine is on fire")


def out_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("the GPU is full")


def poison(learner: Learner, *_: Any) -> None:
    """Have this process see numbers in its next batch that are none."""
    whole = learner.prepared

    def poisoned(batch: Any, step: int) -> Any:
        images, targets = whole(batch, step)
        learner.prepared = whole  # type: ignore[method-assign]
        return images * float("nan"), targets

    learner.prepared = poisoned  # type: ignore[method-assign]


def hang_reading(*_: Any) -> None:
    """Read a pipe that nobody writes to, as a mount that is gone would have it."""
    os.mkfifo("pipe")
    Path("pipe").read_bytes()


def small_files(*_: Any) -> None:
    """Let this process write no file of more than 8 kB: that is seen while it writes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def no_room(*_: Any) -> None:
    """Have the disk of this process be full when it takes what was written: that is seen later."""

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = fsync


# What a test looks at from inside.


def reloaded(recipe: Recipe, run: str, out: str) -> None:
    """Take up the newest checkpoint of `run`, and write what was taken up as one of `out`."""
    with joining.joined("cpu") as world:
        recipe, data = opened(recipe, world)
        session = Session(recipe, data, RunFolder(Path(run)), world=world)
        take_up(session)
        session.run, session.saved = RunFolder(Path(out)), -1
        world.alone(lambda: session.run.checkpoints.mkdir(parents=True))
        record.save(session)
        session.settle()


def none_read(recipe: Recipe, out: str) -> bool:
    """Train, and say whether this process had a step without any image of its own."""
    whole, none = Learner.step, []

    def counting(self: Learner, batch: Any, number: int) -> None:
        none.append(not len(batch.labels) and self.world.images > 0)
        whole(self, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", counting)
        loop.train(recipe, out)
    return any(none)


def newest(run: str | Path) -> dict[str, dict[str, torch.Tensor]]:
    """Give the parts of a run's newest checkpoint, which must be whole."""
    found, broken = checkpoint.newest(Path(run) / "checkpoints")
    assert found is not None and not broken
    return found.parts


def summary(run: str | Path) -> dict[str, Any]:
    return json.loads((Path(run) / "summary.json").read_text())
