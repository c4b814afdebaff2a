"""Emulated devices: kernels built by the host compiler, launched on NumPy memory under the current schedule."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.emulator import compiler, schedule, tensor_maps
from quantplan.emulator.library import Library, Region
from quantplan.kernels import KernelSpec, source_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from quantplan.devices.device import Grid, Touched
    from quantplan.tensor_maps import TensorMap

_UNIT = 32
"""Kernels of one translation unit: most of a small unit's time goes into what its kernels share."""

_SMS = 3
"""Few, so that a block has more than one tile to go through where there are some."""

_libraries: dict[tuple[KernelSpec, int, bool], Library] = {}
"""Kernels that this process has built or found in the cache: by kernel, architecture, and whether they are checked."""


@attrs.frozen
class EmulatedKernel:
    """A kernel of an emulated device.

    Parameters
    ----------
    spec : KernelSpec
        Which.
    arch : int
        Value of ``__CUDA_ARCH__``.
    """

    spec: KernelSpec
    arch: int

    def prepare(self, grid: Grid, params: bytes, touched: Callable[[], Sequence[Touched]]) -> Callable[[Any], None]:
        """Return a launch, which runs the kernel to its end under the schedule of that moment.

        Parameters
        ----------
        grid : Grid
            Its extent.
        params : bytes
            Its parameter struct.
        touched : callable
            Returns the memory that it may touch: every other access is a fault.
        """
        regions = _regions(touched())

        def launch(stream: object) -> None:  # noqa: ARG001 - launches run at once
            wanted = schedule.current()
            _load(self.spec, self.arch, checked=wanted.checked).launch(
                self.spec.name,
                grid=(grid.launched(_SMS, self.spec.cluster),),
                block=(self.spec.threads,),
                shared_bytes=grid.shared_bytes,
                params=params,
                regions=regions,
                schedule=wanted,
            )

        return launch

    def tensor_map(self, tensor_map: TensorMap, address: int) -> bytes:
        """Encode a map for an address; see `tensor_maps`."""
        return tensor_maps.encode(tensor_map, address)


@attrs.frozen
class EmulatedDevice:
    """An architecture on the CPU.

    Parameters
    ----------
    capability : tuple[int, int]
        The compute capability that kernels are compiled for.
    """

    capability: tuple[int, int]

    def load(self, specs: Iterable[KernelSpec]) -> tuple[EmulatedKernel, ...]:
        """Build kernels, unless they are built already, in one translation unit.

        Raises
        ------
        CompilerNotFound, KernelBuildError, Unsupported
            There is no compiler, it refuses the source, or the platform cannot run it.
        """
        wanted, arch, checked = tuple(specs), self._arch, schedule.current().checked
        _build(wanted, arch, checked=checked)
        return tuple(EmulatedKernel(spec, arch) for spec in wanted)

    @property
    def _arch(self) -> int:
        major, minor = self.capability
        return 100 * major + 10 * minor


@cache
def device(capability: tuple[int, int]) -> EmulatedDevice:
    """Return the emulated device of an architecture."""
    return EmulatedDevice(capability)


def _load(spec: KernelSpec, arch: int, *, checked: bool) -> Library:
    library = _libraries.get((spec, arch, checked))
    if library is None:  # the schedule asks for checks, or for none, since the kernel was loaded
        _build((spec,), arch, checked=checked)
        library = _libraries[spec, arch, checked]
    return library


def _build(specs: tuple[KernelSpec, ...], arch: int, *, checked: bool) -> None:
    missing = [spec for spec in dict.fromkeys(specs) if (spec, arch, checked) not in _libraries]
    units = [missing[i : i + _UNIT] for i in range(0, len(missing), _UNIT)]

    def library(unit: list[KernelSpec]) -> Library:
        return Library(compiler.build(source_text(unit), arch=arch, checked=checked), checked=checked)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for unit, built in zip(units, pool.map(library, units), strict=True):
            _libraries.update({(spec, arch, checked): built for spec in unit})


def _regions(touched: Sequence[Touched]) -> list[Region]:
    """Return what a launch may touch; an output in the place of an input is one region, which may be read first."""
    regions: dict[tuple[int, ...], Region] = {}
    for own in map(_region, touched):
        place = (own.begin, own.row_bytes, own.pitch if own.rows > 1 else 0, own.rows)
        other = regions.get(place, own)
        regions[place] = attrs.evolve(
            own, writable=own.writable or other.writable, initialized=own.initialized or other.initialized
        )
    return list(regions.values())


def _region(memory: Touched) -> Region:
    view = memory.view
    *rows, columns = view.storage_shape
    size = view.element.itemsize
    count = rows[0] if rows else 1
    pitch = view.strides[0] * size if rows else columns * size
    return Region(
        name=memory.name,
        begin=view.pointer,
        row_bytes=columns * size,
        pitch=pitch,
        rows=count if columns else 0,
        writable=memory.written,
        initialized=not memory.written,
    )
