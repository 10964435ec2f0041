"""What this machine has: versions, processors, memory that is free, GPUs. Asks no network."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

import bloomlab
from bloomlab.sizes import readable

PACKAGES = (
    "torch",
    "transformers",
    "transformer-lens",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "accelerate",
    "numpy",
    "pandas",
    "plotly",
    "ipywidgets",
    "anywidget",
    "jupyterlab",
)
MISSING = "missing"
YES = ("1", "ON", "TRUE", "YES")  # as huggingface_hub reads its variables
OFFLINE = "Hub: not asked (HF_HUB_OFFLINE is set); models that were downloaded before can be loaded"
NEXT = (
    "Next:",
    "  bloomlab lab                        the notebooks in JupyterLab, starting with the tour",
    "  bloomlab generate demo 'The cat'    the packaged model goes on; needs no network",
    "  bloomlab info demo                  its card; likewise of a folder or a hub id:",
    "  bloomlab info bigscience/bloom-7b1  whether that model fits in this machine",
)
CGROUPS = Path("/sys/fs/cgroup")
LIMITS = (  # limit and use of a control group, version 2 and version 1
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def free_ram() -> tuple[int, int]:
    """Free and total bytes of main memory, within the limits of a container or batch job."""
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    for folder in _control_groups():
        for limit, used in _limits(folder):
            total, free = min(total, limit), min(free, max(0, limit - used))
    return free, total


def gpus() -> dict[str, tuple[int, int]]:
    """Free and total bytes of every CUDA (or ROCm) device, by its number and name."""
    if not built_for_gpus():
        return {}  # without waiting for torch
    import torch

    found = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        try:
            memory = torch.cuda.mem_get_info(index)
        except RuntimeError:  # held by another process alone: nothing of it is free for us
            memory = 0, device.total_memory
        found[f"GPU {index} ({device.name})"] = memory
    return found


def built_for_gpus() -> bool:
    """Whether the torch that is installed can use CUDA or ROCm devices; imports no torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    file = Path(found.origin).with_name("version.py")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return re.search(r"^(cuda|hip)\b[^=]*= *['\"]", text, re.MULTILINE) is not None


def machine_lines() -> list[str]:
    """Versions and hardware, for a person and for a bug report, and what to do next."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = {"RAM": free_ram(), **gpus()}
    python = f"Python {platform.python_version()}, {platform.platform()}"
    versions = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in versions.items() if version == MISSING]
    return [
        f"bloomlab {bloomlab.__version__}, {python}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"CPU: {cores} core{'s' if cores != 1 else ''}",
        *(
            f"{name}: {readable(free)} free of {readable(total)}"
            for name, (free, total) in devices.items()
        ),
        *([] if len(devices) > 1 else [f"GPU: {_no_gpu(versions['torch'])}"]),
        *([OFFLINE] if os.environ.get("HF_HUB_OFFLINE", "0").upper() in YES else []),
        "",
        *([f"Missing: pip install {' '.join(missing)}", ""] if missing else []),
        *NEXT,
    ]


def _no_gpu(torch_version: str) -> str:
    if built_for_gpus() or torch_version == MISSING:
        return "none found"
    if shutil.which("nvidia-smi"):
        return (
            f"none that torch {torch_version} can use: it is built for CPUs only, but there is an "
            "NVIDIA driver. https://pytorch.org/get-started has the command for a CUDA build."
        )
    return f"none found (torch {torch_version} is built for CPUs only)"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def _control_groups(
    table: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS
) -> Iterator[Path]:
    """The folders of this process' control groups and of those around them."""
    lines = table.read_text().splitlines() if table.exists() else []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top = root / "memory" if kinds else root
        place = top / path.lstrip("/")
        yield from (folder for folder in (place, *place.parents) if folder.is_relative_to(top))


def _limits(folder: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes; files that the kernel can drop from memory are not counted as use."""
    for limit, used in LIMITS:
        if not (folder / limit).exists() or not (folder / used).exists():
            continue
        if (most := (folder / limit).read_text().strip()).isdigit():
            stat = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
            files = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
            yield int(most), int((folder / used).read_text()) - int(files)
