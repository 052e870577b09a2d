"""Predictions and embeddings on a Ray cluster: a model for each GPU, or each group of CPUs.

What travels is ranges of the list of images, the model, and what each part came to. Each process
opens the list by itself, answers for one range after the other as one machine would, and writes
each as a part of the folder. Reading is done by threads of the same process: no task of Ray is
waited for while a model holds what that task needs.
"""

import logging
import pickle
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vitrail.data.inputs import Item, inputs
from vitrail.data.progress import Counter
from vitrail.engines.names import check_engine
from vitrail.errors import ConfigError, OutputError, check_counts
from vitrail.inference.cluster import Claim, claim, connected
from vitrail.inference.embed import Kind
from vitrail.inference.part_worker import Job, Worker
from vitrail.inference.part_writers import embedder, predictor
from vitrail.inference.parts import DeadPart, Parts, Range, Written, digest, ranges
from vitrail.inference.predict import check_answers
from vitrail.weights.bundle import Bundle

_PART = 1024  # images: seconds of a GPU, and a minute of CPUs that a kill may cost
_FORMS = ("csv", "jsonl", "parquet")

Listing = Sequence[str] | Callable[[], Iterable[Item]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Where and how it runs.

    `address` is a cluster's HOST:PORT, `auto` the one that this machine is part of, `local` one
    that is started for this alone. `cores` are the CPUs of a model where there are no GPUs, by
    default as many as the smallest machine has; `threads` read for each model. Parts have
    `part_images` images, a multiple of `batch_size`, so that batches are those of one machine.
    """

    address: str = "auto"
    device: str = "auto"
    cores: int | None = None
    part_images: int | None = None
    batch_size: int = 64
    threads: int = 2

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size, threads=self.threads)
        if self.part_images is not None:
            check_counts(part_images=self.part_images)
        if self.size % self.batch_size:
            low = self.size - self.size % self.batch_size
            near = " and ".join(str(n) for n in (low, low + self.batch_size) if n)
            raise ConfigError(
                f"parts of {self.size} images are not whole batches of {self.batch_size}; "
                f"the nearest that are: {near}"
            )

    @property
    def size(self) -> int:
        """Give the number of images in a part."""
        return self.part_images or -(-_PART // self.batch_size) * self.batch_size


def predict_parts(
    bundle: Bundle,
    images: Listing,
    folder: str | Path,
    top: int = 5,
    *,
    form: str = "parquet",
    engine: str = "auto",
    dtype: str = "float32",
    merge: int = 0,
    aspect: bool = False,
    cluster: Cluster = Cluster(),  # frozen
) -> Written:
    """Write the answers for a list of images as parts of a folder; says what came of all of them.

    `images` are words as `vitrail predict` takes them, or a function that opens the list, which
    every process calls. Parts that are there are not written again. Raises `ConfigError` for a
    folder that another command wrote, and `OutputError` where a part could not be written.
    Engine `auto` is torch: each process would choose by itself, and the parts be of several.
    """
    check_answers(bundle, top)
    if form not in _FORMS:
        raise ConfigError(f'parts are {", ".join(_FORMS)}, and not "{form}"')
    check_engine(engine, cluster.device, merge, aspect)
    if engine == "auto":
        engine = "torch"
    elif engine != "torch":
        cluster = replace(cluster, device="cpu")
    how = {"top": top, "dtype": dtype, "merge": merge, "aspect": aspect}
    made_by = {"command": "predict", "format": form, "engine": engine, **how}
    how |= {"form": form, "name": engine}
    return _written(bundle, images, folder, f".{form}", partial(predictor, **how), made_by, cluster)


def embed_parts(
    bundle: Bundle,
    images: Listing,
    folder: str | Path,
    *,
    tokens: Kind = "pooled",
    layer: int | None = None,
    dtype: str = "float32",
    merge: int = 0,
    aspect: bool = False,
    cluster: Cluster = Cluster(),  # frozen
) -> Written:
    """Write the embeddings of a list of images as parquet, as `predict_parts` writes answers."""
    how: dict[str, Any] = {
        "tokens": tokens,
        "layer": layer,
        "dtype": dtype,
        "merge": merge,
        "aspect": aspect,
    }
    made_by = {"command": "embed", **how}
    return _written(bundle, images, folder, ".parquet", partial(embedder, **how), made_by, cluster)


def _written(
    bundle: Bundle,
    images: Listing,
    folder: str | Path,
    suffix: str,
    writer: Callable[..., Any],
    made_by: dict[str, Any],
    cluster: Cluster,
) -> Written:
    items = images if callable(images) else partial(inputs, list(images))
    plan = list(ranges(items(), cluster.size))
    made_by |= {"part_images": cluster.size, "model": bundle.digest()}
    place = Path(folder).expanduser().absolute()
    parts = Parts(folder=place, suffix=suffix, made_by=made_by)
    count = sum(part.images for part in plan)
    with parts.begun(count, digest(part.names for part in plan)):
        found = {part.number: parts.found(part) for part in plan}
        missing = [part for part in plan if found[part.number] is None]
        if missing:
            how = {"batch_size": cluster.batch_size, "threads": cluster.threads}
            job = Job(items=items, writer=partial(writer, **how), parts=parts, cwd=str(Path.cwd()))
            found |= _run(bundle, job, missing, cluster)
    done = [part for part in found.values() if part is not None]
    return Written(
        sum(part.images for part in done),
        sum(part.failed for part in done),
        next((part.shape for part in done if part.shape), ()),
        tuple(row for part in done for row in part.bad),
    )


def _run(
    bundle: Bundle, job: Job, missing: Sequence[Range], cluster: Cluster
) -> dict[int, Written | None]:
    """Have the missing parts written; gives what is in each."""
    found: dict[int, Written | None] = {}
    dead: list[str] = []
    with connected(cluster.address) as machines:
        taken = claim(machines, cluster.device, cluster.cores, cluster.threads)
        with Counter("images", sum(part.images for part in missing)) as counter:
            for number, outcome in _outcomes(bundle, job, missing, taken):
                if isinstance(outcome, DeadPart):
                    dead.append(str(outcome))
                elif isinstance(outcome, Exception):
                    raise outcome
                else:
                    found[number] = outcome
                    counter.add(outcome.images)
    if dead:
        raise OutputError(
            "\n".join(dead) + f"\nthe other parts are in {job.parts.folder}; the same command "
            "tries these again: with a smaller --batch-size, or without the image that does it"
        )
    return found


def _outcomes(bundle: Bundle, job: Job, missing: Sequence[Range], taken: Claim) -> Any:
    """Give the number of each part with what is in it, or the error that it ended with."""
    import ray  # pyright: ignore[reportMissingImports]
    import ray.data  # pyright: ignore[reportMissingImports]

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a part may take hours
    models = min(taken.models, len(missing))
    if next(bundle.model.parameters()).device.type != "cpu":
        bundle = replace(bundle, model=deepcopy(bundle.model).cpu())
    with ray.data.DataContext.current(context):
        # A block, and so a task, is one range. Ray Data repeats a task whose process or machine is
        # gone without end, and starts an actor anew where there is room: `Parts` counts deaths.
        ranges = ray.data.from_items(
            [part._asdict() for part in missing], override_num_blocks=len(missing)
        )
        outcomes = ranges.map_batches(
            Worker,
            batch_size=1,
            fn_constructor_args=(job, ray.put(bundle), taken),
            # The next range waits at the process that is to take it. Fewer than all may be alive.
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=models, initial_size=models, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=taken.cpus,
            num_gpus=taken.gpus or None,
        )
        for row in outcomes.iter_rows():
            yield row["number"], pickle.loads(row["outcome"])
