"""Peers: what users would take instead, measured in the same run. Each is optional, and says why it is absent.

A line of `PEERS` adds one: a function that makes its operands for a problem, and returns one call for each set of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[], object]
    Prepare = Callable[["Bench"], list[Call]]

_FP8_LARGEST, _S8_LARGEST = 448.0, 127.0
_UINT4B8 = 1049600  # vLLM's number of unsigned 4-bit integers that have 8 subtracted
_VLLM_LIBRARY = "_C_stable_libtorch.abi3.so"


class AbsentError(Exception):
    """A peer is not installed, or does not do the problem; the message says which."""


@attrs.frozen
class Bench:
    """What a peer is given.

    Parameters
    ----------
    torch : module
        PyTorch.
    device : str
        The GPU, by torch's name.
    m, n, k : int
        The problem.
    sets : int
        How many sets of operands there shall be.
    """

    torch: Any
    device: str
    m: int
    n: int
    k: int
    sets: int

    def real(self, rows: int, columns: int, dtype: str = "bfloat16") -> Any:  # noqa: ANN401 - a tensor
        """Return normally distributed values."""
        return self.torch.randn(rows, columns, device=self.device, dtype=getattr(self.torch, dtype))

    def integers(self, rows: int, columns: int) -> Any:  # noqa: ANN401 - a tensor
        """Return all 8-bit integers."""
        return self.torch.randint(-128, 128, (rows, columns), device=self.device, dtype=self.torch.int8)

    def fp8(self, rows: int, columns: int) -> Any:  # noqa: ANN401 - a tensor
        """Return FP8 values."""
        return self.real(rows, columns).to(self.torch.float8_e4m3fn)

    def scales(self, *shape: int) -> Any:  # noqa: ANN401 - a tensor
        """Return small positive factors."""
        return self.torch.rand(*shape, device=self.device, dtype=self.torch.float32) * 0.01 + 0.005

    def empty(self, rows: int, columns: int, dtype: str = "bfloat16") -> Any:  # noqa: ANN401 - a tensor
        """Return room for a result."""
        return self.torch.empty(rows, columns, device=self.device, dtype=getattr(self.torch, dtype))


@attrs.frozen
class Peer:
    """One line.

    Parameters
    ----------
    package : str
        The distribution that it comes from.
    prepare : callable
        Makes operands and returns the calls; raises `AbsentError`.
    """

    package: str
    prepare: Prepare


def versions() -> dict[str, str]:
    """Return the version of each package that a peer comes from, or ``"absent"``."""
    found = {}
    for package in sorted({peer.package for peer in PEERS.values()}):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _per_set(make: Callable[[Bench], Call]) -> Prepare:
    return lambda bench: [make(bench) for _ in range(bench.sets)]


# ---- torch


def _matmul(dtype: str) -> Prepare:
    def make(bench: Bench) -> Call:
        act, weight = bench.real(bench.m, bench.k, dtype), bench.real(bench.n, bench.k, dtype)
        output = bench.empty(bench.m, bench.n, dtype)
        return lambda: bench.torch.mm(act, weight.t(), out=output)

    return _per_set(make)


def _int_mm(bench: Bench) -> Call:
    if bench.m <= 16:  # noqa: PLR2004 - torch's own limit
        raise AbsentError("torch._int_mm needs more than 16 rows")
    act, weight = bench.integers(bench.m, bench.k), bench.integers(bench.n, bench.k)
    return lambda: bench.torch._int_mm(act, weight.t())  # noqa: SLF001 - it has no public name


def _int_mm_scaled(bench: Bench) -> Call:
    product, act_scale, weight_scale = _int_mm(bench), bench.scales(bench.m, 1), bench.scales(1, bench.n)

    def call() -> object:
        exact: Any = product()
        return (exact * act_scale * weight_scale).to(bench.torch.bfloat16)

    return call


def _scaled_mm(*, by_row: bool) -> Prepare:
    def make(bench: Bench) -> Call:
        act, weight = bench.fp8(bench.m, bench.k), bench.fp8(bench.n, bench.k)
        act_scale = bench.scales(bench.m, 1) if by_row else bench.scales(1)[0]
        weight_scale = bench.scales(1, bench.n) if by_row else bench.scales(1)[0]
        options = {"out_dtype": bench.torch.bfloat16, "use_fast_accum": True}
        product = bench.torch._scaled_mm  # noqa: SLF001 - it has no public name
        return lambda: product(act, weight.t(), scale_a=act_scale, scale_b=weight_scale, **options)

    return _per_set(make)


def _eager(dtype: str, largest: float, *, by_row: bool) -> Prepare:
    def make(bench: Bench) -> Call:
        torch, x = bench.torch, bench.real(bench.m, bench.k)

        def call() -> object:
            wide = x.float()
            scale = (wide.abs().amax(dim=1, keepdim=True) if by_row else wide.abs().amax()) / largest
            quotient = wide / scale
            return (
                (quotient.round() if dtype == "int8" else quotient).clamp(-largest, largest).to(getattr(torch, dtype))
            )

        return call

    return _per_set(make)


# ---- vLLM


def _vllm(bench: Bench) -> Any:  # noqa: ANN401 - torch's registry
    """Load vLLM's operators without importing vLLM, whose other needs may not be met."""
    spec = importlib.util.find_spec("vllm")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    library = next((folder / _VLLM_LIBRARY for folder in folders if (folder / _VLLM_LIBRARY).is_file()), None)
    if library is None:
        raise AbsentError("vLLM is not installed")
    bench.torch.ops.load_library(str(library))
    return bench.torch.ops._C  # noqa: SLF001 - its name


def _cutlass(dtype: str, *, by_row: bool) -> Prepare:
    def make(bench: Bench) -> Call:
        ops = _vllm(bench)
        make = bench.integers if dtype == "int8" else bench.fp8
        act, weight, output = make(bench.m, bench.k), make(bench.n, bench.k), bench.empty(bench.m, bench.n)
        act_scale = bench.scales(bench.m if by_row else 1, 1)
        weight_scale = bench.scales(bench.n if by_row else 1, 1)
        return lambda: ops.cutlass_scaled_mm(output, act, weight.t(), act_scale, weight_scale, None)

    return _per_set(make)


def _vllm_int8(bench: Bench) -> Call:
    ops, x, scale = _vllm(bench), bench.real(bench.m, bench.k), bench.scales(bench.m, 1)
    q = bench.empty(bench.m, bench.k, "int8")
    return lambda: ops.dynamic_scaled_int8_quant(q, x, scale, None)


def _vllm_fp8(bench: Bench) -> Call:
    ops, x, scale = _vllm(bench), bench.real(bench.m, bench.k), bench.scales(bench.m, 1)
    q = bench.empty(bench.m, bench.k, "float8_e4m3fn")
    return lambda: ops.dynamic_per_token_scaled_fp8_quant(q, x, scale, None)


def _vllm_fp8_tensor(bench: Bench) -> Call:
    ops, x, scale = _vllm(bench), bench.real(bench.m, bench.k), bench.scales(1)
    q = bench.empty(bench.m, bench.k, "float8_e4m3fn")
    return lambda: ops.dynamic_scaled_fp8_quant(q, x, scale)


def _marlin(bench: Bench) -> Call:
    ops, torch, m, n, k = _vllm(bench), bench.torch, bench.m, bench.n, bench.k
    words = torch.randint(-(2**31), 2**31 - 1, (k // 16, n * 2), device=bench.device, dtype=torch.int32)
    given = {
        "a": bench.real(m, k, "float16"),
        "b_q_weight": words,
        "b_scales": bench.scales(k // 128, n).half(),
        "workspace": torch.zeros(1024, device=bench.device, dtype=torch.int32),
        "b_type_id": _UINT4B8,
        "size_m": m,
        "size_n": n,
        "size_k": k,
        "is_k_full": True,
        "use_atomic_add": False,
        "use_fp32_reduce": True,
        "is_zp_float": False,
    }
    gemm = ops.marlin_gemm.default
    # by name, because the list has grown with every version; what is not given here is optional
    arguments = [given.get(argument.name) for argument in gemm._schema.arguments]  # noqa: SLF001 - it has no public name
    return lambda: gemm(*arguments)


# ---- others


def _deep_gemm(bench: Bench) -> Call:
    deep_gemm = _imported("deep_gemm", "DeepGEMM")
    act, weight, output = bench.fp8(bench.m, bench.k), bench.fp8(bench.n, bench.k), bench.empty(bench.m, bench.n)
    blocks = -(-bench.k // 128)
    act_scale = deep_gemm.get_mn_major_tma_aligned_tensor(bench.scales(bench.m, blocks))
    weight_scale = bench.scales(-(-bench.n // 128), blocks)
    return lambda: deep_gemm.fp8_gemm_nt((act, act_scale), (weight, weight_scale), output)


def _humming(bench: Bench) -> Call:
    layer_module = _imported("humming.layer", "humming")
    layer = layer_module.HummingLayer(
        shape_n=bench.n,
        shape_k=bench.k,
        weight_config={"dtype": "int4", "group_size": 128},
        torch_dtype=bench.torch.float16,
    ).to(bench.device)
    layer.load_from_unquantized(bench.real(bench.n, bench.k, "float16"))
    layer.transform()
    act = bench.real(bench.m, bench.k, "float16")
    return lambda: layer(act)


def _imported(module: str, name: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AbsentError(f"{name} is not installed: {error}") from error


PEERS = {
    "torch f16": Peer("torch", _matmul("float16")),
    "torch bf16": Peer("torch", _matmul("bfloat16")),
    "torch._int_mm": Peer("torch", _per_set(_int_mm)),
    "torch._int_mm, scaled": Peer("torch", _per_set(_int_mm_scaled)),
    "torch._scaled_mm": Peer("torch", _scaled_mm(by_row=False)),
    "torch._scaled_mm rows": Peer("torch", _scaled_mm(by_row=True)),
    "torch eager int8": Peer("torch", _eager("int8", _S8_LARGEST, by_row=True)),
    "torch eager fp8": Peer("torch", _eager("float8_e4m3fn", _FP8_LARGEST, by_row=True)),
    "torch eager fp8 tensor": Peer("torch", _eager("float8_e4m3fn", _FP8_LARGEST, by_row=False)),
    "vLLM CUTLASS int8": Peer("vllm", _cutlass("int8", by_row=True)),
    "vLLM CUTLASS fp8": Peer("vllm", _cutlass("fp8", by_row=False)),
    "vLLM CUTLASS fp8 rows": Peer("vllm", _cutlass("fp8", by_row=True)),
    "vLLM int8 quantize": Peer("vllm", _per_set(_vllm_int8)),
    "vLLM fp8 quantize": Peer("vllm", _per_set(_vllm_fp8)),
    "vLLM fp8 quantize, tensor": Peer("vllm", _per_set(_vllm_fp8_tensor)),
    "vLLM Marlin": Peer("vllm", _per_set(_marlin)),
    "DeepGEMM": Peer("sgl-deep-gemm", _per_set(_deep_gemm)),
    "humming W4A16": Peer("humming-kernels", _per_set(_humming)),
}
