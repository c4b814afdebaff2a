"""A stand-in for cuda-python on a machine with some GPUs; there need not be any."""

import ctypes
import enum
import sys
from types import ModuleType, SimpleNamespace

from quantplan.emulator import tensor_maps
from quantplan.tensor_maps import Swizzle, TensorMap

ITEM_SIZES = {0: 1, 1: 2, 2: 4, 4: 8}  # of a tensor map's data type


class DynamicLibNotFoundError(RuntimeError):
    """What cuda.pathfinder raises."""


class CUDAError(Exception):
    """What cuda.core raises; it is nobody's subclass."""


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100


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

    def encode_tiled(self, room, kind, rank, address, *rest):
        """Record what the driver is asked for, and encode the map as emulated kernels want it."""
        *lists, interleave, swizzle, fetch, fill = rest
        assert room.value % 64 == 0
        if address.value % 16:
            return CUresult.CUDA_ERROR_INVALID_VALUE
        extents, pitches, box, steps = (list(values)[: rank.value] for values in lists)
        pitches.pop()
        enums = tuple(one.value for one in (kind, interleave, swizzle, fetch, fill))
        self.encoded.append((address.value, extents, pitches, box, steps, enums))
        shape, steps, sides = (tuple(reversed(values)) for values in (extents, pitches, box))
        wanted = TensorMap("x", shape, steps, ITEM_SIZES[kind.value], sides, list(Swizzle)[swizzle.value])
        ctypes.memmove(room, tensor_maps.encode(wanted, address.value), 128)
        return CUresult.CUDA_SUCCESS

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
