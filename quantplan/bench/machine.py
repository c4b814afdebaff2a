"""What a time depends on: the GPU with its driver and clocks, and the software beside it."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from importlib import metadata
from typing import TYPE_CHECKING, Any

from quantplan.bench import peers
from quantplan.devices.target import TargetKind
from quantplan.errors import CompilerNotFound
from quantplan.kernels import nvrtc_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantplan.devices.target import Target

_PACKAGES = ("numpy", "ml_dtypes", "cupy-cuda13x", "cupy-cuda12x", "cuda-core", "cuda-bindings")
_ASKED = (
    *("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit"),
    *("temperature.gpu", "ecc.mode.current", "mig.mode.current"),
)
_TIMEOUT_S = 10


def describe(target: Target, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return device and software as plain data.

    Parameters
    ----------
    target : Target
        The device.
    properties : mapping
        What CUDA tells of it; empty where it is no GPU.
    """
    return {"device": _device(target, properties), "software": _software(), "peers": peers.versions()}


def _device(target: Target, properties: Mapping[str, Any]) -> dict[str, Any]:
    if target.kind is not TargetKind.CUDA:
        return {"name": str(target), "arch": target.arch}
    name = properties["name"]
    return {
        "name": name.decode() if isinstance(name, bytes) else str(name),
        "arch": target.arch,
        "sms": int(properties["multiProcessorCount"]),
        "memory_bytes": int(properties["totalGlobalMem"]),
        "l2_bytes": int(properties["l2CacheSize"]),
        **clocks(target.index),
    }


def clocks(index: int) -> dict[str, str]:
    """Return driver, clocks and the like as nvidia-smi prints them; nothing where it is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--id={index}", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)  # noqa: S603 - a fixed command
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_ASKED, (value.strip() for value in done.stdout.strip().split(",")), strict=False))


def _software() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform(), "cpus": str(os.cpu_count())}
    with contextlib.suppress(CompilerNotFound):
        found["nvrtc"] = nvrtc_version()
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
