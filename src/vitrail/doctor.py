"""What this machine can do, and what is missing: `vitrail doctor`."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from vitrail import __version__
from vitrail.engines.names import ENGINES, is_installed

_PACKAGES = ("torch", "numpy", "einops", "pillow", "simplejpeg", "scikit-learn")
_HUB = ("HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT")


def examine() -> dict[str, Any]:
    """Give the facts, and under `problems` what a user should mend, each with the way to do it."""
    import torch

    cpu = torch.backends.cpu.get_cpu_capability()
    free = shutil.disk_usage(Path.cwd()).free
    facts: dict[str, Any] = {
        "vitrail": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "engines": [name for name in ENGINES if is_installed(name)],
        "cpu": {
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "instructions": cpu,
            "bfloat16": _cpu_has_bfloat16(),
        },
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
        "mps": torch.backends.mps.is_available(),
        "free_disk_gib": round(free / 2**30, 1),
        "hub": {name: os.environ[name] for name in _HUB if name in os.environ},
        "writable": os.access(Path.cwd(), os.W_OK),
    }
    facts["problems"] = _problems(facts)
    return facts


def text(facts: dict[str, Any]) -> str:
    """Lay the facts out for a person."""
    cpu, memory = facts["cpu"], facts["memory_gib"]
    gpus = ", ".join(f"{g['name']} ({g['memory_gib']} GiB)" for g in facts["gpus"])
    rows = [
        ("vitrail", f"{facts['vitrail']} on Python {facts['python']}, {facts['platform']}"),
        ("packages", ", ".join(f"{name} {v}" for name, v in facts["packages"].items())),
        ("engines", ", ".join(facts["engines"])),
        (
            "cpu",
            f"{cpu['cores']} cores, {cpu['threads']} threads, {cpu['instructions']}, "
            f"bfloat16 {'in hardware' if cpu['bfloat16'] else 'emulated: slow'}",
        ),
        ("memory", f"{memory} GiB" if memory else "unknown"),
        (
            "gpu",
            gpus or ("Apple's, through MPS" if facts["mps"] else "none: training uses the CPU"),
        ),
        ("disk", f"{facts['free_disk_gib']} GiB free here"),
        *((name, value) for name, value in facts["hub"].items()),
    ]
    lines = [f"{name:<{max(len(name) for name, _ in rows)}}  {value}" for name, value in rows]
    problems = [f"! {problem}" for problem in facts["problems"]] or ["nothing is missing"]
    return "\n".join([*lines, "", *problems])


def _problems(facts: dict[str, Any]) -> list[str]:
    problems = []
    if facts["free_disk_gib"] < 1:
        problems.append(f"only {facts['free_disk_gib']} GiB of disk are free: make room for runs")
    if not facts["writable"]:
        problems.append("this folder cannot be written: give `vitrail train` an --out elsewhere")
    if facts["cpu"]["instructions"] in ("DEFAULT", "NO AVX"):
        problems.append("this processor lacks AVX2: training on it takes several times as long")
    if shutil.which("nvidia-smi") and not facts["gpus"]:
        problems.append(
            "an NVIDIA driver is here, but this torch does not see a GPU: install the CUDA build "
            "of torch, or a newer driver"
        )
    return problems


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in found]


def _memory_gib() -> float | None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return round(size / 2**30, 1)


def _cpu_has_bfloat16() -> bool:
    import torch

    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
