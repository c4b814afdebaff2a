"""What the hardware can describe is known beforehand, and what it cannot is refused by name."""

import numpy as np
import pytest

import quantplan as qp
from quantplan.tensor_maps import Swizzle, TensorMap, mappable

ADDRESS = 2**40


def view(shape=(64, 256), strides=None, element=qp.S8, pointer=ADDRESS):
    return qp.TensorView(pointer, shape, strides or (shape[-1], 1), element)


def test_a_map_says_how_an_operand_lies():
    assert TensorMap.of("x", view(), box=(8, 128), swizzle=Swizzle.B128) == TensorMap(
        operand="x", shape=(64, 256), pitches=(256,), itemsize=1, box=(8, 128), swizzle=Swizzle.B128
    )


def test_pitches_are_in_bytes():
    assert TensorMap.of("x", view(strides=(264, 1), element=qp.F16), box=(8, 64)).pitches == (528,)
    assert TensorMap.of("x", view((2, 3, 8), (24, 8, 1), qp.F32), box=(1, 1, 4)).pitches == (96, 32)


def test_packed_elements_are_mapped_as_bytes():
    packed = qp.typed(np.zeros((64, 128), np.uint8), qp.ElementKind.S4)
    mapped = TensorMap.of("w", packed, box=(8, 64))
    assert (mapped.shape, mapped.pitches, mapped.itemsize) == ((64, 128), (128,), 1)


def test_a_step_that_is_never_made_may_be_any():
    assert TensorMap.of("x", view((1, 100), (3, 1)), box=(8, 16)).pitches == (112,)
    assert TensorMap.of("x", view((4, 1), (16, 7)), box=(8, 16)).pitches == (16,)


REFUSED = {
    "strides of x: expected neighbouring items": (view(strides=(512, 2)), {}),
    "shape of x: expected two or three dimensions": (view((256,), (1,)), {}),
    "shape of x: expected extents of 1 to": (view((0, 256)), {}),
    "pitches of x: expected multiples of 16": (view(strides=(264, 1)), {}),
    "pitches of x: expected multiples of 16 bytes below": (view(strides=(2**40, 1)), {}),
    "pitches of x: expected multiples of 16 bytes .*-256": (view(strides=(-256, 1)), {}),
    "pitches of x: expected rows of 256 bytes apart": (view(strides=(128, 1)), {}),
    "box of x: expected 2 sides of 1 to 256 items": (view(), {"box": (257, 128)}),
    r"box of x: expected 2 sides .*got \(8,\)": (view(), {"box": (8,)}),
    r"box of x: expected 2 sides .*got \(0, 128\)": (view(), {"box": (0, 128)}),
    "box of x: expected rows of a multiple of 16 bytes, got rows of 24": (view(), {"box": (8, 24)}),
    "box of x: expected rows of 64 bytes, the swizzle's span, got rows of 128": (view(), {"swizzle": Swizzle.B64}),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_cannot_be_mapped_is_refused_by_name(says):
    operand, changes = REFUSED[says]
    wanted = {"box": (8, 128), "swizzle": Swizzle.NONE} | changes
    with pytest.raises(qp.InvalidProblem, match=says):
        TensorMap.of("x", operand, **wanted)
    assert not mappable(operand, **wanted)


def test_an_item_that_no_map_has():
    with pytest.raises(qp.InvalidProblem, match=r"itemsize of x: expected one of \(1, 2, 4, 8\), got 16"):
        TensorMap("x", (8, 8), (128,), 16, (1, 1))


def test_an_address_between_two_multiples_of_16():
    with pytest.raises(
        qp.MisalignedOperand, match="x: expected an address that is a multiple of 16, got 0x10000000008"
    ):
        TensorMap.of("x", view(pointer=ADDRESS + 8), box=(8, 128))
    assert not mappable(view(pointer=ADDRESS + 8), box=(8, 128))
    assert mappable(view(pointer=ADDRESS + 16), box=(8, 128))
