"""Small kernels on a GPU, from the same texts and with the same interface as the emulator's bench."""

import numpy as np

from quantplan import kernels
from quantplan.devices import cuda, gpu
from tests.emulator.conftest import PRELUDE, Bench, entry, pack


class GpuBench:
    """Runs a kernel `body(const P&)` on a GPU; see `Bench`."""

    def __init__(self, target):
        self.arch, self.index = target.arch, target.index
        self.cupy = gpu.device(target.index, target.arch).cupy
        with self.cupy.cuda.Device(self.index):
            self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self._compiled = {}

    def run(
        self,
        text,
        arrays,
        *,
        outputs=(),
        scalars=(),
        maps=(),
        grid=(1,),
        block=(32,),
        shared=0,
        cluster=1,
        **schedule,
    ):
        """Run `text`; arrays named in `outputs` are written. A GPU has its own schedule."""
        kernel = self.kernel(text, int(np.prod(block)), cluster)
        with self.cupy.cuda.Device(self.index), self.stream:
            copies = {name: self.cupy.asarray(array.reshape(-1).view(np.uint8)) for name, array in arrays.items()}
            pointers = {name: int(copy.data.ptr) for name, copy in copies.items()}
            encoded = [b"" if one is None else cuda.encode(one, pointers[one.operand]) for one in maps]
            params = pack(encoded, list(pointers.values()), scalars)
            value = np.frombuffer(bytearray(params), np.dtype([("params", f"V{len(params)}")]))
            kernel(tuple(grid), tuple(block), (value,), shared_mem=shared, stream=self.stream)
        for name in outputs:
            arrays[name].reshape(-1).view(np.uint8)[...] = copies[name].get(stream=self.stream)

    def kernel(self, text, threads, cluster=1):
        """Compile and load `text`, once."""
        if (text, threads, cluster) not in self._compiled:
            cubin = kernels.compile_text(f"{PRELUDE}{text}\n{entry(threads, cluster)}\n", self.arch)
            with self.cupy.cuda.Device(self.index):
                function = self.cupy.RawModule(path=str(gpu._file_of(cubin))).get_function("k")
                self._compiled[text, threads, cluster] = function.kernel
        return self._compiled[text, threads, cluster]


class Both:
    """Runs a text on the GPU and on the emulator, with the same inputs."""

    def __init__(self, target):
        major, minor = target.capability
        self.gpu, self.emulator, self.arch = GpuBench(target), Bench(), 100 * major + 10 * minor

    def run(self, text, arrays, *, outputs, **launch):
        """Return the outputs of both, as (GPU's, emulator's), by name."""
        results = []
        for bench in (self.gpu, self.emulator):
            own = {name: _aligned(array) for name, array in arrays.items()}
            bench.run(text, own, outputs=outputs, arch=self.arch, checked=False, **launch)
            results.append({name: own[name] for name in outputs})
        return results

    def check(self, text, arrays, *, outputs, **launch):
        """Assert that both write the same bits; return them."""
        silicon, emulated = self.run(text, arrays, outputs=outputs, **launch)
        for name in outputs:
            got, expected = bits(silicon[name]), bits(emulated[name])
            wrong = np.argwhere(got != expected)
            where = tuple(wrong[0]) if len(wrong) else ()
            example = len(wrong) and f"e.g. at {where}: {got[where]:#x} on the GPU, {expected[where]:#x} emulated"
            assert not len(wrong), f"{name}: {len(wrong)} of {got.size} differ, {example}"
        return silicon


def bits(array):
    return array.view(f"u{array.dtype.itemsize}")


def _aligned(array):
    """Copy to an address that is a multiple of 128, as on a GPU."""
    room = np.empty(array.nbytes + 128, np.uint8)
    first = -room.ctypes.data % 128
    copy = room[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
