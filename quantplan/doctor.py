"""What this machine has of what quantplan can use, each with a remedy where it is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

import attrs

from quantplan.devices import cuda
from quantplan.errors import DriverNotFound
from quantplan.record import Record

_CORE = ("numpy", "ml_dtypes", "attrs")
_CUDA = ("cupy-cuda13x", "cupy-cuda12x", "cuda-core", "cuda-bindings")
_COMPILERS = ("g++", "clang++")


@attrs.frozen(kw_only=True, repr=False)
class Finding(Record):
    """One thing that was looked for.

    Parameters
    ----------
    name : str
        What.
    found : bool
        Whether it is there and usable.
    detail : str
        Its version, path or count, or what went wrong.
    remedy : str
        What to do when it is not there; empty when it is.
    needed_for : str
        What does not work without it.
    """

    name: str
    found: bool
    detail: str = ""
    remedy: str = ""
    needed_for: str = ""


def doctor() -> list[Finding]:
    """Look for everything that quantplan can use; nothing is changed and nothing is compiled."""
    return [*_versions(), _driver(), _gpus(), _nvrtc(), _compiler(), _cache()]


def cache_root() -> Path:
    """Return the folder for compiled kernels: ``QUANTPLAN_CACHE_DIR``, or the platform's folder for caches."""
    if chosen := os.environ.get("QUANTPLAN_CACHE_DIR"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "quantplan"


def _versions() -> list[Finding]:
    from importlib import metadata  # noqa: PLC0415 - a fifth of what importing quantplan would cost

    import quantplan  # noqa: PLC0415 - which imports this module

    rows = [Finding(name="python", found=True, detail=f"{platform.python_version()} on {platform.platform()}")]
    rows.append(Finding(name="quantplan", found=True, detail=quantplan.__version__))
    for name in (*_CORE, *_CUDA):
        required = name in _CORE
        try:
            rows.append(Finding(name=name, found=True, detail=metadata.version(name)))
        except metadata.PackageNotFoundError:
            extra = "quantplan[cuda12]" if "12" in name else "quantplan[cuda13]"
            remedy = f"pip install {name if required else extra}"
            needed = "everything" if required else "running on a GPU"
            rows.append(Finding(name=name, found=False, detail="not installed", remedy=remedy, needed_for=needed))
    return rows


def _driver() -> Finding:
    try:
        cuda.driver()
    except DriverNotFound as error:
        return Finding(
            name="CUDA driver",
            found=False,
            detail=error.message,
            remedy=error.hint or "",
            needed_for="running on a GPU",
        )
    return Finding(name="CUDA driver", found=True, detail="loads")


def _gpus() -> Finding:
    try:
        count = cuda.device_count()
    except DriverNotFound:
        count = 0
    remedy = "" if count else "none needed for 'cpu' and for selection by architecture"
    return Finding(name="GPUs", found=count > 0, detail=str(count), remedy=remedy, needed_for="running on a GPU")


def _nvrtc() -> Finding:
    needed = "compiling kernels"
    remedy = "pip install 'quantplan[cuda13]'"
    try:
        from cuda import pathfinder  # noqa: PLC0415 - importing quantplan touches no CUDA

        library = pathfinder.load_nvidia_dynamic_lib("nvrtc")
    except (ImportError, RuntimeError) as error:  # pathfinder's own errors are RuntimeErrors
        return Finding(name="NVRTC", found=False, detail=str(error).splitlines()[0], remedy=remedy, needed_for=needed)
    return Finding(name="NVRTC", found=True, detail=str(library.abs_path), needed_for=needed)


def _compiler() -> Finding:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else list(_COMPILERS)
    found = next((path for path in map(shutil.which, names) if path), None)
    remedy = "" if found else "install g++ or clang++, or set CXX"
    return Finding(
        name="host C++ compiler",
        found=found is not None,
        detail=found or f"none of {', '.join(names)}",
        remedy=remedy,
        needed_for="the emulated device",
    )


def _cache() -> Finding:
    root = cache_root()
    nearest = next(folder for folder in (root, *root.parents) if folder.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    remedy = (
        "" if writable else "set QUANTPLAN_CACHE_DIR to a folder of your own; without one, kernels are compiled anew"
    )
    state = "exists" if root.exists() else "made when first needed"
    return Finding(
        name="cache folder", found=writable, detail=f"{root} ({state})", remedy=remedy, needed_for="fast starts"
    )
