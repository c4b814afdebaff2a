"""What is measured on a GPU, and in which order: a line per op, with its problems, its peers, and its bound.

A line of `ROWS` adds an op to the GPU day, to its correctness checks and to its report.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

import quantplan as qp
from quantplan.plan import plan_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

MS = tuple(2**i for i in range(14))
FEW = (16, 4096, 1, 128)
"""Rows that tell most: a decode batch, a prefill, a single token, and where memory stops being the bound."""


@attrs.frozen
class Shape:
    """Of a weight, N × K, or of the rows that are quantized, K alone, where N is 0."""

    label: str
    n: int
    k: int


LINEARS = (
    Shape("8192 × 8192", 8192, 8192),
    Shape("Llama-3 8B gate, up", 28672, 4096),
    Shape("Llama-3 8B down", 4096, 14336),
    Shape("Llama-3 70B gate, up", 57344, 8192),
    Shape("Llama-3 70B down", 8192, 28672),
    Shape("DeepSeek-V3 output", 7168, 16384),
    Shape("DeepSeek-V3 experts' gate, up", 4096, 7168),
    Shape("DeepSeek-V3 experts' down", 7168, 2048),
    Shape("Qwen2.5 7B gate, up", 37888, 3584),
    Shape("Qwen2.5 7B down", 3584, 18944),
    Shape("Llama-3 8B q, k, v", 6144, 4096),
    Shape("Llama-3 8B output", 4096, 4096),
    Shape("Llama-3 70B q, k, v", 10240, 8192),
    Shape("Qwen2.5 7B q, k, v", 4608, 3584),
)
WIDTHS = (
    Shape("8192", 0, 8192),
    Shape("Llama-3 8B", 0, 4096),
    Shape("Llama-3 70B down", 0, 28672),
    Shape("DeepSeek-V3", 0, 7168),
    Shape("Qwen2.5 7B", 0, 3584),
)
SMALL_LINEAR, SMALL_WIDTH = Shape("small", 136, 256), Shape("small", 0, 392)
"""What the emulated device and the sanitizers can be asked to do; neither is a multiple of every tile."""
BOUNDED = Shape("512 × 4096", 512, 4096)
"""Where each product is bounded by itself, which takes a CPU long: several tiles each way, and a long sum."""


@attrs.frozen(kw_only=True)
class Row:
    """One op as it is measured.

    Parameters
    ----------
    name : str
        Names it in results and tables.
    make : callable
        Returns its descriptor for M, N and K.
    shapes : tuple[Shape, ...]
        Its problems, those first that tell most.
    small : Shape
        Its problem where little can be afforded.
    compared : Shape
        Its problem whose whole result is compared with the reference's: the first one, unless that takes a CPU minutes.
    ms : tuple[int, ...]
        Rows that it is measured at; one number where there are none.
    rate : str, optional
        Which of the GPU's matrix rates bounds it (`roofs.RATES`); None where only memory does.
    peers : tuple[str, ...]
        What it is measured beside, by the names of `peers.PEERS`.
    """

    name: str
    make: Callable[[int, int, int], Any]
    shapes: tuple[Shape, ...]
    small: Shape
    compared: Shape = attrs.field(default=attrs.Factory(lambda row: row.shapes[0], takes_self=True))
    ms: tuple[int, ...] = MS
    rate: str | None = None
    peers: tuple[str, ...] = ()

    @property
    def op(self) -> str:
        """The op, by its name in `quantplan.ops.PLANS`."""
        return plan_type(self.descriptor(1, self.small)).op.value

    def descriptor(self, m: int, shape: Shape) -> Any:  # noqa: ANN401 - each op has its own
        """Return the problem of ``m`` rows."""
        return self.make(m, shape.n, shape.k)


def _quantize(name: str, kind: Any, peers: tuple[str, ...], **fields: Any) -> Row:  # noqa: ANN401 - descriptors' own
    def make(m: int, n: int, k: int) -> Any:  # noqa: ANN401, ARG001 - there is no N
        return kind(m=m, k=k, **fields)

    return Row(name=name, make=make, shapes=WIDTHS, small=SMALL_WIDTH, peers=peers)


def _linear(name: str, kind: Any, rate: str, peers: tuple[str, ...], **fields: Any) -> Row:  # noqa: ANN401 - the same
    def make(m: int, n: int, k: int) -> Any:  # noqa: ANN401 - the same
        return kind(m=m, n=n, k=k, **fields)

    compared = LINEARS[0] if rate == "int8" else BOUNDED
    return Row(name=name, make=make, shapes=LINEARS, small=SMALL_LINEAR, compared=compared, rate=rate, peers=peers)


def _repack(name: str, **fields: Any) -> Row:  # noqa: ANN401 - the same
    def make(m: int, n: int, k: int) -> Any:  # noqa: ANN401, ARG001 - there is no M
        return qp.RepackMarlinDescriptor(n=n, k=k, **fields)

    return Row(name=name, make=make, shapes=LINEARS, small=SMALL_LINEAR, ms=FEW[:1])


_DYNAMIC, _WIDE = qp.DynamicRangeQuantizeDescriptor, ("torch f16", "torch bf16")
_INT8_PEERS = (*_WIDE, "torch._int_mm", "torch._int_mm, scaled", "vLLM CUTLASS int8")
_FP8_PEERS = (*_WIDE, "torch._scaled_mm", "vLLM CUTLASS fp8")
_TO_INT8, _TO_FP8 = ("torch eager int8", "vLLM int8 quantize"), ("torch eager fp8", "vLLM fp8 quantize")

ROWS = (
    _quantize("quantize s8 token", _DYNAMIC, _TO_INT8, input_element="bf16", output_element="s8", scope="token"),
    _quantize("quantize fp8 token", _DYNAMIC, _TO_FP8, input_element="bf16", output_element="fp8_e4m3", scope="token"),
    _quantize("quantize fp8 group", _DYNAMIC, (), input_element="bf16", output_element="fp8_e4m3", scope="group:128"),
    _quantize(
        "quantize fp8 tensor",
        _DYNAMIC,
        ("torch eager fp8 tensor", "vLLM fp8 quantize, tensor"),
        input_element="bf16",
        output_element="fp8_e4m3",
        scope="tensor",
    ),
    _quantize(
        "quantize mxfp8",
        _DYNAMIC,
        (),
        input_element="bf16",
        output_element="fp8_e4m3",
        scope="group:32",
        scale_element="e8m0",
    ),
    _quantize("quantize s8 static", qp.QuantizeDescriptor, (), input_element="bf16", output_element="s8", scale=0.02),
    _quantize(
        "dequantize s8 token", qp.DequantizeDescriptor, (), input_element="s8", output_element="bf16", scope="token"
    ),
    _linear(
        "smoothquant_linear int8",
        qp.SmoothQuantLinearDescriptor,
        "int8",
        _INT8_PEERS,
        act_scale=0.02,
        output_element="bf16",
    ),
    _linear("quantized_linear int8", qp.QuantizedLinearDescriptor, "int8", _INT8_PEERS, output_element="bf16"),
    _linear("int4_marlin_gemm", qp.Int4MarlinGemmDescriptor, "f16", ("torch f16", "vLLM Marlin", "humming W4A16")),
    _linear("int4_marlin_gemm act-order", qp.Int4MarlinGemmDescriptor, "f16", ("torch f16",), act_order=True),
    _linear("fp8_gemm tensor", qp.Fp8GemmDescriptor, "fp8", _FP8_PEERS, output_element="bf16"),
    _linear(
        "fp8_gemm token_channel",
        qp.Fp8GemmDescriptor,
        "fp8",
        ("torch bf16", "torch._scaled_mm rows", "vLLM CUTLASS fp8 rows"),
        output_element="bf16",
        scaling="token_channel",
    ),
    _linear(
        "fp8_gemm block",
        qp.Fp8GemmDescriptor,
        "fp8",
        ("torch bf16", "DeepGEMM"),
        output_element="bf16",
        scaling="block",
    ),
    _linear("fp8_gemm mx", qp.Fp8GemmDescriptor, "fp8", ("torch bf16",), output_element="bf16", scaling="mx"),
    _quantize("norm_quantize s8 token", qp.NormQuantizeDescriptor, (), residual=True),
    _quantize("norm_quantize bf16", qp.NormQuantizeDescriptor, (), residual=True, output_element="bf16"),
    _quantize(
        "norm_quantize fp8 block, AdaLN",
        qp.NormQuantizeDescriptor,
        (),
        norm="layer",
        residual=True,
        gated=True,
        weight=False,
        modulated=True,
        output_element="fp8_e4m3",
        scope="group:128",
    ),
    _quantize("activation_quantize s8 token", qp.ActivationQuantizeDescriptor, ()),
    _quantize(
        "activation_quantize fp8 block",
        qp.ActivationQuantizeDescriptor,
        (),
        output_element="fp8_e4m3",
        scope="group:128",
    ),
    _repack("repack_marlin gptq"),
    _repack("repack_marlin gptq act-order", act_order=True),
    _repack("repack_marlin awq", source_layout="awq"),
)
"""The ops. `quantplan.kernels.family_digest` tells which sources a figure belongs to."""


@cache
def row(name: str) -> Row:
    """Return a line by its name."""
    return next(row for row in ROWS if row.name == name)


@attrs.frozen
class Point:
    """One problem of one op."""

    row: Row
    shape: Shape
    m: int

    @property
    def key(self) -> str:
        """What tells it from every other point."""
        return f"{self.row.name} | {self.shape.label} | {self.m}"

    @property
    def tells_most(self) -> bool:
        """Whether it is one of the few that tell most of its op."""
        return self.m in FEW and self.shape == self.row.shapes[0]

    @property
    def descriptor(self) -> Any:  # noqa: ANN401 - each op has its own
        """The problem."""
        return self.row.descriptor(self.m, self.shape)


def points(rows: Sequence[Row] = ROWS) -> Iterator[Point]:
    """Yield all points, each once, those that tell most first: few M and one shape of every op, then ever more."""
    first, others = slice(0, 1), slice(1, None)
    passes: tuple[tuple[Iterable[int], slice], ...] = ((FEW, first), (MS, first), (FEW, others), (MS, others))
    seen: set[Point] = set()
    for ms, part in passes:
        most = max((len(row.shapes[part]) for row in rows), default=0)
        for number in range(most):
            for m in ms:
                for row in (row for row in rows if m in row.ms):
                    for shape in row.shapes[part][number : number + 1]:
                        point = Point(row, shape, m)
                        if point not in seen:
                            seen.add(point)
                            yield point


def small_points(rows: Sequence[Row] = ROWS) -> Iterator[Point]:
    """Yield the points that little time is enough for: of each op, two numbers of rows."""
    for m in (1, 19):
        yield from (Point(row, row.small, m) for row in rows if m == 1 or row.ms == MS)


def nbytes(desc: Any) -> int:  # noqa: ANN401 - any descriptor
    """Return the bytes that a problem cannot do without: each operand once."""
    total = 0
    for operand in plan_type(desc).operands(desc):
        count = operand.element.itemsize
        for extent in operand.storage:
            count *= extent
        total += count
    return total


def operations(desc: Any) -> int:  # noqa: ANN401 - any descriptor
    """Return the multiplications and additions of a problem's matrix product; 0 where there is none."""
    return 2 * desc.m * desc.n * desc.k if plan_type(desc).category is qp.OpCategory.GEMM else 0
