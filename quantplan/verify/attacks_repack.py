"""Attacks on RepackMarlin, and what it must write: each code by the formulas of both layouts."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, Any

from quantplan.elements import ElementKind
from quantplan.types import LayoutSku
from quantplan.verify.attacks import Case
from quantplan.verify.marlin import code_place
from quantplan.verify.tensors import HostTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from quantplan.ops.repack_marlin import RepackMarlinDescriptor
    from quantplan.plan import Plan

_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_PADDING = 8
_SIZES = ((8, 8), (64, 64), (72, 256), (16, 264), (256, 24), (0, 8), (8, 0))
"""K and N of other problems: one word, one tile, edges of a block's columns, and nothing at all."""


def repack_attacks(plan: type[Plan[Any, Any]], desc: RepackMarlinDescriptor) -> Iterator[Case]:
    """Yield attacks on repacking: words of every kind, rows in every order, sizes at the edges of tiles."""
    draw = Random("repack")  # noqa: S311 - test data
    words: dict[str, Callable[[int], int]] = {
        "random": lambda _: draw.getrandbits(32),
        "one nibble": lambda i: 0xF << 4 * (i % 8),
        "counting": lambda i: 0x76543210 + i,
        "sign bits": lambda _: 0x80000000,
    }
    for name, word in words.items():
        yield _case(plan, name, desc, word, _shuffled(draw, desc.k))
    for k, n in _SIZES:
        other = desc.replace(k=k, n=n)
        yield _case(plan, f"{k} by {n}", other, words["random"], _shuffled(draw, k))
    if desc.act_order:
        yield _case(plan, "in order", desc, words["random"], list(range(desc.k)))
        yield _case(plan, "backwards", desc, words["random"], list(range(desc.k))[::-1])
        yield _case(plan, "repeated rows", desc, words["random"], [(7 * i) % 11 for i in range(desc.k)])


def repacked(desc: RepackMarlinDescriptor, inputs: Mapping[str, HostTensor]) -> dict[str, list[int]]:
    """Return the words that must be written."""
    source, (padded_k, padded_n) = inputs["qweight"], desc.padded
    order = inputs["perm"].codes if desc.act_order else range(desc.k)
    width = source.shape[1]
    words = [0] * (padded_k // 16 * 2 * padded_n)
    for k in range(padded_k):
        for n in range(padded_n):
            code = _code(desc, source.codes, width, order[k], n) if k < desc.k and n < desc.n else _PADDING
            word, shift = code_place(k, n, padded_n)
            words[word] |= code << shift
    return {"weight_q": words}


def _code(desc: RepackMarlinDescriptor, words: list[int], width: int, row: int, column: int) -> int:
    """Return one code of the source."""
    if desc.source_layout is LayoutSku.GPTQ:
        return words[row // 8 * width + column] >> 4 * (row % 8) & 0xF
    return words[row * width + column // 8] >> 4 * _AWQ_COLUMNS.index(column % 8) & 0xF


def _shuffled(draw: Random, k: int) -> list[int]:
    order = list(range(k))
    draw.shuffle(order)
    return order


def _case(
    plan: type[Plan[Any, Any]], name: str, desc: RepackMarlinDescriptor, word: Callable[[int], int], order: list[int]
) -> Case:
    shapes = {operand.name: operand.shape for operand in plan.operands(desc) if not operand.output}
    codes = {"qweight": [word(i) for i in range(math.prod(shapes["qweight"]))], "perm": order}
    return Case(name, desc, {n: HostTensor(ElementKind.S32, shape, codes[n]) for n, shape in shapes.items()})
