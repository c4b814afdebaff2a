"""A stand-in for cuda-python on a machine with some GPUs; there need not be any."""

import enum
import sys
from types import ModuleType, SimpleNamespace

import numpy as np

from quantplan.emulator import tensor_maps
from quantplan.tensor_maps import Swizzle, TensorMap


class DynamicLibNotFoundError(RuntimeError):
    """What cuda.pathfinder raises."""


class CUDAError(Exception):
    """What cuda.core raises; it is nobody's subclass."""


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100


def _enum(name, prefix, **members):
    return enum.IntEnum(name, {f"CU_TENSOR_MAP_{prefix}_{member}": value for member, value in members.items()})


# As in cuda.h.
TENSOR_MAP_ENUMS = {
    one.__name__: one
    for one in (
        _enum("CUtensorMapDataType", "DATA_TYPE", UINT8=0, UINT16=1, UINT32=2, UINT64=4),
        _enum("CUtensorMapInterleave", "INTERLEAVE", NONE=0),
        _enum("CUtensorMapSwizzle", "SWIZZLE", **{"NONE": 0, "32B": 1, "64B": 2, "128B": 3}),
        _enum("CUtensorMapL2promotion", "L2_PROMOTION", L2_256B=3),
        _enum("CUtensorMapFloatOOBfill", "FLOAT_OOB_FILL", NONE=0),
    )
}


class Machine:
    """A machine with some GPUs, as cuda-core 1.2 and cuda-bindings 13 show it.

    ``installed`` GPUs are all that the management library (NVML) counts; ``capabilities`` are those of the GPUs that
    CUDA shows this process, which may be fewer, see CUDA_VISIBLE_DEVICES.
    """

    def __init__(self, capabilities, installed=None, libraries=("cuda", "nvml")):
        self.capabilities, self.libraries = capabilities, libraries
        self.installed = len(capabilities) if installed is None else installed
        self.encoded = []  # arguments of each tensor map
        machine = self

        class Device:
            def __init__(self, device_id):
                machine.initialise()
                if not 0 <= device_id < len(machine.capabilities):
                    raise ValueError(f"device_id must be within [0, {len(machine.capabilities)}), got {device_id}")
                self.device_id = device_id
                self.compute_capability = machine.capabilities[device_id]

            @classmethod
            def get_all_devices(cls):
                machine.initialise()
                return tuple(cls(index) for index in range(len(machine.capabilities)))

        self.modules = {
            "cuda": {},
            "cuda.core": {"Device": Device, "system": SimpleNamespace(get_num_devices=self.nvml_count)},
            "cuda.pathfinder": {
                "load_nvidia_dynamic_lib": self.load,
                "DynamicLibNotFoundError": DynamicLibNotFoundError,
            },
            "cuda.bindings": {},
            "cuda.bindings.driver": {
                "cuInit": self.init,
                "cuDeviceGetCount": self.count,
                "CUresult": CUresult,
                "cuTensorMapEncodeTiled": self.encode,
                "cuuint32_t": np.uint32,
                "cuuint64_t": np.uint64,
                **TENSOR_MAP_ENUMS,
            },
        }

    def load(self, name):
        if name not in self.libraries:
            raise DynamicLibNotFoundError(f'"{name}" is an NVIDIA library\nsearched everywhere')
        return SimpleNamespace(abs_path=f"/usr/lib/lib{name}.so")

    def initialise(self):
        self.load("cuda")
        if not self.capabilities:
            raise CUDAError("CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected")

    def init(self, flags):
        assert flags == 0
        self.load("cuda")
        return (CUresult.CUDA_SUCCESS if self.capabilities else CUresult.CUDA_ERROR_NO_DEVICE,)

    def count(self):
        if not self.capabilities:
            return (CUresult.CUDA_ERROR_NOT_INITIALIZED, None)
        return (CUresult.CUDA_SUCCESS, len(self.capabilities))

    def encode(self, *arguments):
        """Record what is asked for, and encode the map as emulated kernels want it."""
        kind, rank, address, *lists = arguments[:7]
        if address % 16:
            return (CUresult.CUDA_ERROR_INVALID_VALUE, None)
        extents, pitches, box, steps = ([int(value) for value in values] for values in lists)
        _, swizzle, *_ = enums = arguments[7:]
        self.encoded.append((kind, rank, address, extents, pitches, box, steps, *enums))
        spans, itemsize = dict(enumerate(Swizzle)), int(kind.name.rpartition("UINT")[2]) // 8
        outermost_first = [tuple(reversed(values)) for values in (extents, pitches)]
        wanted = TensorMap("x", *outermost_first, itemsize, tuple(reversed(box)), spans[swizzle])
        words = np.frombuffer(tensor_maps.encode(wanted, address), np.uint64)
        return (CUresult.CUDA_SUCCESS, SimpleNamespace(opaque=list(words)))

    def nvml_count(self):
        self.load("nvml")
        return self.installed


def install(monkeypatch, machine):
    """Put a machine's cuda-python in place of whatever is installed; return its module cuda.core."""
    made = {}
    for name, members in machine.modules.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(members)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(made[parent], own, made[name])
        monkeypatch.setitem(sys.modules, name, made[name])
    return made["cuda.core"]
