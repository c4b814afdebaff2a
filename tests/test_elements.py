"""ElementKind knows what NumPy, ml_dtypes and torch call a format, and its width and range."""

import ml_dtypes
import numpy as np
import pytest

import quantplan as qp

# (kind, storage dtype, bits, names): what each library calls it.
KINDS = [
    (qp.F64, np.float64, 64, ["f64", "float64", "double", "torch.float64", "torch.double"]),
    (qp.F32, np.float32, 32, ["f32", "float32", "float", "torch.float32", "torch.float"]),
    (qp.F16, np.float16, 16, ["f16", "float16", "half", "torch.float16"]),
    (qp.BF16, ml_dtypes.bfloat16, 16, ["bf16", "bfloat16", "torch.bfloat16"]),
    (qp.S8, np.int8, 8, ["s8", "int8", "torch.int8"]),
    (qp.U8, np.uint8, 8, ["u8", "uint8", "torch.uint8"]),
    (qp.S32, np.int32, 32, ["s32", "int32", "torch.int32"]),
    (qp.FP8_E4M3, ml_dtypes.float8_e4m3fn, 8, ["fp8_e4m3", "e4m3", "float8_e4m3fn", "torch.float8_e4m3fn"]),
    (qp.FP8_E5M2, ml_dtypes.float8_e5m2, 8, ["fp8_e5m2", "e5m2", "float8_e5m2", "torch.float8_e5m2"]),
    (qp.E8M0, ml_dtypes.float8_e8m0fnu, 8, ["e8m0", "float8_e8m0fnu", "torch.float8_e8m0fnu"]),
    (qp.S4, np.uint8, 4, ["s4", "int4", "torch.int4"]),
    (qp.U4, np.uint8, 4, ["u4", "uint4", "torch.uint4"]),
    (qp.FP4_E2M1, np.uint8, 4, ["fp4_e2m1", "e2m1", "float4_e2m1fn"]),
]
PACKED = [(qp.S4, ml_dtypes.int4), (qp.U4, ml_dtypes.uint4), (qp.FP4_E2M1, ml_dtypes.float4_e2m1fn)]
DTYPES = [(kind, dtype) for kind, dtype, bits, _ in KINDS if bits > 4] + PACKED


class TorchDtype:
    """torch.dtype is an opaque object whose str is its name."""

    def __init__(self, name):
        self.name = name

    def __str__(self):
        return self.name


def test_every_kind_is_covered_here_and_exported():
    assert {kind for kind, *_ in KINDS} == set(qp.ElementKind)
    assert all(getattr(qp, kind.name) is kind for kind in qp.ElementKind)


@pytest.mark.parametrize("kind, dtype, bits, names", KINDS)
def test_width_and_storage(kind, dtype, bits, names):
    del names
    assert kind.bits == bits
    assert kind.dtype == np.dtype(dtype)
    assert kind.itemsize == kind.dtype.itemsize
    assert kind.packed == (bits == 4)
    assert kind.itemsize == max(1, bits // 8)


@pytest.mark.parametrize("kind, dtype", DTYPES)
def test_of_dtypes_and_scalar_types(kind, dtype):
    assert qp.ElementKind.of(np.dtype(dtype)) is kind
    assert qp.ElementKind.of(dtype) is kind
    assert qp.ElementKind.of(np.zeros(1, dtype).dtype) is kind


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, _, _, names in KINDS for name in names], ids=str)
def test_of_names_in_any_case_and_of_torch_dtypes(kind, name):
    assert qp.ElementKind.of(name) is kind
    assert qp.ElementKind.of(name.upper()) is kind
    assert qp.ElementKind.of(TorchDtype(name)) is kind


@pytest.mark.parametrize("kind", qp.ElementKind)
def test_of_kinds_and_their_values(kind):
    assert qp.ElementKind.of(kind) is kind
    assert qp.ElementKind.of(kind.value) is kind
    assert qp.ElementKind(kind.value) is kind


def test_torchs_packed_fp4_dtype_is_known():
    assert qp.ElementKind.of(TorchDtype("torch.float4_e2m1fn_x2")) is qp.FP4_E2M1


def test_torchs_own_dtypes():
    torch = pytest.importorskip("torch", reason="torch is not installed; its names are tested with stand-ins above")
    for kind, _, bits, names in KINDS:
        for name in names:
            dtype = getattr(torch, name.removeprefix("torch."), None) if name.startswith("torch.") else None
            if dtype is not None and bits > 4:
                assert qp.ElementKind.of(dtype) is kind


STRANGERS = [
    "float8", "int16", "fp16", "", "f32 ", "q8", None, 8, 1.5, object(), np.int16, np.uint64, np.complex64, bool,
    object, np.floating, np.dtype("datetime64[s]"), np.dtype("V8"), np.dtype([("a", "f4")]), np.dtype(("f4", (2,))),
    # near relations of formats that there are, with other values for the same bits
    ml_dtypes.float8_e4m3, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e4m3b11fnuz, ml_dtypes.float8_e5m2fnuz,
    ml_dtypes.float8_e3m4, ml_dtypes.float6_e2m3fn, ml_dtypes.int2, TorchDtype("torch.qint8"),
]  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS)
def test_unknown_formats_are_refused(stranger):
    assert qp.ElementKind.find(stranger) is None
    with pytest.raises(qp.InvalidProblem, match=r"element: expected one of f64, .*e8m0, .*got"):
        qp.ElementKind.of(stranger)


@pytest.mark.parametrize("name", ["f8", "f4", "f2", "i4"])
def test_foreign_byte_order_is_refused(name):
    foreign = np.dtype(name).newbyteorder("S")
    assert qp.ElementKind.find(np.dtype(name)) is not None
    assert qp.ElementKind.find(foreign) is None
    with pytest.raises(qp.InvalidProblem, match="element"):
        qp.ElementKind.of(foreign)


def test_native_byte_order_may_be_spelt_out():
    assert qp.ElementKind.of(np.dtype("=f4")) is qp.F32


@pytest.mark.parametrize("kind, dtype", DTYPES)
def test_ranges_are_those_of_ml_dtypes(kind, dtype):
    if kind.is_integer:
        info = ml_dtypes.iinfo(dtype)
        assert kind.integer_range == (int(info.min), int(info.max))
    else:
        assert kind.largest == float(ml_dtypes.finfo(dtype).max)


@pytest.mark.parametrize(
    "flag, kinds",
    [
        ("is_float", {qp.F64, qp.F32, qp.F16, qp.BF16}),
        ("is_integer", {qp.S8, qp.U8, qp.S4, qp.U4, qp.S32}),
        ("is_fp8", {qp.FP8_E4M3, qp.FP8_E5M2}),
        ("packed", {qp.S4, qp.U4, qp.FP4_E2M1}),
    ],
)
def test_families(flag, kinds):
    assert {kind for kind in qp.ElementKind if getattr(kind, flag)} == kinds


@pytest.mark.parametrize("columns, bytes_of_pairs", [(0, 0), (1, 1), (2, 1), (3, 2), (2**31 - 1, 2**30)])
def test_packed_kinds_store_two_columns_per_byte(columns, bytes_of_pairs):
    for kind in qp.ElementKind:
        assert kind.storage_columns(columns) == (bytes_of_pairs if kind.packed else columns)
