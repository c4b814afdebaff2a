"""CUDA devices: what can be asked of the driver. Everything CUDA is imported when it is first needed."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from quantplan.errors import DriverError, DriverNotFound, InvalidProblem

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
    """Encode a tensor map for an address of the current GPU.

    Raises
    ------
    DriverError
        The driver refuses it: the GPU has no tensor maps, mostly.
    """
    from cuda.bindings import driver as api  # noqa: PLC0415 - importing quantplan touches no CUDA

    # Only sizes matter: a copy changes no value, and zero, which fills what is out of bounds, has no bit set.
    words = {1: "UINT8", 2: "UINT16", 4: "UINT32", 8: "UINT64"}
    span = f"{tensor_map.swizzle.value}B" if tensor_map.swizzle else "NONE"
    rank = len(tensor_map.shape)
    status, encoded = api.cuTensorMapEncodeTiled(
        api.CUtensorMapDataType[f"CU_TENSOR_MAP_DATA_TYPE_{words[tensor_map.itemsize]}"],
        rank,
        address,
        [api.cuuint64_t(extent) for extent in reversed(tensor_map.shape)],
        [api.cuuint64_t(pitch) for pitch in reversed(tensor_map.pitches)],
        [api.cuuint32_t(side) for side in reversed(tensor_map.box)],
        [api.cuuint32_t(1)] * rank,
        api.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        api.CUtensorMapSwizzle[f"CU_TENSOR_MAP_SWIZZLE_{span}"],
        api.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        api.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if status != api.CUresult.CUDA_SUCCESS:
        raise DriverError(f"no map of {tensor_map}", op="tensor map", code=int(status), name=status.name)
    return b"".join(int(word).to_bytes(8, sys.byteorder) for word in encoded.opaque)
