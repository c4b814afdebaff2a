"""Attacking inputs: what each op is fed when its guarantee is put to the test. The same ones on every call.

An attack gives values to the operands that the plan itself lists, so it needs to know neither shapes nor elements; what
an element cannot hold is rounded to it in exact arithmetic.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.verify.exact import FLOATS, FORMATS, Format, IntegerFormat
from quantplan.verify.tensors import HostTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from random import Random

    from quantplan.elements import ElementKind
    from quantplan.plan import Plan


@attrs.frozen
class Case:
    """One attack: a problem and its operands.

    Parameters
    ----------
    name : str
        What it attacks.
    desc : descriptor of the op
        The problem; its SKU is that of the descriptor the attack was made for.
    inputs : mapping of str to HostTensor
        Every operand that is read.
    """

    name: str
    desc: Any
    inputs: Mapping[str, HostTensor]


def make_case(
    plan: type[Plan[Any, Any]],
    name: str,
    desc: Any,  # noqa: ANN401 - each op has its own
    **values: Iterable[float] | HostTensor,
) -> Case:
    """Give values to the operands that a plan reads.

    Parameters
    ----------
    plan : Plan class
        The op.
    name : str
        Name of the case.
    desc : descriptor of the op
        The problem.
    **values : iterable of float, or HostTensor
        Values by operand, repeated over its elements as often as it takes, or the whole operand; those that the
        descriptor does not ask for are left out.
    """
    inputs = {}
    for operand in plan.operands(desc):
        if operand.output:
            continue
        value = values[operand.name]
        if isinstance(value, HostTensor):
            inputs[operand.name] = value
            continue
        count = math.prod(operand.shape)
        given = list(itertools.islice(value, count))
        codes = [FORMATS[operand.element].encode(number) for number in fit_all(given, operand.element)]
        repeated = list(itertools.islice(itertools.cycle(codes), count))
        inputs[operand.name] = HostTensor(operand.element, operand.shape, repeated)
    return Case(name, desc, inputs)


def fit(value: float, element: ElementKind) -> float:
    """Round a value into an element; integers keep to its range, and a power-of-two scale is rounded up."""
    return fit_all([value], element)[0]


def fit_all(values: Iterable[float], element: ElementKind) -> list[float]:
    """Round values into an element, as `fit` does each of them."""
    form = FORMATS[element]
    if isinstance(form, Format):
        return [form.convert(value) for value in values]
    if isinstance(form, IntegerFormat):
        low, high = element.integer_range
        return [min(max(int(value), low), high) for value in values]
    return [v if math.isnan(v) else form.ceiling(*min(abs(v), form.largest).as_integer_ratio()) for v in values]


def random_bits(random: Random, element: ElementKind, *, positive: bool = False) -> float:
    """Return a finite number of a floating-point element, every exponent as likely as any other."""
    form = FLOATS[element]
    while True:
        value = form.decode(random.getrandbits(form.bits))
        if math.isfinite(value) and (value or not positive):
            return abs(value) if positive else value


def step(value: float, element: ElementKind, ulps: int) -> float:
    """Return the number a few codes further from zero, or nearer to it, among the finite ones."""
    form = FLOATS[element]
    sign, code = math.copysign(1, value), form.encode(abs(value)) + ulps
    return sign * form.decode(min(max(code, 0), form.encode(form.largest)))
