"""A stand-in for cuda-python on a machine with some GPUs; there need not be any."""

import enum
import sys
from types import ModuleType, SimpleNamespace


class DynamicLibNotFoundError(RuntimeError):
    """What cuda.pathfinder raises."""


class CUDAError(Exception):
    """What cuda.core raises; it is nobody's subclass."""


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
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
            "cuda.bindings.driver": {"cuInit": self.init, "cuDeviceGetCount": self.count, "CUresult": CUresult},
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
