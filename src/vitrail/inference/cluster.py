"""A Ray cluster: how it is reached, and how many models have room on it."""

import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NamedTuple

from vitrail.errors import ConfigError

# Of a CPU, on each machine: what models leave for all else that runs in the cluster. Two that each
# claim all CPUs of a machine wait for one another for ever.
_LEFT = 0.25
_PATIENCE = 10.0  # seconds, for a cluster to answer
_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # a frame of type 4, and nothing in it


class Machine(NamedTuple):
    """What a node of the cluster has to give."""

    cpus: float
    gpus: float


class Claim(NamedTuple):
    """What one model takes, how many of them have room, and the threads that each computes with."""

    cpus: float
    gpus: int
    models: int
    threads: int


def check_ray(address: str) -> None:
    """Raise `ConfigError` where Ray is not installed, or for an address that cannot work."""
    # A folder of that name is no package: `ray` in the folder where the command runs.
    spec = find_spec("ray")
    if spec is None or spec.origin is None:
        raise ConfigError("--ray needs Ray, which is not installed: pip install 'vitrail[ray]'")
    if address.startswith("ray://"):
        raise ConfigError(
            f'"{address}" is for a program that is no part of the cluster: give this command on a '
            "machine of it, with --ray auto"
        )
    if address not in ("auto", "local") and not address.rpartition(":")[2].isdecimal():
        raise ConfigError(f'--ray is "{address}"; it should be auto, local or HOST:PORT')


@contextmanager
def connected(address: str) -> Iterator[list[Machine]]:
    """Be connected to a cluster, `local` to one that is started for this; gives its machines.

    A program that is connected already stays so. Raises `ConfigError` where there is none.
    """
    check_ray(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported unless asked for
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of Ray Data's own ways
    import ray  # pyright: ignore[reportMissingImports]

    ours = not ray.is_initialized()
    if ours:
        try:
            if address != "local" and (place := _found(address)) is not None:
                _check_alive(place)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f'there is no Ray cluster at "{address}" that can be used: {error}\n'
                "`ray start --head` starts one, --ray local uses this machine alone; `ray stop` "
                "forgets one that was killed"
            ) from error
    try:
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield [Machine(had.get("CPU", 0), had.get("GPU", 0)) for had in found]
    finally:
        if ours:
            ray.shutdown()


def _found(address: str) -> str | None:
    """Give HOST:PORT of the cluster that Ray is going to take, None where only Ray can tell.

    `auto` may be the last one that was started on this machine, though it was killed since.
    """
    if address != "auto":
        return address
    from ray._private import services  # pyright: ignore[reportMissingImports]

    # What ray.init asks itself, in 2.60; no public function tells.
    find = getattr(services, "canonicalize_bootstrap_address", None)
    return find and find(address)


def _check_alive(address: str) -> None:
    """Raise `OSError` where no Ray answers at HOST:PORT: Ray itself tries for minutes.

    Its servers speak HTTP/2, in which both sides begin with their settings (RFC 9113, section 3.4).
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE) as server:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            server.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
            if server.recv(len(_SETTINGS))[3:4] != _SETTINGS[3:4]:
                raise OSError(f"what answers at {address} is no Ray")
    except TimeoutError as error:
        raise OSError(f"nothing answers at {address} within {_PATIENCE:.0f} s") from error
    except ConnectionError as error:
        raise OSError(f"nothing answers at {address}: {error.strerror or error}") from error


def claim(machines: Sequence[Machine], device: str, cores: int | None, readers: int) -> Claim:
    """Say what each model takes: a GPU and CPUs for its readers, or else a group of CPUs.

    A group is of `cores`, by default as many as the smallest machine has. The CPUs of a machine
    with GPUs are shared by its models, in fractions where there are few: none waits for a whole
    one. Raises `ConfigError` where no model has room.
    """
    if device == "mps":
        raise ConfigError("models on a Ray cluster run on CUDA GPUs or on CPUs: not on mps")
    with_gpus = [machine for machine in machines if machine.gpus >= 1]
    if device != "cpu" and with_gpus:
        if cores is not None:
            raise ConfigError(
                "--cores-per-model is for CPUs, and the cluster has GPUs: leave it "
                "out, or give --device cpu"
            )
        share = min((machine.cpus - _LEFT) / machine.gpus for machine in with_gpus)
        models = sum(int(machine.gpus) for machine in with_gpus)
        return Claim(_down(min(readers, share)), 1, models, max(1, int(share)))
    if device == "cuda":
        raise ConfigError("no machine of the cluster has a GPU: --device cpu runs models on CPUs")
    return _of_cpus([machine.cpus for machine in machines if machine.cpus >= 1], cores)


def _of_cpus(cpus: Sequence[float], cores: int | None) -> Claim:
    if not cpus:
        raise ConfigError("no machine of the cluster has a CPU to give (`ray status` lists them)")
    taken = int(min(cpus)) if cores is None else cores
    groups = [int(count // taken) for count in cpus] if taken > 0 else []
    if not any(groups):
        raise ConfigError(
            f"cores per model are {cores}; they should be 1 to {int(max(cpus))}, the CPUs of the "
            "largest machine"
        )
    return Claim(_down(taken - _LEFT / max(groups)), 0, sum(groups), taken)


def _down(cpus: float) -> float:
    """Round to what Ray counts in, a ten thousandth; more would be too much by that."""
    return max(0.0, math.floor(cpus * 1e4) / 1e4)
