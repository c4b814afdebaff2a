"""The vocabulary: what an op, a kernel and a guarantee are made of, as plain data."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.elements import ElementKind, to_element
from quantplan.errors import InvalidProblem
from quantplan.record import Record, field, record_of, to_flag, to_integer, to_size, to_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OpCategory(enum.Enum):
    """Family of operations."""

    QUANTIZE = "quantize"
    GEMM = "gemm"
    LAYOUT = "layout"


class QuantizeKind(enum.Enum):
    """The operation that a kernel performs; no op borrows another's kind."""

    QUANTIZE = "quantize"
    DEQUANTIZE = "dequantize"
    DYNAMIC_RANGE_QUANTIZE = "dynamic_range_quantize"
    SMOOTHQUANT_LINEAR = "smoothquant_linear"
    QUANTIZED_LINEAR = "quantized_linear"
    INT4_MARLIN_GEMM = "int4_marlin_gemm"
    FP8_GEMM = "fp8_gemm"
    REPACK_MARLIN = "repack_marlin"
    NORM_QUANTIZE = "norm_quantize"
    ACTIVATION_QUANTIZE = "activation_quantize"


class QuantizeMode(enum.Enum):
    """Whether zero is stored as 0 (symmetric) or as a zero point (asymmetric)."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


class ArchSku(enum.Enum):
    """The lowest architecture that a variant needs. Newer GPUs of the same feature set run it too."""

    CPU = "cpu"
    SM80 = "sm_80"
    SM86 = "sm_86"
    SM89 = "sm_89"
    SM90A = "sm_90a"
    SM100A = "sm_100a"
    SM120A = "sm_120a"


class BackendKind(enum.Enum):
    """Who computes: the NumPy contract, or our own kernels. A library's name joins where a library runs the op."""

    REFERENCE = "reference"
    BESPOKE = "bespoke"


class MathPrecision(enum.Enum):
    """Arithmetic that the products and sums of a kernel are done in; none where bits are only moved."""

    NONE = "none"
    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


class EpilogueKind(enum.Enum):
    """Activation applied to the biased result, before the one rounding into the output element."""

    IDENTITY = "identity"
    RELU = "relu"
    GELU_TANH = "gelu_tanh"
    GELU_ERF = "gelu_erf"
    SILU = "silu"

    @property
    def exact(self) -> bool:
        """Whether it involves no transcendental function, so that every device computes the same bits."""
        return self in (EpilogueKind.IDENTITY, EpilogueKind.RELU)


class NormKind(enum.Enum):
    """What a row is divided by: the root of its mean square, or that of its distances to their mean."""

    RMS = "rms"
    LAYER = "layer"


class GatingKind(enum.Enum):
    """Where the factor of a gated activation lies: nowhere, behind the gate in the same row, or apart."""

    NONE = "none"
    MERGED = "merged"
    SPLIT = "split"


class LayoutSku(enum.Enum):
    """Memory layout of the operands; for weights, row-major means [N, K]."""

    ROW_MAJOR = "row_major"
    MARLIN = "marlin"
    GPTQ = "gptq"
    AWQ = "awq"


class Accumulation(enum.Enum):
    """How FP8 tensor cores' partial sums are kept: promoted into F32 registers regularly, or left where they are."""

    PROMOTED = "promoted"
    FAST = "fast"


class Fp8Scaling(enum.Enum):
    """What the scales of an FP8 product belong to."""

    TENSOR = "tensor"
    TOKEN_CHANNEL = "token_channel"  # noqa: S105 - rows of activations, not a secret
    BLOCK = "block"
    MX = "mx"


class ScopeKind(enum.Enum):
    """What shares one scale."""

    TENSOR = "tensor"
    TOKEN = "token"  # noqa: S105 - a row of activations, not a secret
    CHANNEL = "channel"
    GROUP = "group"


@attrs.frozen(repr=False)
class Scope(Record):
    """What shares one scale within a [m, k] operand.

    Use the constructors `tensor`, `token`, `channel` and `group`, or `parse` for their short text form.

    Parameters
    ----------
    kind : ScopeKind
        Tensor, token (one row), channel (one index of ``axis``) or group (``group_size`` neighbours along ``axis``).
    axis : int, optional
        For channels the axis whose indices each have a scale; for groups the axis that is cut into groups.
    group_size : int, optional
        Elements per group; the last group of an axis may be smaller.
    """

    kind: ScopeKind = field(ScopeKind)
    axis: int | None = field(to_integer, None)
    group_size: int | None = field(to_integer, None)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that the kind does not have."""
        if self.axis not in ((0, 1) if self.kind in (ScopeKind.CHANNEL, ScopeKind.GROUP) else (None,)):
            raise InvalidProblem(
                op="Scope", field="axis", expected="0 or 1 for channel and group, else None", got=self.axis
            )
        grouped = self.kind is ScopeKind.GROUP
        size = self.group_size
        if grouped and not (size is not None and 1 <= size < 2**31):
            raise InvalidProblem(op="Scope", field="group_size", expected="an integer ≥ 1", got=size)
        if not grouped and size is not None:
            raise InvalidProblem(op="Scope", field="group_size", expected=f"None for {self.kind.value}", got=size)

    @classmethod
    def tensor(cls) -> Scope:
        """One scale for everything."""
        return cls(ScopeKind.TENSOR)

    @classmethod
    def token(cls) -> Scope:
        """One scale per row."""
        return cls(ScopeKind.TOKEN)

    @classmethod
    def channel(cls, axis: int) -> Scope:
        """One scale per index of an axis."""
        return cls(ScopeKind.CHANNEL, axis)

    @classmethod
    def group(cls, group_size: int, axis: int = 1) -> Scope:
        """One scale per ``group_size`` neighbours along an axis."""
        return cls(ScopeKind.GROUP, axis, group_size)

    @classmethod
    def parse(cls, value: Scope | str) -> Scope:
        """Read ``tensor``, ``token``, ``channel:AXIS`` or ``group:SIZE[:AXIS]``; a Scope is returned as it is."""
        if isinstance(value, Scope):
            return value
        name, *numbers = str(value).split(":")
        try:
            match name, [int(n) for n in numbers]:
                case "tensor" | "token", []:
                    return cls(ScopeKind(name))
                case "channel", [axis]:
                    return cls.channel(axis)
                case "group", [size]:
                    return cls.group(size)
                case "group", [size, axis]:
                    return cls.group(size, axis)
        except ValueError:
            pass
        expected = "tensor, token, channel:AXIS or group:SIZE[:AXIS]"
        raise InvalidProblem(field="scope", expected=expected, got=repr(value))

    def __str__(self) -> str:
        """Return the text form that `parse` reads."""
        numbers = [n for n in (self.group_size, self.axis) if n is not None]
        return ":".join([self.kind.value, *map(str, numbers)])

    def scale_shape(self, m: int, k: int) -> tuple[int, ...]:
        """Shape of the scales of a [m, k] operand."""
        match self.kind, self.axis:
            case ScopeKind.TENSOR, _:
                return (1,)
            case (ScopeKind.TOKEN, _) | (ScopeKind.CHANNEL, 0):
                return (m,)
            case ScopeKind.CHANNEL, _:
                return (k,)
        size = self.group_size or 1
        return (m, -(-k // size)) if self.axis == 1 else (-(-m // size), k)

    @property
    def within_rows(self) -> bool:
        """Whether a row's scales depend on that row alone."""
        return (self.kind, self.axis) in (
            (ScopeKind.TOKEN, None),
            (ScopeKind.CHANNEL, 0),
            (ScopeKind.GROUP, 1),
        )


@attrs.frozen(repr=False)
class ErrorBound(Record, ABC):
    """An a-priori bound on the error of each output element.

    Subclasses live beside the reference of their op and derive their formula in docs/numerics.md.
    """

    @property
    @abstractmethod
    def formula(self) -> str:
        """The bound as one line of text."""

    @abstractmethod
    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401 - each op has its own types
        """Return the elementwise bound for operands in host memory, as an array of the output's shape.

        Parameters
        ----------
        desc : descriptor of the op
        args : arguments of the op, whose operands NumPy can read

        Returns
        -------
        ndarray of float64
            Bound on ``|output − exact|``; infinite where the op saturates or overflows by contract.
        """

    def bounds(self, desc: Any, args: Any) -> dict[str, NDArray[np.float64]]:  # noqa: ANN401 - each op has its own types
        """Return the bound of every operand that is judged by one: by default the output's."""
        return {"output": self.bound(desc, args)}


@attrs.frozen(kw_only=True, repr=False)
class PrecisionGuarantee(Record):
    """What a SKU promises about its numbers.

    Parameters
    ----------
    math_precision : MathPrecision
        Arithmetic of the products.
    accumulator : ElementKind
        Element that sums are really kept in.
    bit_stable_on_same_hardware : bool
        The same call gives the same bits on one GPU model.
    deterministic : bool
        Nothing depends on the order in which threads arrive.
    bit_identical_to_reference : bool
        Every output bit equals the NumPy reference's.
    batch_invariant : bool
        Within this SKU a row's bits depend neither on M, nor on the row's position, nor on other rows.
    reduction_id : str
        How sums are ordered and rounded; two SKUs with one id give the same bits for a row.
    error_bound : ErrorBound
        A-priori bound on the distance from the real-valued result.
    """

    math_precision: MathPrecision = field(MathPrecision)
    accumulator: ElementKind = field(to_element)
    bit_stable_on_same_hardware: bool = field(to_flag)
    deterministic: bool = field(to_flag)
    bit_identical_to_reference: bool = field(to_flag)
    batch_invariant: bool = field(to_flag)
    reduction_id: str = field(to_text)
    error_bound: ErrorBound = field(record_of(ErrorBound))

    FLAGS = ("bit_stable_on_same_hardware", "deterministic", "bit_identical_to_reference", "batch_invariant")

    @property
    def flags(self) -> frozenset[str]:
        """Names of the yes-or-no promises that hold."""
        return frozenset(name for name in self.FLAGS if getattr(self, name))


@attrs.frozen(kw_only=True, repr=False)
class KernelSku(Record):
    """The identity of a kernel: unique per kernel, comparable, hashable, portable.

    Parameters
    ----------
    name : str
        Unique name: op, variant and the elements and modes that select the code.
    category, op : OpCategory, QuantizeKind
        Family and operation.
    element : ElementKind
        Element of the main operand: what is quantized or read by the tensor cores.
    aux_element : ElementKind
        Element of the other side: a weight, or the real values of a quantize op.
    output_element : ElementKind
        Element of the result.
    layout : LayoutSku
        Layout of the weight or matrix operands.
    epilogue : EpilogueKind
        Fused activation.
    arch : ArchSku
        Lowest architecture that runs it.
    backend : BackendKind
        Who computes.
    precision_guarantee : PrecisionGuarantee
        What it promises.
    source_digest : str
        SHA-256 over the sources it is made from, in hexadecimal.
    """

    name: str = field(to_text)
    category: OpCategory = field(OpCategory)
    op: QuantizeKind = field(QuantizeKind)
    element: ElementKind = field(to_element)
    aux_element: ElementKind = field(to_element)
    output_element: ElementKind = field(to_element)
    layout: LayoutSku = field(LayoutSku)
    epilogue: EpilogueKind = field(EpilogueKind)
    arch: ArchSku = field(ArchSku)
    backend: BackendKind = field(BackendKind)
    precision_guarantee: PrecisionGuarantee = field(record_of(PrecisionGuarantee))
    source_digest: str = field(to_text)


@attrs.frozen(kw_only=True, repr=False)
class PlanPreference(Record):
    """What a caller insists on. A preference that cannot be met is an error, never a hint.

    Parameters
    ----------
    backend : BackendKind, optional
        Only variants of this backend.
    max_workspace_bytes : int, optional
        Only variants that need no more workspace.
    require_deterministic, require_batch_invariant, require_bit_identical : bool
        Only variants that promise it.
    min_guarantee : PrecisionGuarantee, optional
        Only variants that hold every yes-or-no promise that this guarantee holds.
    accumulation : Accumulation, optional
        Only variants that accumulate so; ops without tensor-core floats have no such choice and refuse it.
    variant : str, optional
        Only the variant of this name, as `Plan.why_not` lists them: for measuring, and for who knows better.
    """

    backend: BackendKind | None = field(BackendKind, None)
    max_workspace_bytes: int | None = field(to_size, None)
    require_deterministic: bool = field(to_flag, default=False)
    require_batch_invariant: bool = field(to_flag, default=False)
    require_bit_identical: bool = field(to_flag, default=False)
    min_guarantee: PrecisionGuarantee | None = field(record_of(PrecisionGuarantee), None)
    accumulation: Accumulation | None = field(Accumulation, None)
    variant: str | None = field(to_text, None)

    @property
    def required_flags(self) -> frozenset[str]:
        """Names of the promises of a `PrecisionGuarantee` that are insisted on."""
        asked = {
            "deterministic": self.require_deterministic,
            "batch_invariant": self.require_batch_invariant,
            "bit_identical_to_reference": self.require_bit_identical,
        }
        flags = frozenset(name for name, wanted in asked.items() if wanted)
        return flags | (self.min_guarantee.flags if self.min_guarantee else frozenset())
