"""What this machine has of what quantplan can use, each with a remedy where it is missing.

Its imports are within its functions: together they would double what importing quantplan costs.
"""

from __future__ import annotations

import contextlib
import os

import attrs

from quantplan.devices import cuda
from quantplan.errors import CompilerNotFound, DriverError, DriverNotFound
from quantplan.record import Record

_CORE = ("numpy", "ml_dtypes", "attrs")
_CUDA = (("cupy-cuda13x", "cupy-cuda12x"), ("cuda-core",), ("cuda-bindings",))
"""Packages that running on a GPU needs: of each group, one."""
_CUDA_REMEDY = "pip install 'quantplan[cuda13]'"
_FOLDERS = ("cubins", "loaded", "emulator")
"""What the cache folder holds."""


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
    return [*_versions(), _driver(), _gpus(), _nvrtc(), *_precompiled(), _compiler(), _cache()]


def _versions() -> list[Finding]:
    import platform  # noqa: PLC0415 - see above

    import quantplan  # noqa: PLC0415 - which imports this module

    rows = [
        Finding(name="python", found=True, detail=f"{platform.python_version()} on {platform.platform()}"),
        Finding(name="quantplan", found=True, detail=quantplan.__version__),
    ]
    rows += [_package((name,), remedy=f"pip install {name}", needed_for="everything") for name in _CORE]
    return rows + [_package(names, remedy=_CUDA_REMEDY, needed_for="running on a GPU") for names in _CUDA]


def _package(names: tuple[str, ...], *, remedy: str, needed_for: str) -> Finding:
    """Look for the first of some packages that is installed."""
    from importlib import metadata  # noqa: PLC0415 - see above

    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return Finding(name=name, found=True, detail=metadata.version(name), needed_for=needed_for)
    return Finding(name=" or ".join(names), found=False, detail="not installed", remedy=remedy, needed_for=needed_for)


def _driver() -> Finding:
    needed = "running on a GPU"
    try:
        cuda.driver()
    except DriverNotFound as error:
        return Finding(
            name="CUDA driver", found=False, detail=error.message, remedy=error.hint or "", needed_for=needed
        )
    return Finding(name="CUDA driver", found=True, detail="loads", needed_for=needed)


def _gpus() -> Finding:
    needed = "running on a GPU"
    try:
        count = cuda.device_count()
    except DriverNotFound:
        count = 0
    except DriverError as error:
        remedy = "nvidia-smi tells what the driver is short of"
        return Finding(name="GPUs", found=False, detail=error.message, remedy=remedy, needed_for=needed)
    remedy = "" if count else "none needed for 'cpu' and for selection by architecture"
    return Finding(name="GPUs", found=count > 0, detail=str(count), remedy=remedy, needed_for=needed)


def _nvrtc() -> Finding:
    needed = "compiling kernels"
    try:
        from cuda import pathfinder  # noqa: PLC0415 - importing quantplan touches no CUDA

        library = pathfinder.load_nvidia_dynamic_lib("nvrtc")
    except (ImportError, RuntimeError) as error:  # pathfinder's own errors are RuntimeErrors
        detail = str(error).splitlines()[0]
        remedy = f"{_CUDA_REMEDY}, or point QUANTPLAN_CUBIN_PATH to what `quantplan warmup` wrote on another machine"
        return Finding(name="NVRTC", found=False, detail=detail, remedy=remedy, needed_for=needed)
    return Finding(name="NVRTC", found=True, detail=str(library.abs_path), needed_for=needed)


def _precompiled() -> list[Finding]:
    """Look into the folders of precompiled cubins, where there are any."""
    from pathlib import Path  # noqa: PLC0415 - see above

    from quantplan.cubins import PATH_VARIABLE  # noqa: PLC0415 - see above

    rows = []
    for place in filter(None, os.environ.get(PATH_VARIABLE, "").split(os.pathsep)):
        detail, remedy = f"{place} does not exist", f"make the folder, or take it out of {PATH_VARIABLE}"
        with contextlib.suppress(OSError):
            names = {path.name for path in Path(place).iterdir()}
            cubins = {name for name in names if name.endswith(".cubin")}
            detail, remedy = f"{len(cubins)} in {place}", ""
            if lonely := [name for name in sorted(cubins) if f"{name}.sha256" not in names]:
                detail, remedy = f"{lonely[0]} in {place} has no digest", "run `quantplan warmup` again"
            elif not cubins:
                remedy = f"run `quantplan warmup`, or take it out of {PATH_VARIABLE}"
        rows.append(
            Finding(
                name=f"precompiled cubins in {place}",
                found=not remedy,
                detail=detail,
                remedy=remedy,
                needed_for="running without NVRTC",
            )
        )
    return rows


def _compiler() -> Finding:
    from quantplan.emulator.compiler import find_compiler  # noqa: PLC0415 - see above

    name, needed = "host C++ compiler", "the emulated device"
    try:
        command = find_compiler()
    except CompilerNotFound as error:
        return Finding(name=name, found=False, detail=error.message, remedy=error.hint or "", needed_for=needed)
    return Finding(name=name, found=True, detail=" ".join(command), needed_for=needed)


def _cache() -> Finding:
    from quantplan import cache  # noqa: PLC0415 - see above

    root, needed = cache.cache_root(), "fast starts"
    try:
        nearest = next((folder for folder in (root, *root.parents) if folder.exists()), None)
        writable = nearest is not None and nearest.is_dir() and os.access(nearest, os.W_OK)
        state = "exists" if nearest == root else "made when first needed"
        for folder in (root, *(root / name for name in _FOLDERS)):
            if folder.exists() and writable and (distrust := cache.why_untrusted(folder)):
                writable, state = False, distrust
    except OSError as error:
        writable, state = False, error.strerror or str(error)
    remedy = "" if writable else "set QUANTPLAN_CACHE_DIR to a folder of your own; without one, kernels compile anew"
    return Finding(name="cache folder", found=writable, detail=f"{root} ({state})", remedy=remedy, needed_for=needed)
