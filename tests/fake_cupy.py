"""A stand-in for CuPy over pretended GPUs, which records what is asked of it: what CuPy 14 does, and no more.

`Gpus` is a machine; `install` puts its module ``cupy`` in place of whatever is installed, and its cuda-python too.
"""

import ctypes
import itertools
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

from quantplan import cubins
from quantplan.devices import cuda, emulated, gpu
from quantplan.emulator.schedule import Schedule
from tests import fake_cuda


class CudaError(RuntimeError):
    """What CuPy raises for the driver's and the runtime's refusals."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


REFUSALS = {
    "CUDA_ERROR_INVALID_VALUE": (1, "invalid argument"),
    "CUDA_ERROR_OUT_OF_MEMORY": (2, "out of memory"),
    "CUDA_ERROR_INVALID_IMAGE": (200, "device kernel image is invalid"),
    "CUDA_ERROR_NO_BINARY_FOR_GPU": (209, "no kernel image is available for execution on the device"),
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": (222, "the provided PTX was compiled with an unsupported toolchain."),
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": (701, "too many resources requested for launch"),
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": (900, "operation not permitted when stream is capturing"),
    "cudaErrorMemoryAllocation": (2, "out of memory"),
    "cudaErrorInsufficientDriver": (35, "CUDA driver version is insufficient for CUDA runtime version"),
    "cudaErrorStreamCaptureUnsupported": (900, "operation not permitted when stream is capturing"),
}


class Gpus:
    """A machine with GPUs. ``calls`` holds what was asked of it, as (name, device, details…)."""

    def __init__(self, *capabilities, threads=1024, shared=227 * 1024):
        self.capabilities, self.threads, self.shared = capabilities or ((9, 0),), threads, shared
        self.calls, self.refuses, self.captures = [], {}, {}
        self.handles = itertools.count(0x7F00, 0x10)
        self.now, self.us_per_launch, self.bytes_per_us = 0.0, 3.0, 1e6
        self.free = 2**34
        self.properties = {
            "name": b"Abacus 9000",
            "multiProcessorCount": 7,
            "totalGlobalMem": 2**35,
            "l2CacheSize": 2**16,
        }
        self._current = threading.local()
        self._addresses = itertools.count(2**40, 2**30)
        self._modules, self.sizes = {}, {}

    @property
    def current(self):
        return getattr(self._current, "index", 0)

    @property
    def launches(self):
        return [details for name, *details in self.calls if name == "launch"]

    def names(self):
        return [name for name, *_ in self.calls]

    def refuse(self, call, error):
        """Let a call fail from now on: ``load``, ``launch``, ``malloc``, ``device`` or ``shared``."""
        self.refuses[call] = error

    def did(self, name, *details):
        if name in self.refuses:
            status, meaning = REFUSALS[self.refuses[name]]
            raise CudaError(status, f"{self.refuses[name]}: {meaning}")
        self.calls.append((name, self.current, *details))

    # ---- the module

    def set_device(self, index):
        assert 0 <= index < len(self.capabilities)
        self._current.index = index

    def module(self):
        cupy = ModuleType("cupy")
        cupy.RawModule = lambda *, path: RawModule(self, path)
        cupy.asarray = lambda array: DeviceArray.of(self, array)
        cupy.zeros = lambda shape, dtype: DeviceArray.of(self, np.zeros(shape, dtype))
        cupy.int8, cupy.uint8, cupy.float16, cupy.float32 = np.int8, np.uint8, np.float16, np.float32
        runtime = SimpleNamespace(getDevice=lambda: self.current, setDevice=self.set_device)
        runtime.streamCaptureModeGlobal = 0
        runtime.memcpy = self.copy
        runtime.memcpyAsync = lambda target, source, size, kind, stream: self.copy(target, source, size, kind)
        runtime.deviceSynchronize = lambda: self.did("synchronize", None)
        runtime.memGetInfo = lambda: (self.free, 2 * self.free)
        runtime.getDeviceProperties = lambda index: dict(self.properties)
        cupy.cuda = SimpleNamespace(
            runtime=runtime,
            Device=lambda index=0: Device(self, index),
            Event=lambda: Event(self),
            Memory=self.memory,
            Stream=lambda **options: Stream(self, **options),
            get_elapsed_time=lambda start, end: (end.at - start.at) / 1e3,
            function=SimpleNamespace(CPointer=CPointer),
        )
        return cupy

    def copy(self, target, source, size, kind):
        """Copy memory, as cudaMemcpy does; addresses are real ones only where memory is the host's."""
        self.did("memcpy", size, kind)
        self.now += size / self.bytes_per_us

    def memory(self, size):
        assert size > 0, "CuPy gives no address for no memory"
        self.did("malloc", size)
        return SimpleNamespace(ptr=next(self._addresses), size=size, device_id=self.current)

    def load(self, path):
        """Load a module, once for each path and GPU, as CuPy does."""
        key = (path, self.current)
        if key not in self._modules:
            self.did("load", path, Path(path).read_bytes())
            self._modules[key] = path
        return self._modules[key]

    def launched(self, name, blocks, threads, params, shared):
        """Run a kernel that was launched: nothing runs here, and memory is never touched; but time passes."""
        self.now += self.us_per_launch


class Device:
    """CuPy's: it makes a GPU current for a while."""

    def __init__(self, gpus, index):
        self.gpus, self.index, self.before = gpus, index, []

    def __enter__(self):
        self.gpus.did("device", self.index)
        self.before.append(self.gpus.current)
        self.gpus.set_device(self.index)

    def __exit__(self, *details):
        self.gpus.set_device(self.before.pop())

    def synchronize(self):
        self.gpus.did("synchronize", None)


class EmulatedGpus(Gpus):
    """GPUs whose memory is the host's, and whose kernels run on the emulated device, unchecked.

    What is loaded must be put into ``specs``, by name.
    """

    def __init__(self, *capabilities):
        super().__init__(*capabilities)
        self.specs = {}

    def cubin(self, spec, arch):
        """Stand in for `cubins.cubin`."""
        self.specs[spec.name] = spec
        return f"{spec.name} for {arch}".encode()

    def memory(self, size):
        memory = super().memory(size)
        memory.buffer = np.full(size + 256, 0xA5, np.uint8)
        memory.ptr = memory.buffer.ctypes.data + -memory.buffer.ctypes.data % 256
        return memory

    def copy(self, target, source, size, kind):
        super().copy(target, source, size, kind)
        ctypes.memmove(target, source, size)

    def launched(self, name, blocks, threads, params, shared):
        super().launched(name, blocks, threads, params, shared)
        major, minor = self.capabilities[self.current]
        kernel = emulated._load(self.specs[name], 100 * major + 10 * minor, checked=False)
        kernel.launch(
            name,
            grid=(blocks,),
            block=(threads,),
            shared_bytes=shared,
            params=params,
            regions=(),
            schedule=Schedule(checked=False),
        )


class Event:
    """A moment of the pretended GPUs' own time, in microseconds."""

    def __init__(self, gpus):
        self.gpus, self.at = gpus, None

    def record(self, stream):
        assert stream is not None, "CuPy would take its own current stream"
        self.at = self.gpus.now

    def synchronize(self):
        assert self.at is not None


class Stream:
    """A stream, whose launches are over when they are called, unless they are captured."""

    def __init__(self, gpus, *, non_blocking=False):
        assert non_blocking, "other streams wait for the default stream"
        self.gpus, self.ptr, self.device_id = gpus, next(gpus.handles), gpus.current

    def __enter__(self):
        assert self.gpus.current == self.device_id, "CuPy refuses a stream of another device"
        return self

    def __exit__(self, *details):
        pass

    def synchronize(self):
        self.gpus.did("synchronize", self.ptr)

    def begin_capture(self, mode=None):
        self.gpus.captures[self.ptr] = []

    def end_capture(self):
        launches = self.gpus.captures.pop(self.ptr)

        def launch(stream):
            for details in launches:
                self.gpus.launched(*details)

        return SimpleNamespace(launch=launch)


class DeviceArray:
    """An array of a GPU, in memory that is aligned as CuPy's is, and that is read by `get` only."""

    def __init__(self, gpus, array):
        self.gpus, self._array, self.device = gpus, array, SimpleNamespace(id=gpus.current)
        self.shape, self.nbytes = array.shape, array.nbytes
        self.data = SimpleNamespace(ptr=array.ctypes.data, memset_async=self._memset)

    @classmethod
    def of(cls, gpus, array):
        """Copy an array to the GPU."""
        gpus.did("asarray", array.nbytes)
        room = np.empty(array.nbytes + 512, np.uint8)
        first = -room.ctypes.data % 512
        copy = room[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return cls(gpus, copy)

    @property
    def __cuda_array_interface__(self):
        return {**self._array.__array_interface__, "version": 3}

    def __getitem__(self, key):
        return DeviceArray(self.gpus, self._array[key])

    def reshape(self, *shape):
        return DeviceArray(self.gpus, self._array.reshape(*shape))

    def get(self, *, stream=None):
        self.gpus.did("get", stream and stream.ptr)
        return self._array.copy()

    def set(self, array, *, stream=None):
        assert array.shape == self.shape
        self._array[...] = array

    def _memset(self, value, size, stream):
        assert size == self.nbytes
        self._array.view(np.uint8)[...] = value


class RawModule:
    def __init__(self, gpus, path):
        assert isinstance(path, str)
        self.gpus, self.path = gpus, path

    def get_function(self, name):
        return RawKernel(self.gpus, self.path, name)


class RawKernel:
    """A kernel; nothing is loaded before it is asked for its function."""

    def __init__(self, gpus, path, name):
        self.gpus, self.path, self.name, self._functions = gpus, path, name, {}

    @property
    def kernel(self):
        index = self.gpus.current
        if index not in self._functions:
            self._functions[index] = Function(self.gpus, self.gpus.load(self.path), self.name, index)
        return self._functions[index]

    @property
    def max_threads_per_block(self):
        assert self.kernel
        return self.gpus.threads

    @property
    def max_dynamic_shared_size_bytes(self):
        return self.kernel.shared_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes):
        if nbytes > self.gpus.shared:
            self.gpus.refuses["shared"] = "CUDA_ERROR_INVALID_VALUE"
        self.gpus.did("shared", self.name, nbytes)
        self.kernel.shared_bytes = nbytes


class Function:
    """What launches: the signature and the conversions of CuPy's own."""

    def __init__(self, gpus, path, name, device):
        self.gpus, self.path, self.name, self.device, self.shared_bytes = gpus, path, name, device, 48 * 1024

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None):
        assert type(grid) is tuple
        assert type(block) is tuple
        assert stream is not None, "CuPy would take its own current stream"
        if self.gpus.current != self.device or shared_mem > self.shared_bytes:
            self.gpus.refuses["launch"] = "CUDA_ERROR_INVALID_VALUE"
        values = b"".join(by_value(argument, self.gpus.sizes.get(self.name)) for argument in args)
        # CuPy makes one block of none
        self.gpus.did("launch", self.name, max(1, *grid), *block, values, shared_mem, int(stream.ptr))
        details = (self.name, max(1, *grid), *block, values, shared_mem)
        if stream.ptr in self.gpus.captures:
            self.gpus.captures[stream.ptr].append(details)
        else:
            self.gpus.launched(*details)


class CPointer:
    """CuPy's: where an argument is, which CuPy hands on as it is."""

    def __init__(self, address):
        self.address = address


def by_value(argument, size):
    """Return the bytes that the driver reads: a kernel's parameters, or a NumPy array of one element."""
    if isinstance(argument, CPointer):
        return ctypes.string_at(argument.address, size)
    assert isinstance(argument, np.ndarray)
    assert argument.size == 1
    return ctypes.string_at(argument.__array_interface__["data"][0], argument.nbytes)


def install(monkeypatch, gpus):
    """Put a machine's CuPy and cuda-python in place of whatever is installed."""
    gpus.machine = fake_cuda.Machine(list(gpus.capabilities))
    fake_cuda.install(monkeypatch, gpus.machine)
    monkeypatch.setattr(cuda, "encode_tiled", lambda: gpus.machine.encode_tiled)
    monkeypatch.setitem(sys.modules, "cupy", gpus.module())
    gpu._device.cache_clear()
    monkeypatch.setattr(gpu, "_after_fork", False)
    load = gpu.CudaDevice._load

    def sized(device, spec):
        gpus.sizes[spec.name] = spec.params.size
        return load(device, spec)

    monkeypatch.setattr(gpu.CudaDevice, "_load", sized)
    return gpus


def install_emulated(monkeypatch, folder, gpus):
    """Install GPUs that run kernels; what they load lies in a folder, apart from real cubins."""

    def file_of(content):
        path = folder / f"{cubins.sha256(content)}.cubin"
        path.write_bytes(content)
        return path

    monkeypatch.setattr(gpu, "_file_of", file_of)
    monkeypatch.setattr(cubins, "cubin", gpus.cubin)
    return install(monkeypatch, gpus)


class Array:
    """An array on a pretended GPU, as CuPy's: it has an address, and nobody may read what lies there."""

    def __init__(self, shape, dtype, *, device=0, pointer=2**44, strides=None):
        self.device = SimpleNamespace(id=device)
        self.__cuda_array_interface__ = {
            "shape": tuple(shape),
            "typestr": np.dtype(dtype).str,
            "data": (pointer, False),
            "strides": strides,
            "version": 3,
        }
