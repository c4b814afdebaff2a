"""Errors say op, field, expected, got and a hint, are the builtins one would expect, and travel between processes."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import quantplan as qp
from quantplan.errors import CompilerNotFound, FaultKind, KernelFault

EVERYTHING = {
    "op": "SmoothQuantLinear",
    "field": "act_q",
    "expected": "shape (M=16, K=4096)",
    "got": (16, 4095),
    "hint": "pad nothing, describe K=4095",
}

# (parts, text): every part is optional.
TEXTS = [
    ({}, ""),
    ({"message": "wrong"}, "wrong"),
    ({"message": "wrong", "hint": "do it right"}, "wrong (do it right)"),
    ({"op": "Quantize"}, "Quantize"),
    ({"op": "Quantize", "message": "wrong"}, "Quantize: wrong"),
    ({"field": "x", "message": "wrong"}, "x: wrong"),
    ({"expected": 1}, "expected 1"),
    ({"expected": 1, "got": 2}, "expected 1, got 2"),
    ({"expected": 0, "got": 0}, "expected 0, got 0"),
    ({"expected": False, "got": ""}, "expected False, got "),
    ({"message": "wrong", "expected": 1, "got": 2}, "wrong: expected 1, got 2"),
    ({"message": "wrong", "got": 2}, "wrong"),
    (
        EVERYTHING,
        "SmoothQuantLinear: act_q: expected shape (M=16, K=4096), got (16, 4095) (pad nothing, describe K=4095)",
    ),
]


@pytest.mark.parametrize("parts, text", TEXTS)
def test_text_has_the_parts_that_are_known(parts, text):
    assert str(qp.QuantPlanError(**parts)) == text


def test_parts_are_keyword_only():
    with pytest.raises(TypeError):
        qp.QuantPlanError("wrong", "Quantize")


BUILTINS = [
    (qp.InvalidProblem, ValueError),
    (qp.Unsupported, NotImplementedError),
    (qp.MisalignedOperand, ValueError),
    (qp.DeviceMismatch, ValueError),
    (qp.DriverError, RuntimeError),
    (qp.KernelBuildError, RuntimeError),
    (CompilerNotFound, RuntimeError),
    (KernelFault, RuntimeError),
    (qp.DriverNotFound, RuntimeError),
    (qp.CaptureError, RuntimeError),
    (qp.WorkspaceTooSmall, Exception),
]


@pytest.mark.parametrize("kind, builtin", BUILTINS, ids=lambda kind: kind.__name__)
def test_kinds_are_caught_as_builtins_and_as_the_base(kind, builtin):
    assert issubclass(kind, builtin)
    assert issubclass(kind, qp.QuantPlanError)


REPORTS = (
    qp.VariantReport(name="mma", supported=False, reason="needs sm_80, and the target is cpu"),
    qp.VariantReport(name="reference", supported=False, reason="backend is reference, and bespoke is required"),
)

ERRORS = [
    qp.QuantPlanError("wrong", **EVERYTHING),
    qp.InvalidProblem("wrong", **EVERYTHING),
    qp.InvalidProblem(field="x", expected=[1, 2], got={"a": 1}),
    qp.Unsupported("no variant runs this", variants=REPORTS, **EVERYTHING),
    qp.WorkspaceTooSmall(op="Quantize", needed=512, available=511),
    qp.MisalignedOperand(**EVERYTHING),
    qp.DeviceMismatch(op="Quantize", field="x", expected=qp.Location("cuda", 1), got=qp.Location("cpu")),
    qp.DriverError(code=2, name="CUDA_ERROR_OUT_OF_MEMORY", **EVERYTHING),
    qp.KernelBuildError(options=("-arch=sm_90a", "--fmad=false"), log="x.cu(1): error: no", op="Quantize"),
    CompilerNotFound("none of g++, clang++ and ziglang", op="emulator", hint="install one"),
    KernelFault("two threads, one byte", kind=FaultKind.RACE, kernel="qp_k", place="k.cu:3"),
    KernelFault(
        "no thread can go on",
        kind=FaultKind.DEADLOCK,
        kernel="qp_k",
        place="k.cu:3",
        other_place="k.cu:5",
        block=(1, 2, 3),
        thread=(31, 0, 1),
    ),
    qp.DriverNotFound("no CUDA driver on this machine", hint="install one"),
    qp.CaptureError("no allocation while a stream captures", op="Quantize"),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_pickling_keeps_kind_text_and_every_attribute(error, protocol):
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)
    assert back.args == error.args


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_copies_keep_kind_and_text(error):
    for back in (copy.copy(error), copy.deepcopy(error)):
        assert type(back) is type(error)
        assert str(back) == str(error)


def test_pickling_keeps_notes():
    error = qp.InvalidProblem("wrong")
    error.add_note("in layer 3")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["in layer 3"]


def test_every_kind_is_pickled_above():
    kinds = {qp.QuantPlanError, *qp.QuantPlanError.__subclasses__()}
    assert {kind for kind in kinds if kind.__module__ == "quantplan.errors"} == {type(error) for error in ERRORS}


def test_unsupported_shows_each_variant_with_its_reason():
    error = qp.Unsupported("no variant runs this on sm_75", op="Quantize", hint="use 'cpu'", variants=REPORTS)
    assert str(error).splitlines() == [
        "Quantize: no variant runs this on sm_75 (use 'cpu')",
        "  mma        needs sm_80, and the target is cpu",
        "  reference  backend is reference, and bespoke is required",
    ]
    assert error.variants == REPORTS


def test_unsupported_without_variants_is_one_line():
    assert str(qp.Unsupported("nothing runs on sm_90a")) == "nothing runs on sm_90a"


def test_workspace_too_small_says_how_many_bytes():
    error = qp.WorkspaceTooSmall(op="Quantize", needed=512, available=511)
    assert (error.needed, error.available) == (512, 511)
    expected = "Quantize: workspace: expected at least 512 bytes, got 511 (allocate plan.workspace_size bytes)"
    assert str(error) == expected


def test_driver_error_shows_code_and_name():
    error = qp.DriverError(code=2, name="CUDA_ERROR_OUT_OF_MEMORY", op="cuda")
    assert (error.code, error.name) == (2, "CUDA_ERROR_OUT_OF_MEMORY")
    assert str(error) == "cuda: CUDA_ERROR_OUT_OF_MEMORY (2)"
    assert str(qp.DriverError("launch failed", code=2, name="X")) == "launch failed"


def test_kernel_build_error_shows_the_compilers_log():
    error = qp.KernelBuildError(options=("-O3",), log="\nx.cu(1): error: no\n")
    assert str(error) == "x.cu(1): error: no"
    assert (error.options, error.log) == (("-O3",), "\nx.cu(1): error: no\n")


def test_kernel_fault_says_what_where_and_who():
    fault = KernelFault("thread 3 writes x", kind=FaultKind.READ_ONLY, kernel="qp_k", place="k.cu:3", thread=(3, 0, 0))
    assert str(fault) == (
        "emulator: qp_k: write to an input at k.cu:3, block (0, 0, 0), thread (3, 0, 0): thread 3 writes x"
    )
    assert (fault.op, fault.kernel, fault.other_place) == ("emulator", "qp_k", None)
    fault = KernelFault("…", kind=FaultKind.RACE, kernel="qp_k", place="k.cu:3", other_place="k.cu:5")
    assert "race at k.cu:3 (see also k.cu:5)" in str(fault)


def test_an_error_keeps_no_tensor_alive_and_pickles_whatever_it_was_given():
    array = np.zeros(1000)
    error = qp.InvalidProblem(field="bias", expected=object(), got=qp.TensorView.of(array))
    alive = weakref.ref(array)
    del array
    gc.collect()
    assert alive() is None
    assert pickle.loads(pickle.dumps(error)).got == "TensorView(f64, (1000,), cpu)"
