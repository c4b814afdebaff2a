"""CUDA devices: what can be asked of the driver. Everything CUDA is imported when it is first needed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from quantplan.errors import DriverError, DriverNotFound, InvalidProblem
from quantplan.tensor_maps import MAP_ALIGNMENT, MAP_BYTES, Swizzle

if TYPE_CHECKING:
    from quantplan.tensor_maps import TensorMap


def driver() -> Any:  # noqa: ANN401 - cuda.core has no stub that holds on every version
    """Return the module ``cuda.core``, after making sure that a driver is there.

    Raises
    ------
    DriverNotFound
        cuda-python is not installed, or the driver's library is not found.
    """
    try:
        from cuda import core, pathfinder  # noqa: PLC0415 - importing quantplan touches no CUDA
    except ImportError as error:
        hint = "pip install 'quantplan[cuda13]'; the target 'cpu' needs no GPU"
        raise DriverNotFound("cuda-python is not installed", op="cuda", hint=hint) from error
    try:
        pathfinder.load_nvidia_dynamic_lib("cuda")
    except pathfinder.DynamicLibNotFoundError as error:
        hint = "install the NVIDIA driver; 'cpu' runs and a bare architecture such as 'sm_90a' selects without it"
        raise DriverNotFound("no CUDA driver on this machine", op="cuda", hint=hint) from error
    return core


def device_count() -> int:
    """Return the number of GPUs that CUDA shows this process.

    Raises
    ------
    DriverNotFound
        There is no driver.
    DriverError
        It does not start.
    """
    driver()
    from cuda.bindings import driver as api  # noqa: PLC0415 - importing quantplan touches no CUDA

    # Not cuda.core.system: NVML also counts GPUs that CUDA_VISIBLE_DEVICES hides, and may be missing where CUDA is not.
    (status,), count = api.cuInit(0), 0
    if status == api.CUresult.CUDA_SUCCESS:
        status, count = api.cuDeviceGetCount()
    if status == api.CUresult.CUDA_ERROR_NO_DEVICE:
        return 0
    if status != api.CUresult.CUDA_SUCCESS:
        forked = status == api.CUresult.CUDA_ERROR_NOT_INITIALIZED
        hint = "CUDA does not survive a fork: use multiprocessing's spawn" if forked else None
        raise DriverError(op="cuda", code=int(status), name=status.name, hint=hint)
    return int(count)


def compute_capability(index: int) -> tuple[int, int]:
    """Return (major, minor) of a GPU.

    Raises
    ------
    DriverNotFound
        There is no driver.
    InvalidProblem
        There is no such GPU.
    """
    return _compute_capability(driver(), index)


@cache
def _compute_capability(core: Any, index: int) -> tuple[int, int]:  # noqa: ANN401 - as `driver`
    """Ask once: every `select` names a device, and its capability does not change."""
    count = device_count()
    if not 0 <= index < count:
        raise InvalidProblem(op="cuda", field="device", expected=f"an index below {count}", got=index)
    major, minor = core.Device(index).compute_capability
    return int(major), int(minor)


def encode(tensor_map: TensorMap, address: int) -> bytes:
    """Let the driver encode a tensor map for an address of the current GPU.

    Raises
    ------
    DriverError
        It refuses: the GPU has no tensor maps, mostly.
    """
    import ctypes  # noqa: PLC0415 - importing quantplan is to stay cheap

    room = ctypes.create_string_buffer(2 * MAP_BYTES)
    aligned = -(-ctypes.addressof(room) // MAP_ALIGNMENT) * MAP_ALIGNMENT
    rank = len(tensor_map.shape)
    status = encode_tiled()(
        ctypes.c_void_p(aligned),
        ctypes.c_int(_WORDS[tensor_map.itemsize]),
        ctypes.c_uint32(rank),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * rank)(*reversed(tensor_map.shape)),
        (ctypes.c_uint64 * rank)(*reversed(tensor_map.pitches)),
        (ctypes.c_uint32 * rank)(*reversed(tensor_map.box)),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        ctypes.c_int(_NO_INTERLEAVE),
        ctypes.c_int(_SWIZZLES[tensor_map.swizzle]),
        ctypes.c_int(_FETCH_256_BYTES),
        ctypes.c_int(_FILL_WITH_ZERO),
    )
    if status:
        from cuda.bindings import driver as api  # noqa: PLC0415 - importing quantplan touches no CUDA

        name = api.CUresult(status).name
        raise DriverError(f"{name}: no map of {tensor_map}", op="tensor map", code=status, name=name)
    return ctypes.string_at(aligned, MAP_BYTES)


# As cuda.h numbers them. Of an item only its size matters: a copy changes no value, and zero has no bit set.
_WORDS = {1: 0, 2: 1, 4: 2, 8: 4}
_SWIZZLES = {Swizzle.NONE: 0, Swizzle.B32: 1, Swizzle.B64: 2, Swizzle.B128: 3}
_NO_INTERLEAVE, _FETCH_256_BYTES, _FILL_WITH_ZERO = 0, 3, 0


@cache
def encode_tiled() -> Any:  # noqa: ANN401 - a function of C
    """Return the driver's ``cuTensorMapEncodeTiled``.

    cuda-python's own lets it write to memory that is mostly not aligned as a map has to be.
    """
    import ctypes  # noqa: PLC0415 - as above

    from cuda import pathfinder  # noqa: PLC0415 - importing quantplan touches no CUDA

    return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cuda").abs_path).cuTensorMapEncodeTiled
