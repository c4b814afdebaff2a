"""Every rule for an argument is stated once, and its breach is reported with field, expected and got."""

import contextlib

import attrs
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import quantplan as qp
from quantplan.operands import Operand, check_overlap, check_presence
from quantplan.tensor import HOST, Layout

CUDA0 = qp.Location("cuda", 0)
A = Operand("act_q", qp.S8, (("M", 4), ("K", 6)))
WEIGHT = Operand("weight_q", qp.S8, (("N", 8), ("K", 6)), hint="weights are [N, K], one row per output feature")
SCALE = Operand("weight_scale", qp.F32, (("N", 8),))
OUTPUT = Operand("output", qp.F32, (("M", 4), ("N", 8)), output=True)
PACKED = Operand("q", qp.S4, (("M", 4), ("K", 5)))
FP8 = Operand("q", qp.FP8_E4M3, (("M", 4), ("K", 6)))


def check(operand, array, location=HOST):
    operand.check("Quantize", qp.TensorView.of(array), location)


def refusal(operand, array, kind=qp.InvalidProblem, location=HOST):
    """Return the error of a check, after making sure that it names op and field."""
    with pytest.raises(kind) as caught:
        check(operand, array, location)
    assert type(caught.value) is kind
    assert (caught.value.op, caught.value.field) == ("Quantize", operand.name)
    return caught.value


def wide(rows=16, columns=24, dtype=np.int8):
    return np.zeros((rows, columns), dtype)


# ---- accepted

ACCEPTED = {
    "dense": (A, wide(4, 6)),
    "rows apart": (A, wide()[:4, 3:9]),
    "every third row": (A, wide()[:12:3, :6]),
    "a vector": (SCALE, np.zeros(8, np.float32)),
    "one row of anything": (Operand("x", qp.S8, (("M", 1), ("K", 6))), wide()[5:6, 1:7]),
    "one row that stands still": (Operand("x", qp.S8, (("M", 1), ("K", 6))), np.broadcast_to(wide()[0, :6], (1, 6))),
    "one column": (Operand("x", qp.S8, (("M", 16), ("K", 1))), wide()[:, 4:5]),
    "one column of columns apart": (Operand("x", qp.S8, (("M", 16), ("K", 1))), wide()[:, ::24]),
    "no rows": (Operand("x", qp.S8, (("M", 0), ("K", 6))), wide()[:0, ::-1][:, :6]),
    "no columns": (Operand("x", qp.S8, (("M", 4), ("K", 0))), wide()[:4, :0].T.reshape(4, 0)),
    "a read-only input": (A, np.frombuffer(bytes(24), np.int8).reshape(4, 6)),
    "packed, odd": (PACKED, qp.typed(wide(4, 3, np.uint8), qp.S4)),
    "packed, even": (Operand("q", qp.S4, (("M", 4), ("K", 6))), qp.typed(wide(4, 3, np.uint8), qp.S4)),
    "packed, rows apart": (PACKED, qp.typed(wide(4, 9, np.uint8)[:, 2:5], qp.S4)),
    "fp8": (FP8, wide(4, 6, qp.FP8_E4M3.dtype)),
    "fp8 codes": (FP8, qp.typed(wide(4, 6, np.uint8), "fp8_e4m3")),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name):
    """Rows any distance apart are as good as contiguous ones."""
    check(*ACCEPTED[name])


def test_accepted_beyond_32_bits():
    """2**40 elements in 2**20 rows are compared without wrapping."""
    operand = Operand("x", qp.F16, (("M", 2**20), ("K", 2**20)))
    check(operand, qp.TensorView(4096, (2**20, 2**20), (2**32, 1), qp.F16, CUDA0), CUDA0)


def test_what_an_operand_derives():
    assert (A.shape, A.storage, A.strides, A.empty) == ((4, 6), (4, 6), (6, 1), False)
    assert (PACKED.shape, PACKED.storage, PACKED.strides) == ((4, 5), (4, 3), (3, 1))
    assert Operand("x", qp.F32, (("M", 0), ("K", 6))).empty
    assert Operand("act_q", qp.S8, (("M", 4), ("K", 6))) == A
    assert A != WEIGHT


# ---- refused


@pytest.mark.parametrize(
    "operand, array, got",
    [
        (A, wide(4, 6, np.uint8), "u8"),
        (A, wide(4, 6, np.int32), "s32"),
        (SCALE, np.zeros(8), "f64"),
        (SCALE, np.zeros(8, np.float16), "f16"),
        (OUTPUT, wide(4, 8, np.float64), "f64"),
        (FP8, wide(4, 6, qp.FP8_E5M2.dtype), "fp8_e5m2"),
        (PACKED, qp.typed(wide(4, 3, np.uint8), qp.U4), "u4"),
    ],
)
def test_another_element(operand, array, got):
    error = refusal(operand, array)
    assert (error.expected, error.got, error.hint) == (f"element {operand.element.value}", got, None)


@pytest.mark.parametrize("carrier", [np.uint8, np.int8])
@pytest.mark.parametrize("kind", [qp.FP8_E4M3, qp.FP8_E5M2, qp.E8M0, qp.FP4_E2M1, qp.S4, qp.U4])
def test_untyped_codes_are_refused_with_the_way_to_type_them(kind, carrier):
    operand = Operand("q", kind, (("M", 4), ("K", 6)))
    codes = wide(4, operand.storage[1], carrier)
    error = refusal(operand, codes)
    assert error.hint == f"wrap the codes in quantplan.typed(array, quantplan.{kind.name})"
    check(operand, qp.typed(codes, kind))


def test_integer_values_where_floats_are_expected_are_not_taken_for_codes():
    assert refusal(SCALE, np.ones(8, np.int32)).hint is None


@pytest.mark.parametrize(
    "operand, array, expected",
    [
        (A, wide(4, 5), "shape (M=4, K=6)"),
        (A, wide(3, 6), "shape (M=4, K=6)"),
        (A, wide(1, 24), "shape (M=4, K=6)"),
        (A, np.zeros(24, np.int8), "shape (M=4, K=6)"),
        (A, wide(4, 6).reshape(4, 6, 1), "shape (M=4, K=6)"),
        (A, np.int8(0)[...], "shape (M=4, K=6)"),
        (A, wide(0, 6), "shape (M=4, K=6)"),
        (SCALE, np.zeros((8, 1), np.float32), "shape (N=8,)"),
        (SCALE, np.zeros(1, np.float32), "shape (N=8,)"),
        (PACKED, qp.typed(wide(4, 2, np.uint8), qp.S4), "shape (M=4, K=5)"),
        (PACKED, qp.typed(wide(4, 4, np.uint8), qp.S4), "shape (M=4, K=5)"),
    ],
)
def test_another_shape(operand, array, expected):
    error = refusal(operand, array)
    assert (error.expected, error.got) == (expected, str(qp.TensorView.of(array).shape))


def test_the_message_reads_as_designed():
    error = refusal(Operand("act_q", qp.S8, (("M", 16), ("K", 4096))), wide(16, 4095))
    assert str(error) == "Quantize: act_q: expected shape (M=16, K=4096), got (16, 4095)"


@pytest.mark.parametrize("array", [wide(6, 8), np.asfortranarray(wide(8, 6)).T])
def test_a_transposed_operand_gets_a_hint(array):
    assert refusal(WEIGHT, array).hint == "it is transposed: pass a contiguous copy of its transpose"


def test_other_shapes_get_the_operands_own_hint():
    assert refusal(WEIGHT, wide(8, 5)).hint == WEIGHT.hint
    square = Operand("weight_q", qp.S8, (("N", 6), ("K", 6)), hint="weights are [N, K]")
    assert refusal(square, wide(6, 5)).hint == "weights are [N, K]"


STRIDED = {
    "fortran order": (A, np.asfortranarray(wide(4, 6))),
    "a transposed view": (A, wide(6, 4).T),
    "columns apart": (A, wide(4, 12)[:, ::2]),
    "columns leftwards": (A, wide(4, 6)[:, ::-1]),
    "rows upwards": (A, wide(4, 6)[::-1]),
    "one row for all": (A, np.broadcast_to(wide()[0, :6], (4, 6))),
    "one column for all": (A, np.broadcast_to(wide()[:4, :1], (4, 6))),
    "rows closer than their length": (A, np.lib.stride_tricks.as_strided(wide(), (4, 6), (5, 1))),
    "a vector with gaps": (SCALE, np.zeros(16, np.float32)[::2]),
    "a vector backwards": (SCALE, np.zeros(8, np.float32)[::-1]),
    "one number for all": (SCALE, np.broadcast_to(np.float32(1), 8)),
    "packed columns apart": (PACKED, qp.typed(wide(4, 6, np.uint8)[:, ::2], qp.S4)),
    "packed rows closer than their length": (PACKED, qp.TensorView(4096, (4, 6), (2, 1), qp.S4)),
}


@pytest.mark.parametrize("name", STRIDED)
def test_strides(name):
    """Strides that are not read correctly are refused."""
    operand, array = STRIDED[name]
    error = refusal(operand, array)
    view = qp.TensorView.of(array)
    assert error.expected == "a contiguous last axis and rows that do not overlap"
    assert error.got == f"strides {view.strides} for shape {view.shape}"
    assert "row-major" in error.hint


@pytest.mark.parametrize("kind", [qp.F64, qp.F32, qp.F16, qp.BF16, qp.S32])
def test_misaligned_pointers(kind):
    """A contiguous view that starts between two elements is refused, whatever its element."""
    operand = Operand("x", kind, (("M", 2), ("K", 3)))
    raw = np.zeros(16 * kind.itemsize, np.uint8)
    for shift in range(1, kind.itemsize):
        start = -raw.ctypes.data % kind.itemsize + shift
        array = raw[start : start + 6 * kind.itemsize].view(kind.dtype).reshape(2, 3)
        error = refusal(operand, array, qp.MisalignedOperand)
        assert error.expected == f"a pointer aligned to {kind.itemsize} bytes"
        assert error.got == hex(array.__array_interface__["data"][0])
        check(operand, array.copy())


def test_rows_that_a_kernel_copies_whole_are_aligned_and_rows_of_nothing_need_not_be():
    words = Operand("weight_q", qp.S32, (("K/16", 2), ("2·N", 4)), alignment=16)
    memory = np.zeros(64, np.int32)
    first = -(memory.ctypes.data // 4) % 4
    good = memory[first : first + 16].reshape(2, 8)
    check(words, good[:, :4])
    odd = memory[first + 1 : first + 17].reshape(2, 8)[:, :4]
    assert "rows aligned to 16 bytes" in str(refusal(words, odd, qp.MisalignedOperand))
    apart = memory[first : first + 14].reshape(2, 7)[:, :4]
    assert "28 bytes apart" in str(refusal(words, apart, qp.MisalignedOperand))
    check(
        Operand("weight_q", qp.S32, (("K/16", 2), ("2·N", 0)), alignment=16),
        memory[first + 1 :][:14].reshape(2, 7)[:, :0],
    )


def test_bytes_are_always_aligned():
    raw = np.zeros(64, np.int8)
    for start in range(8):
        check(A, raw[start : start + 24].reshape(4, 6))


@pytest.mark.parametrize(
    "location, got", [(CUDA0, HOST), (HOST, CUDA0), (CUDA0, qp.Location("cuda", 1)), (HOST, qp.Location("meta"))]
)
def test_another_device(location, got):
    """Memory of another device is refused before anything is launched."""
    view = qp.TensorView(4096, (4, 6), (6, 1), qp.S8, got)
    error = refusal(A, view, qp.DeviceMismatch, location)
    assert (error.expected, error.got) == (str(location), str(got))


def test_read_only_outputs():
    array = wide(4, 8, np.float32)
    check(OUTPUT, array)
    array.flags.writeable = False
    error = refusal(OUTPUT, array)
    assert (error.expected, error.got) == ("writable memory", "a read-only array")


# ---- presence


def test_missing_operands_are_named_with_their_shape():
    with pytest.raises(qp.InvalidProblem) as caught:
        check_presence("Quantize", [A, WEIGHT], {"act_q": qp.TensorView.of(wide()), "weight_q": None})
    error = caught.value
    assert (error.op, error.field) == ("Quantize", "weight_q")
    assert (error.expected, error.got) == ("a tensor of shape (8, 6)", "None")
    assert error.hint == WEIGHT.hint


def test_operands_that_nobody_asked_for_are_named():
    given = {"act_q": qp.TensorView.of(wide()), "bias": qp.TensorView.of(np.zeros(8, np.float32))}
    with pytest.raises(qp.InvalidProblem) as caught:
        check_presence("Quantize", [A], given)
    error = caught.value
    assert (error.op, error.field) == ("Quantize", "bias")
    assert error.expected == "no operand: the descriptor asks for none"
    assert error.got == str(given["bias"])


def test_absent_optional_operands_are_fine():
    check_presence("Quantize", [A], {"act_q": qp.TensorView.of(wide()), "bias": None})


# ---- overlap

X = Operand("x", qp.S8, (("M", 4), ("K", 6)))
Y = Operand("y", qp.S8, (("M", 4), ("K", 6)), output=True)
Z = Operand("z", qp.S8, (("M", 4), ("K", 6)), output=True)
BUFFER = wide()


@pytest.mark.parametrize(
    "operands, arrays, fault",
    [
        ([X, Y], {"x": BUFFER[:4, :6], "y": BUFFER[:4, :6]}, ("y", "x")),
        ([Y, X], {"x": BUFFER[:4, :6], "y": BUFFER[3:7, 5:11]}, ("y", "x")),
        ([X, Y], {"x": BUFFER[:4, :6], "y": BUFFER[3:7, 5:11]}, ("y", "x")),
        ([Y, Z], {"y": BUFFER[:4, :6], "z": BUFFER[:4, 3:9]}, ("y", "z")),
        ([X, Y, Z], {"x": BUFFER[8:12, :6], "y": BUFFER[:4, :6], "z": BUFFER[11:15, :6]}, ("z", "x")),
    ],
)
def test_outputs_that_share_memory_are_refused(operands, arrays, fault):
    given = {name: qp.TensorView.of(array) for name, array in arrays.items()}
    with pytest.raises(qp.InvalidProblem) as caught:
        check_overlap("Quantize", operands, given)
    error = caught.value
    assert (error.op, error.field) == ("Quantize", fault[0])
    assert (error.expected, error.got) == (f"memory of its own, apart from {fault[1]}", "overlapping memory")


@pytest.mark.parametrize(
    "operands, arrays",
    [
        ([X, Y], {"x": BUFFER[:4, :6], "y": BUFFER[4:8, :6]}),
        ([X, Y], {"x": BUFFER[:4, :6], "y": BUFFER[:4, 6:12]}),
        ([Y, Z], {"y": BUFFER[:4, 12:18], "z": BUFFER[:4, 6:12]}),
        ([X, A], {"x": BUFFER[:4, :6], "act_q": BUFFER[:4, :6]}),  # nobody writes
        ([X, A, Y], {"x": BUFFER[:4, :6], "act_q": BUFFER[:4, :6], "y": BUFFER[4:8, :6]}),
        ([Y, X, A], {"x": BUFFER[8:12, :6], "act_q": BUFFER[9:13, :6], "y": BUFFER[4:8, :6]}),
    ],
)
def test_outputs_with_memory_of_their_own_are_accepted(operands, arrays):
    """Outputs may be column ranges of one buffer."""
    check_overlap("Quantize", operands, {name: qp.TensorView.of(array) for name, array in arrays.items()})


@hypothesis.given(places=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 18)), min_size=3, max_size=3))
def test_outputs_are_refused_if_and_only_if_they_share_memory(places):
    arrays = [BUFFER[row : row + 4, column : column + 6] for row, column in places]
    given = dict(zip("xyz", map(qp.TensorView.of, arrays), strict=True))
    shared = any(np.shares_memory(arrays[i], arrays[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    with pytest.raises(qp.InvalidProblem) if shared else contextlib.nullcontext():
        check_overlap("Quantize", [X, Y, Z], given)


# ---- outputs in the place of an input

STREAM = Operand("residual", qp.S8, (("M", 4), ("K", 6)))
NEW = Operand("residual_output", qp.S8, (("M", 4), ("K", 6)), output=True, replaces="residual")
ONE_ROW = (attrs.evolve(STREAM, dims=(("M", 1), ("K", 6))), attrs.evolve(NEW, dims=(("M", 1), ("K", 6))))


def overlapping(operands, *arrays):
    views = map(qp.TensorView.of, arrays)
    check_overlap("NormQuantize", operands, {o.name: view for o, view in zip(operands, views, strict=True)})


@pytest.mark.parametrize("place", [BUFFER[:4, :6], BUFFER[1:9:2, 3:9]])
def test_an_output_may_take_the_place_of_the_input_that_it_replaces(place):
    overlapping([STREAM, NEW], place, place)
    overlapping([NEW, STREAM], place, place)
    overlapping([STREAM, NEW], place, place.view())


def test_it_may_also_have_memory_of_its_own():
    overlapping([STREAM, NEW], BUFFER[:4, :6], BUFFER[:4, 6:12])
    overlapping([STREAM, NEW], BUFFER[:4, :6], BUFFER[4:8, :6])


def test_a_single_row_is_in_its_place_whatever_its_distance_to_others():
    overlapping(ONE_ROW, BUFFER[:1, :6], BUFFER[::3, :6][:1])


def test_an_input_may_be_seen_through_a_view_that_cannot_be_written():
    frozen = BUFFER[:4, :6]
    frozen.flags.writeable = False
    overlapping([STREAM, NEW], frozen, BUFFER[:4, :6])


def test_layouts_that_are_no_longer_remembered_are_still_the_same():
    old = qp.TensorView.of(BUFFER[:4, :6])
    Layout.of.cache_clear()
    check_overlap("NormQuantize", [STREAM, NEW], {"residual": old, "residual_output": qp.TensorView.of(BUFFER[:4, :6])})


SHIFTED = {
    "by a row": BUFFER[1:5, :6],
    "by a column": BUFFER[:4, 1:7],
    "by a row of another pitch": BUFFER[:8:2, :6],
    "to rows beside each other": BUFFER.reshape(-1)[:24].reshape(4, 6),
}


@pytest.mark.parametrize("how", SHIFTED)
def test_part_of_its_place_is_refused(how):
    for operands in ([STREAM, NEW], [NEW, STREAM]):
        arrays = (BUFFER[:4, :6], SHIFTED[how])
        with pytest.raises(qp.InvalidProblem) as caught:
            overlapping(operands, *(arrays if operands[0] is STREAM else arrays[::-1]))
        error = caught.value
        assert (error.op, error.field) == ("NormQuantize", "residual_output")
        assert error.expected == "memory of its own, apart from residual, or all of its"
        assert (error.got, error.hint) == ("overlapping memory", None)


def test_the_place_of_any_other_operand_is_refused():
    place = BUFFER[:4, :6]
    for other in (X, Z):
        with pytest.raises(qp.InvalidProblem) as caught:
            overlapping([other, STREAM, NEW], place, BUFFER[4:8, :6], place)
        assert "or all of its" not in str(caught.value)
        assert caught.value.hint == "it does not work in place: pass another output"
    with pytest.raises(qp.InvalidProblem):
        overlapping([X, STREAM, NEW], place, place, place)  # x would be read after the stream was written


# ---- Args fields


def test_args_fields_convert_any_tensor():
    array = wide(2, 2, np.float32)
    args = qp.QuantizeArgs(x=array, q=qp.TensorView.of(array))
    assert isinstance(args.x, qp.TensorView)
    assert args.x.owner is array
    assert args.scale is None
    with pytest.raises(qp.InvalidProblem, match="expected a tensor, got float"):
        qp.QuantizeArgs(x=array, q=array, scale=1.0)
    with pytest.raises(qp.InvalidProblem, match="expected a tensor, got NoneType"):
        qp.QuantizeArgs(x=array, q=None)


def test_args_fields_name_themselves_when_they_refuse():
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.QuantizeArgs(x=wide(2, 2, np.float32), q=wide(2, 2, np.int64))
    assert caught.value.field == "q"
