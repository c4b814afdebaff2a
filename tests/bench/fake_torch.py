"""A stand-in for torch: what measurements ask of it, and no more. Products take time, and have no values."""

import contextlib
from types import SimpleNamespace


class Tensor:
    def __init__(self, torch, shape, dtype, device):
        self.torch, self.shape, self.dtype, self.device = torch, tuple(shape), dtype, device

    def to(self, dtype):
        return Tensor(self.torch, self.shape, dtype, self.device)

    def t(self):
        return Tensor(self.torch, self.shape[::-1], self.dtype, self.device)

    def __mul__(self, other):
        return self

    __add__ = __mul__

    def __getitem__(self, index):
        return Tensor(self.torch, self.shape[1:], self.dtype, self.device)

    def copy_(self, other):
        self.torch.work(10.0)


class Torch:
    """The module, on pretended GPUs, whose clock its work advances."""

    float16, bfloat16, float32, int8, uint8, float8_e4m3fn = "f16", "bf16", "f32", "s8", "u8", "e4m3"

    def __init__(self, gpus):
        self.gpus, self.capturing, self.refuses = gpus, None, {}
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            ExternalStream=self._stream,
            CUDAGraph=lambda: Graph(self),
            stream=self._on,
            empty_cache=lambda: None,
        )
        self.current = None

    def _stream(self, handle, device):
        return SimpleNamespace(handle=handle, device=device, synchronize=lambda: None)

    @contextlib.contextmanager
    def _on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def work(self, us):
        assert self.current is not None, "torch would take its default stream, which no event of ours is on"
        if self.capturing is None:
            self.gpus.now += us
        else:
            self.capturing.append(us)

    def randn(self, *shape, device, dtype):
        return Tensor(self, shape, dtype, device)

    rand = empty = randn

    def randint(self, low, high, shape, *, device, dtype):
        return Tensor(self, shape, dtype, device)

    def empty_like(self, tensor):
        return tensor

    def mm(self, a, b, *, out):
        assert a.shape[1] == b.shape[0]
        assert out.shape == (a.shape[0], b.shape[1])
        self.work(20.0)

    def _int_mm(self, a, b):
        self.work(8.0)
        return Tensor(self, (a.shape[0], b.shape[1]), "s32", a.device)

    def _scaled_mm(self, a, b, *, scale_a, scale_b, out_dtype, use_fast_accum):
        if "_scaled_mm" in self.refuses:
            raise RuntimeError(self.refuses["_scaled_mm"])
        self.work(9.0)


class Graph:
    def __init__(self, torch):
        self.torch, self.works = torch, []

    def capture_begin(self):
        self.torch.capturing = self.works

    def capture_end(self):
        self.torch.capturing = None

    def replay(self):
        assert self.torch.current is not None
        for us in self.works:
            self.torch.gpus.now += us
