"""Tiles for wgmma: laid out in shared memory as descriptors say, element by element, and given to threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TEXT = (Path(__file__).parent / "wgmma_shapes.cu").read_text(encoding="utf-8")
INTEGERS = [("s8", "s8"), ("s8", "u8"), ("u8", "s8"), ("u8", "u8")]
FP8 = [("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3"), ("e5m2", "e5m2")]
FLOATS = [("f16", "f16"), ("bf16", "bf16"), *FP8]
SWIZZLES = {0: 0, 128: 1, 64: 2, 32: 3}  # bytes of a row, and how a descriptor has it


def columns(pair):
    """Return every n that a pair of elements comes with."""
    if pair in INTEGERS:
        return [8, 16, 24, *range(32, 257, 16)]
    return list(range(8, 257, 8))


def text(pair, sizes=None):
    """Return the kernel for a pair of elements, for some n or for every one."""
    cases = " ".join(f"case {n}: return run<{n}>(p);" for n in sizes or columns(pair))
    parts = {"SUM": "int" if pair in INTEGERS else "float", "CASES": cases}
    parts |= {f"{side}_ELEMENT": f"MatrixElement::{name}" for side, name in zip("AB", pair, strict=True)}
    made = TEXT[TEXT.index("#include") :]
    for name, value in parts.items():
        made = made.replace(name, value)
    return made


# ---- shared memory


def offsets(rows, swizzle, *, start, stride, leading, row_bytes=32, base_offset=0):
    """Return where each byte of each row lies, as (row, byte); rows are as long as the swizzle, or 32 bytes."""
    row, byte = np.ogrid[:rows, :row_bytes]
    if swizzle == 0:
        return start + row // 8 * stride + byte // 16 * leading + row % 8 * 16 + byte % 16
    linear = start + row // 8 * stride + row % 8 * swizzle + byte
    return linear ^ (((linear >> 7) - base_offset) % (swizzle // 16)) << 4


# ---- registers


def sum_places(n):
    """Return row and column of the sums that each thread holds, as (thread, i), as the PTX ISA lists them."""
    t, i = np.ogrid[:128, : n // 2]
    return t // 32 * 16 + t % 32 // 4 + np.where(i % 4 < 2, 0, 8), i // 4 * 8 + t % 4 * 2 + i % 2


def a_registers(a, steps):
    """Return the registers of an A of bytes, as (thread, step, register)."""
    t, step, r, byte = np.ogrid[:128, :steps, :4, :4]
    row = t // 32 * 16 + t % 32 // 4 + r % 2 * 8
    return np.ascontiguousarray(a[row, 32 * step + 16 * (r // 2) + t % 4 * 4 + byte]).view(np.uint32)[..., 0]


class Multiplication:
    """Operands of a kernel of `text`, and what reads its output.

    Parameters
    ----------
    a, b : numpy.ndarray
        Rows along K: 64, and n.
    sums : numpy.ndarray
        64 rows of n.
    swizzle : int
        Bytes, or 0.
    registers : bool
        Whether A is in registers.
    accumulate : bool
        Whether `sums` count.
    gap : int
        Bytes between groups of 8 rows, which are dense otherwise.
    base_offset : int
        By how many times 128 bytes A begins behind a multiple of the swizzle's pattern. B begins as far behind.
    """

    def __init__(self, a, b, sums, *, swizzle=128, registers=False, accumulate=True, gap=0, base_offset=0):
        self.n = len(b)
        of_a, of_b = (np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1) for x in (a, b))
        row_bytes = of_a.shape[1]
        leading = 128 if swizzle == 0 else 0
        stride = 8 * (swizzle or row_bytes) + gap
        where = {"stride": stride, "leading": leading, "row_bytes": row_bytes, "base_offset": base_offset}
        room = -(-64 * stride // 8 // 1024) * 1024 + 1024
        a_at, b_at = base_offset << 7, room + (base_offset << 7)
        places = [offsets(len(x), swizzle, start=at, **where) for x, at in zip((of_a, of_b), (a_at, b_at), strict=True)]
        size = -(-int(max(p.max() for p in places) + 1) // 16) * 16
        image = np.zeros(size, np.uint8)
        for x, place in zip((of_a, of_b), places, strict=True):
            image[place] = x
        steps = row_bytes // 32
        self.arrays = {
            "image": image,
            "a": a_registers(of_a, steps),
            "sums": np.ascontiguousarray(sums[sum_places(self.n)]),
            "out": np.full((128, self.n // 2), 0x5A5A5A5A, np.uint32).view(sums.dtype),
        }
        advance = 32 if swizzle else 2 * leading
        self.scalars = (
            *(self.n, size, b_at, SWIZZLES[swizzle], stride, leading, base_offset),
            *(steps, advance, registers, accumulate),
        )
        self.launch = {"block": (128,), "shared": size, "outputs": ("out",), "scalars": self.scalars}

    def result(self, out=None):
        """Return the product as a matrix."""
        matrix = np.empty((64, self.n), self.arrays["out"].dtype)
        matrix[sum_places(self.n)] = self.arrays["out"] if out is None else out
        return matrix
