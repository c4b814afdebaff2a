"""GPUs: cubins loaded as CuPy modules when a plan is selected, launched as CuPy kernels on the caller's stream."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from quantplan import cache as disk
from quantplan import cubins
from quantplan.devices import cuda
from quantplan.errors import CaptureError, DriverError, DriverNotFound, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from quantplan.devices.device import Grid, Touched
    from quantplan.devices.stream import Stream
    from quantplan.kernels import KernelSpec
    from quantplan.tensor_maps import TensorMap

_WITHOUT_ASKING = 48 * 1024  # dynamic shared memory that a launch may have as it is
_TOO_OLD = {
    "CUDA_ERROR_INVALID_IMAGE",  # a cubin of a newer format
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    "cudaErrorInsufficientDriver",
}
_after_fork = False


@attrs.frozen(eq=False)
class CudaKernel:
    """A kernel that is loaded on a GPU.

    Parameters
    ----------
    spec : KernelSpec
        Which.
    device : CudaDevice
        Where.
    function : cupy.cuda.Function
        What launches it.
    """

    spec: KernelSpec
    device: CudaDevice
    function: Any

    def prepare(self, grid: Grid, params: bytes, touched: Callable[[], Sequence[Touched]]) -> Any:  # noqa: ANN401, ARG002 - a callable; the hardware checks what it touches
        """Return the launch, for a checked stream: nothing is allocated, compiled or waited for."""
        # CuPy would ask a NumPy structure for its description at every launch, which takes longer than the launch; it
        # hands a pointer on as it is. The operands' owners are kept alive by the plan that is bound to them.
        value = ctypes.create_string_buffer(params, len(params))
        pointer = self.device.cupy.cuda.function.CPointer(ctypes.addressof(value))
        blocks = (grid.launched(self.device.sms, self.spec.cluster),)
        threads, arguments = (self.spec.threads,), (pointer,)
        function, shared, index, runtime = self.function, grid.shared_bytes, self.device.index, self.device.runtime
        name = self.spec.name

        def launch(stream: Stream, _alive: object = value) -> None:
            if _after_fork:
                _refuse_fork()
            before = runtime.getDevice()
            if before != index:
                runtime.setDevice(index)
            try:
                function(blocks, threads, arguments, shared_mem=shared, stream=stream)
            except RuntimeError as error:
                if (refusal := _refusal(error, "launch", name)) is None:
                    raise
                raise refusal from error
            finally:
                if before != index:
                    runtime.setDevice(before)

        return launch

    def tensor_map(self, tensor_map: TensorMap, address: int) -> bytes:
        """Let the driver encode a map for an address.

        Raises
        ------
        DriverError
            It refuses.
        """
        with self.device.cupy.cuda.Device(self.device.index):
            return cuda.encode(tensor_map, address)


@attrs.frozen(eq=False)
class CudaDevice:
    """A GPU of this machine.

    Parameters
    ----------
    index : int
        Its index.
    arch : str
        The architecture that kernels are compiled for.
    cupy : module
        CuPy.
    """

    index: int
    arch: str
    cupy: Any
    _loaded: dict[KernelSpec, CudaKernel] = attrs.field(factory=dict, init=False, repr=False)

    @property
    def runtime(self) -> Any:  # noqa: ANN401 - CuPy's
        """CuPy's runtime calls."""
        return self.cupy.cuda.runtime

    @cached_property
    def sms(self) -> int:
        """Streaming multiprocessors."""
        return int(self.runtime.getDeviceProperties(self.index)["multiProcessorCount"])

    def load(self, specs: Iterable[KernelSpec]) -> tuple[CudaKernel, ...]:
        """Compile kernels unless they are compiled already, and load them: lazy loading would break graph capture.

        Raises
        ------
        CompilerNotFound, KernelBuildError
            See `cubins.cubin`.
        CaptureError
            A graph is being captured on this thread, and the driver loads nothing then.
        DriverError
            The driver refuses the cubin.
        Unsupported
            The kernel needs more threads or shared memory than the GPU has.
        """
        if _after_fork:
            _refuse_fork()
        return tuple(self._loaded.get(spec) or self._load(spec) for spec in specs)

    def allocate(self, nbytes: int) -> tuple[int, object]:
        """Allocate memory of its own, not a pool's: no work of another stream can still be using it.

        Returns
        -------
        tuple[int, object]
            The address, a multiple of 256, and what frees the memory when it goes away.

        Raises
        ------
        DriverError
            There is not that much memory.
        CaptureError
            A graph is being captured on this thread.
        """
        if _after_fork:
            _refuse_fork()
        with _driver_errors("allocate", f"{nbytes} bytes"), self.cupy.cuda.Device(self.index):
            memory = self.cupy.cuda.Memory(max(1, nbytes))
        return int(memory.ptr), memory

    def _load(self, spec: KernelSpec) -> CudaKernel:
        content = cubins.cubin(spec, self.arch)
        with _driver_errors("load", f"{spec.name} for {self.arch}"), self.cupy.cuda.Device(self.index):
            kernel = self.cupy.RawModule(path=str(_file_of(content))).get_function(spec.name)
            function = kernel.kernel  # loads it
            if kernel.max_threads_per_block < spec.threads:
                most = f"this GPU runs it with up to {kernel.max_threads_per_block}"
                raise Unsupported(f"{spec.name} takes {spec.threads} threads, and {most}", op="load")
            if spec.shared_bytes > _WITHOUT_ASKING:
                _allow_shared(kernel, spec)
        return self._loaded.setdefault(spec, CudaKernel(spec, self, function))


def _allow_shared(kernel: Any, spec: KernelSpec) -> None:  # noqa: ANN401 - CuPy's
    try:
        kernel.max_dynamic_shared_size_bytes = spec.shared_bytes
    except RuntimeError as error:
        if not str(error).startswith("CUDA_ERROR_INVALID_VALUE"):
            raise
        wanted = f"{spec.name} takes {spec.shared_bytes} bytes of shared memory"
        raise Unsupported(f"{wanted}, and this GPU has less for a block", op="load") from error


def device(index: int, arch: str) -> CudaDevice:
    """Return a GPU.

    Parameters
    ----------
    index : int
        Its index.
    arch : str
        Its architecture, with the suffix of its own features.

    Raises
    ------
    DriverNotFound
        There is no driver, or CuPy is not installed.
    """
    cuda.driver()
    return _device(index, arch)


@cache
def _device(index: int, arch: str) -> CudaDevice:
    try:
        import cupy  # noqa: PLC0415 - importing quantplan touches no CUDA
    except ImportError as error:
        hint = "pip install 'quantplan[cuda13]'"
        raise DriverNotFound("CuPy is not installed", op="cuda", hint=hint) from error
    return CudaDevice(index, arch, cupy)


def _file_of(content: bytes) -> Path:
    """Return a file of just this content, for CuPy loads cubins by path and remembers them by it.

    Its name is its digest, so that no name ever stands for two contents. It is written where nobody else can write, and
    read again before it is used.
    """
    try:
        path = disk.folder("loaded") / f"{cubins.sha256(content)}.cubin"
        if not path.is_file() or path.read_bytes() != content:
            disk.write(path, content)
    except OSError:
        return _in_memory(content)
    return path


@cache
def _in_memory(content: bytes) -> Path:
    """Keep a file in memory, for as long as the process lives: no disk can be written."""
    if sys.platform != "linux":
        hint = "set QUANTPLAN_CACHE_DIR to a folder of your own"
        raise DriverError(
            "a cubin is loaded from a file, and no folder can be written", op="load", code=0, name="", hint=hint
        )
    handle = os.memfd_create("quantplan")
    os.write(handle, content)
    return Path(f"/proc/self/fd/{handle}")


@contextlib.contextmanager
def _driver_errors(op: str, what: str) -> Iterator[None]:
    """Turn what CuPy raises for the driver's refusals into our errors."""
    try:
        yield
    except RuntimeError as error:
        if (refusal := _refusal(error, op, what)) is None:
            raise
        raise refusal from error


def _refusal(error: RuntimeError, op: str, what: str) -> CaptureError | DriverError | None:
    """Return our error for one of CuPy's, whose text is ``NAME: what it means``; None for anybody else's."""
    status = getattr(error, "status", None)
    if status is None:
        return None
    name, _, meaning = str(error).partition(":")
    message = f"{name}: {meaning.strip()}: {what}"
    if "CAPTURE" in name.upper():
        return CaptureError(message, op=op, hint="select plans and allocate workspaces before the capture begins")
    remedy = "update the NVIDIA driver, or install the CUDA packages that it supports"
    return DriverError(message, op=op, code=int(status), name=name, hint=remedy if name in _TOO_OLD else None)


def _refuse_fork() -> None:
    hint = "use multiprocessing's spawn, or select plans in the child only"
    raise DriverError("CUDA does not survive a fork", op="cuda", code=3, name="CUDA_ERROR_NOT_INITIALIZED", hint=hint)


def _note_fork() -> None:
    global _after_fork  # noqa: PLW0603 - a flag costs a launch less than asking for the process's number
    _after_fork = _device.cache_info().currsize > 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
