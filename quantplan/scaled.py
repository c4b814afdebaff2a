"""Scaled tensors: codes with their scales and the recipe they were made by, cast and multiplied through plans.

    x_q = cast(x, Float8CurrentScaling())                 # a ScaledTensor: data, scale, recipe, layout
    w_q = cast(w, Float8CurrentScaling())
    y = matmul(x_q, w_q)                                  # x · wᵀ, by Fp8Gemm

Each function finds the descriptor, selects the plan (plans are remembered), and runs it: the bits are the plan's, on
every device. Outputs are allocated where the operands live, or given as ``out``. On a GPU freeing them waits for the
device; inside a serving loop or a graph give ``out`` and ``workspace``, or use the plans themselves.
"""

from __future__ import annotations

import contextlib
import itertools
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan._scaled import (
    REAL,
    ScaledTensor,
    allocate,
    empty,
    int4_descriptor,
    parts,
    place,
    real,
    scaling_of,
    scope_of_part,
    square,
)
from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem, QuantPlanError, Unsupported
from quantplan.operands import Operand, Tensor, host, to_view
from quantplan.ops.dequantize import DequantizeArgs, DequantizeDescriptor, DequantizePlan
from quantplan.ops.dynamic_range_quantize import (
    DynamicRangeQuantizeArgs,
    DynamicRangeQuantizeDescriptor,
    DynamicRangeQuantizePlan,
)
from quantplan.ops.fp8_gemm import Fp8GemmArgs, Fp8GemmDescriptor, Fp8GemmPlan
from quantplan.ops.int4_marlin_gemm import Int4MarlinGemmArgs, Int4MarlinGemmPlan
from quantplan.ops.quantize import QuantizeArgs, QuantizeDescriptor, QuantizePlan
from quantplan.recipes.fp8 import AmaxHistory, DelayedScaling
from quantplan.recipes.scaling import INT4Scaling, ScalingRecipe
from quantplan.tensor import HOST, TensorView, overlap
from quantplan.types import EpilogueKind, Fp8Scaling, PlanPreference
from quantplan.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from quantplan.devices.target import Target

_PRODUCT = {
    **dict.fromkeys(("act", "act_q", "act_scale"), "a"),
    **dict.fromkeys(("weight_q", "weight_scale", "weight_zero_point"), "b"),
    "bias": "bias",
    "output": "out",
}
"""What matmul calls the operands of a plan."""
_REMEMBERED = 1024
"""Descriptors that are kept: a model has few."""


def cast(
    x: Tensor,
    recipe: ScalingRecipe | AmaxHistory,
    *,
    stream: object = None,
    target: object = None,
    out: ScaledTensor | None = None,
    workspace: Workspace | None = None,
) -> ScaledTensor:
    """Quantize a matrix by a recipe.

    Parameters
    ----------
    x : tensor [M, K]
        f32, f16 or bf16.
    recipe : ScalingRecipe or AmaxHistory
        For delayed scaling the tensor's history: x is cast with the scale of the steps before, then its amax is
        remembered. An amax that is not finite is not, and what is beyond the scale's range saturates.
    stream : stream, optional
        Where to launch, on a GPU.
    target : str or Target, optional
        By default the stream's device, or that of ``x``. ``"emulated:sm_90a"`` runs the kernels on host memory.
    out : ScaledTensor, optional
        Written and returned: a tensor of the same recipe and shape. Otherwise outputs are allocated.
    workspace : Workspace, optional
        Scratch memory that a plan asks for; otherwise it is allocated.

    Returns
    -------
    ScaledTensor

    Raises
    ------
    InvalidProblem
        No matrix of such elements; a recipe that is none, or DelayedScaling without its history; an ``out`` that does
        not fit.
    Unsupported
        No kernel does this on the target. Delayed scales and 4-bit weights are made in host memory.
    """
    op, history = "cast", recipe if isinstance(recipe, AmaxHistory) else None
    rules: Any = recipe if history is None else history.recipe
    if not isinstance(rules, ScalingRecipe):
        raise InvalidProblem(op=op, field="recipe", expected="a ScalingRecipe, or an AmaxHistory", got=repr(recipe))
    if history is None and isinstance(rules, DelayedScaling):
        hint = "make one AmaxHistory(recipe) per tensor of the model, and keep it between the steps"
        raise InvalidProblem(op=op, field="recipe", expected="an AmaxHistory", got="DelayedScaling", hint=hint)
    view = real(op, x)
    where = place(op, view.location, stream, target)
    M, K = view.shape
    if out is not None:
        _check_out(op, out, rules, (M, K))
    if isinstance(rules, INT4Scaling):
        return _cast_weight(view, rules, where, out)
    if history is not None and where.location != HOST:
        hint = "use Float8CurrentScaling, or QuantizePlan with history.scale, and history.record(amax)"
        raise Unsupported("an amax history is kept in host memory", op=op, field="recipe", hint=hint)
    result = out or empty(rules, M, K, where)
    views = result.views
    _whole("x", (M, K), view.element).check(op, view, where.location or HOST)
    _apart(op, rules, list(views.values()), [view])
    names = {"x": "x", **dict.fromkeys(("q", "scale", "global_scale"), "out")}
    if history is not None:
        plan = QuantizePlan.select(where, _quantize_descriptor(QuantizeDescriptor, rules, M, K, view.element))
        with _named(op, names):
            launch = plan.bind(workspace, QuantizeArgs(x=view, q=views["data"], scale=views["scale"]))
            plan.check_stream(stream)
        views["scale"].numpy()[0] = history.scale
        launch.run(stream)
        history.observe(view.numpy())
        return result
    for part in parts(rules, M, K):
        desc = _quantize_descriptor(DynamicRangeQuantizeDescriptor, rules, *part.size(M, K), view.element)
        quantizer = DynamicRangeQuantizePlan.select(where, desc)
        if workspace is None and quantizer.workspace_size:
            workspace = Workspace.allocate(quantizer.workspace_size, where)
        arguments = DynamicRangeQuantizeArgs(
            x=part.of(view),
            q=part.of(views["data"]),
            scale=part.scale(views["scale"]),
            global_scale=views.get("global_scale"),
        )
        with _named(op, names):
            quantizer.run(stream, workspace, arguments)
    return result


def dequantize(
    tensor: ScaledTensor,
    element: ElementKind | str = ElementKind.F32,
    *,
    stream: object = None,
    target: object = None,
    out: Tensor = None,
) -> Tensor:
    """Return the real values of a scaled tensor.

    Parameters
    ----------
    tensor : ScaledTensor [M, K]
    element : ElementKind
        f32, f16 or bf16: what the products of codes and scales, which are f32, are rounded to.
    stream, target : optional
        As for `cast`.
    out : tensor [M, K], optional
        Written and returned. Otherwise it is allocated: an array in host memory, a TensorView on a GPU.

    Raises
    ------
    InvalidProblem
        No scaled tensor, another element, or an ``out`` that does not fit.
    Unsupported
        No kernel does this on the target. 4-bit weights are dequantized in host memory.
    """
    op, kind = "dequantize", _element("dequantize", element)
    where = place(op, _scaled(op, "tensor", tensor).views["data"].location, stream, target)
    (M, K), recipe, views = tensor.shape, tensor.recipe, tensor.views
    result = allocate(where, (M, K), kind) if out is None else out
    written = to_view(op, "out", result)
    if isinstance(recipe, INT4Scaling):
        _host_only(op, where)
    _whole("out", (M, K), kind).check(op, written, where.location or HOST)
    if isinstance(recipe, INT4Scaling):
        weight = recipe.unpack(
            views["data"].numpy(), views["scale"].numpy(), host(views.get("zero_point")), tensor.shape
        )
        with np.errstate(all="ignore"):  # one rounding after the product in f32, as Dequantize has
            written.numpy()[...] = weight.dequantize().T.astype(kind.dtype)
        return result
    _apart(op, recipe, [written], list(views.values()))
    for part in parts(recipe, M, K):
        plan = DequantizePlan.select(where, _dequantize_descriptor(recipe, *part.size(M, K), kind))
        arguments = DequantizeArgs(
            q=part.of(views["data"]),
            output=part.of(written),
            scale=part.scale(views["scale"]),
            global_scale=views.get("global_scale"),
        )
        with _named(op, {"q": "tensor", "scale": "tensor", "global_scale": "tensor", "output": "out"}):
            plan.run(stream, None, arguments)
    return result


def requantize(
    tensor: ScaledTensor,
    recipe: ScalingRecipe | AmaxHistory,
    *,
    stream: object = None,
    target: object = None,
    out: ScaledTensor | None = None,
    workspace: Workspace | None = None,
) -> ScaledTensor:
    """Quantize a scaled tensor by another recipe: `dequantize` into f32, and `cast`.

    The error bounds of the two recipes add up.

    Parameters
    ----------
    tensor : ScaledTensor [M, K]
    recipe : ScalingRecipe or AmaxHistory
    stream, target, out, workspace : optional
        As for `cast`.

    Raises
    ------
    InvalidProblem, Unsupported
        What `dequantize` and `cast` refuse.
    """
    _scaled("requantize", "tensor", tensor)
    values = dequantize(tensor, ElementKind.F32, stream=stream, target=target)
    return cast(values, recipe, stream=stream, target=target, out=out, workspace=workspace)


def matmul(
    a: ScaledTensor | Tensor,
    b: ScaledTensor,
    *,
    bias: Tensor = None,
    epilogue: EpilogueKind | str = EpilogueKind.IDENTITY,
    output_element: ElementKind | str | None = None,
    stream: object = None,
    target: object = None,
    out: Tensor = None,
    pref: PlanPreference | None = None,
) -> Tensor:
    """Multiply activations by a weight: ``act(a · bᵀ + bias)``, by Fp8Gemm or Int4MarlinGemm.

        activations a                            weight b
        DelayedScaling, Float8CurrentScaling     either of them, with one scale per tensor
        Float8CurrentScaling(scope="token")      the same: one scale per output channel
        Float8BlockScaling()                     Float8BlockScaling(block_rows=128)
        MXFP8BlockScaling                        MXFP8BlockScaling
        a tensor of f16 or bf16                  INT4Scaling with scales of that element

    Parameters
    ----------
    a : ScaledTensor or tensor [M, K]
    b : ScaledTensor [N, K]
    bias : tensor [N], optional
        f32; for a 4-bit weight of the activations' element.
    epilogue : EpilogueKind
        Activation, for FP8.
    output_element : ElementKind, optional
        f32, f16 or bf16. By default f32; for a 4-bit weight that of the activations.
    stream, target : optional
        As for `cast`.
    out : tensor [M, N], optional
        Written and returned. Otherwise it is allocated: an array in host memory, a TensorView on a GPU.
    pref : PlanPreference, optional
        What the plan must keep.

    Raises
    ------
    InvalidProblem
        Operands that do not fit each other.
    Unsupported
        No op multiplies this pair, or no kernel does on the target.
    """
    op = "matmul"
    weight = _scaled(op, "b", b)
    chosen = None if output_element is None else _element(op, output_element, "output_element")
    activations = a.views["data"] if isinstance(a, ScaledTensor) else to_view(op, "a", a)
    shape = a.shape if isinstance(a, ScaledTensor) else activations.shape
    (N, K), recipe = weight.shape, weight.recipe
    if len(shape) != 2 or shape[1] != K:  # noqa: PLR2004 - a matrix
        hint = "weights are [N, K], one row per output feature" if shape[-1:] == (N,) else None
        raise InvalidProblem(op=op, field="a", expected=f"shape (M, K={K})", got=shape, hint=hint)
    where = place(op, activations.location, stream, target)
    problem: dict[str, Any] = {"m": shape[0], "n": N, "k": K, "bias": bias is not None}
    operands: dict[str, Any] = {"weight_q": weight.views["data"], "weight_scale": weight.views["scale"], "bias": bias}
    plan: Any
    if isinstance(recipe, INT4Scaling) and not isinstance(a, ScaledTensor):
        if epilogue not in (EpilogueKind.IDENTITY, EpilogueKind.IDENTITY.value):
            raise Unsupported("Int4MarlinGemm has no activation", op=op, field="epilogue", hint="apply it afterwards")
        element = activations.element
        if element is not recipe.scale_element:
            expected = f"{recipe.scale_element.value}, as the weight's scales are"
            raise InvalidProblem(op=op, field="a", expected=expected, got=element.value)
        desc: Any = int4_descriptor(recipe, output_element=chosen or element, **problem)
        plan = Int4MarlinGemmPlan.select(where, desc, pref)
        result = allocate(where, (shape[0], N), desc.output_element) if out is None else out
        operands |= {"act": activations, "weight_zero_point": weight.views.get("zero_point")}
        with _named(op, _PRODUCT):
            plan.run(stream, None, Int4MarlinGemmArgs(output=result, **operands))
        return result
    scaling = scaling_of(op, a, weight)
    problem |= {"act_element": activations.element, "weight_element": weight.element, "scaling": scaling}
    if scaling is Fp8Scaling.TENSOR:
        problem |= {"act_scale": None, "weight_scale": None}  # operands, not the host value 1
    desc = _described(Fp8GemmDescriptor, epilogue=epilogue, output_element=chosen or ElementKind.F32, **problem)
    plan = Fp8GemmPlan.select(where, desc, pref)
    result = allocate(where, (shape[0], N), desc.output_element) if out is None else out
    with _named(op, _PRODUCT):
        plan.run(stream, None, Fp8GemmArgs(act_q=activations, act_scale=a.views["scale"], output=result, **operands))
    return result


def _cast_weight(x: TensorView, recipe: INT4Scaling, where: Target, out: ScaledTensor | None) -> ScaledTensor:
    """Round and pack a weight in host memory, where the search for its scales and the packing are."""
    _host_only("cast", where)
    packed = recipe.quantize(x.numpy())
    made: dict[str, Any] = {
        "data": packed.weight_q,
        "scale": packed.weight_scale,
        "zero_point": packed.weight_zero_point,
    }
    if out is None:
        return ScaledTensor(recipe=recipe, shape=(x.shape[0], x.shape[1]), **made)
    for name, view in out.views.items():
        view.numpy()[...] = made[name]
    return out


def _host_only(op: str, where: Target) -> None:
    if str(where) != "cpu":
        hint = "do it with target 'cpu' in host memory, and copy data, scale and zero_point"
        raise Unsupported("4-bit weights are packed and unpacked in host memory", op=op, field="target", hint=hint)


def _check_out(op: str, out: object, recipe: ScalingRecipe, shape: tuple[int, int]) -> None:
    """Refuse an output that was not made for this."""
    if not (isinstance(out, ScaledTensor) and out.recipe == recipe and out.shape == shape):
        raise InvalidProblem(op=op, field="out", expected=f"a ScaledTensor of {recipe!r}, {shape}", got=repr(out))
    if any(view.readonly for view in out.views.values()):
        raise InvalidProblem(op=op, field="out", expected="writable memory", got="a read-only array")


def _whole(name: str, shape: tuple[int, int], element: ElementKind) -> Operand:
    """State of a matrix what plans ask of its parts."""
    return Operand(name, element, tuple(zip("MK", shape, strict=True)), output=name == "out")


def _apart(op: str, recipe: ScalingRecipe, written: Sequence[TensorView], read: Sequence[TensorView]) -> None:
    """Refuse to write over what later blocks will read, or have written: each plan sees only its own."""
    pairs = itertools.chain(itertools.product(written, read), itertools.combinations(written, 2))
    if square(recipe) and any(overlap(a, b) for a, b in pairs):
        raise InvalidProblem(op=op, field="out", expected="memory of its own", got="overlapping memory")


@contextlib.contextmanager
def _named(op: str, names: dict[str, str]) -> Iterator[None]:
    """Give the errors of a plan the caller's name of an operand: ``output`` is ``out``."""
    try:
        yield
    except QuantPlanError as error:
        operand, dot, rest = (error.field or "").partition(".")
        if operand in names:
            error.op, error.field = op, names[operand] + dot + rest
        raise


def _scaled(op: str, name: str, value: object) -> ScaledTensor:
    if isinstance(value, ScaledTensor):
        return value
    hint = "cast makes one"
    raise InvalidProblem(op=op, field=name, expected="a ScaledTensor", got=type(value).__name__, hint=hint)


def _element(op: str, value: object, name: str = "element") -> ElementKind:
    kind = ElementKind.find(value)
    if kind not in REAL or kind is None:
        raise InvalidProblem(op=op, field=name, expected="f32, f16 or bf16", got=getattr(kind, "value", repr(value)))
    return kind


@lru_cache(_REMEMBERED)
def _described(kind: type[Any], **fields: Any) -> Any:  # noqa: ANN401 - any descriptor
    """Make a descriptor, or return the one that was made."""
    return kind(**fields)


@lru_cache(_REMEMBERED)
def _quantize_descriptor(kind: type[Any], recipe: ScalingRecipe, m: int, k: int, element: ElementKind) -> Any:  # noqa: ANN401 - two types
    return kind(
        m=m,
        k=k,
        input_element=element,
        output_element=recipe.element,
        scope=scope_of_part(recipe),
        scale_element=recipe.scale_element,
    )


@lru_cache(_REMEMBERED)
def _dequantize_descriptor(recipe: ScalingRecipe, m: int, k: int, element: ElementKind) -> DequantizeDescriptor:
    return DequantizeDescriptor(
        m=m,
        k=k,
        input_element=recipe.element,
        output_element=element,
        scope=scope_of_part(recipe),
        scale_element=recipe.scale_element,
    )
