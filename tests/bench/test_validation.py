"""Validated is what every stage looked at and none blamed; what was cut, failed or never ran is told as that."""

import pytest

from quantplan.bench import validation
from tests.bench import synthetic

KERNEL = "dynamic_range_quantize.within_rows"


def status(results, kernel=KERNEL):
    return next(v for v in validation.validations(results) if v.kernel == kernel)


def test_what_never_ran_is_not():
    assert {v.status for v in validation.validations([])} == {"never"}


def test_a_kernel_that_kept_its_guarantees_is_validated():
    found = status([synthetic.run()])
    assert (found.status, found.detail) == ("yes", "1 SKUs, 40 cases; Abacus 9000, 2031-02-03")
    assert status([synthetic.run()], "dequantize.elementwise").status == "never"


def test_a_kernel_whose_sources_have_changed_is_not():
    data = synthetic.run()
    data["sources"] = {**data["sources"], "dynamic_range_quantize.cu": "another digest"}
    assert status([data]).status == "source changed since"
    assert status([data], "quantize.elementwise").status == "yes", "its sources are the same"


def test_of_several_runs_the_newest_of_the_same_sources_counts():
    old, changed = synthetic.run("2031-01-01"), synthetic.run("2031-02-02")
    changed["sources"] = {**changed["sources"], "dynamic_range_quantize.cu": "another digest"}
    assert status([old, changed]).detail.endswith("2031-01-01")
    newer = synthetic.run("2031-03-03")
    assert status([old, changed, newer]).detail.endswith("2031-03-03")


SANITIZED = {"exit_code": 0, "found": False, "ran": ["quantize s8 token"], "wrong": {}, "first_lines": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"guarantees": {"some": {"plans": [], "problems": [f"{KERNEL}.bf16.s8: breaks its guarantee, e.g. x"]}}},
        {"guarantees": {f"{KERNEL} [0, 3]": {"error": "hung: no answer within 25 s"}}},
        {"guarantees": {"another.kernel [0]": {"error": f"{KERNEL}.bf16.s8, ties: RuntimeError: CUDA_ERROR_X"}}},
        {"tests": {"passed": 3, "failed": {"test_plans.py::test_x[quantize s8 token-1]": "differ"}, "skipped": {}}},
        {"tests": {"passed": 3, "failed": {f"test_verify.py::test_x[{KERNEL}-1]": "differ"}, "skipped": {}}},
        {"tests": {"passed": 3, "failed": {"family.py::test_x[dynamic_range_quantize-case1]": ""}, "skipped": {}}},
        {"exercises": {"row | shape | 16": {"skus": [], "wrong": {f"{KERNEL}.bf16.s8 q": 3}}}},
        {"exercises": {"quantize s8 token | 8192 | 16": {"error": "ValueError: no"}}},
        {"points": {"row | shape | 16": {"error": f"{KERNEL}.bf16.s8: hung: no answer within 25 s"}}},
        {"sanitizers": {"racecheck": {**SANITIZED, "exit_code": 86, "found": True, "first_lines": ["race"]}}},
        {"sanitizers": {"racecheck": {**SANITIZED, "found": True, "blamed": ["quantize s8 token"]}}},
        {"sanitizers": {"racecheck": {**SANITIZED, "wrong": {"quantize s8 token": {"error": "x"}}}}},
    ],
)
def test_whatever_failed_it_is_not_validated(changes):
    data = synthetic.run(**changes)
    assert status([data]).status == "no"
    assert "Abacus 9000" in status([data]).detail


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"stages": {"tests": {"status": "cut"}}}, "tests: cut; guarantees: not run; sanitizers: not run"),
        ({"tests": {"absent": "only a checkout has them"}}, "tests: only a checkout has them"),
        (
            {"tests": {"passed": 3, "failed": {"test_ptx.py::test_mma[f16]": "differ"}, "skipped": {}}},
            "test_mma[f16] failed",
        ),
        ({"guarantees": {}}, "no guarantee of it was attacked"),
        ({"sanitizers": {"memcheck": {**SANITIZED, "ran": []}}}, "no sanitizer has seen it"),
    ],
)
def test_what_did_not_come_to_its_end_validates_in_part(changes, reason):
    found = status([synthetic.run(**changes)])
    assert found.status == "in part"
    assert reason in found.detail


def test_a_machine_without_sanitizers_validates_all_the_rest():
    found = status([synthetic.run(sanitizers={"absent": "the device is not supported"})])
    assert found.status == "yes, but for sanitizers"
    assert found.detail.startswith("the device is not supported; 1 SKUs, 40 cases")


def test_a_task_that_time_cut_is_nobodys_fault():
    data = synthetic.run()
    data["guarantees"][f"{KERNEL} [9]"] = {"error": f"{KERNEL}.bf16.s8, ties: hung or cut after 12 s"}
    assert status([data]).status == "yes"


@pytest.mark.parametrize(
    "fault",
    [
        {"guarantees": {"other": {"plans": [], "problems": ["quantize.elementwise.bf16.s8: breaks its guarantee"]}}},
        {"tests": {"failed": {"test_plans.py::test_x[quantize s8 static-1]": "differ"}}},
        {"sanitizers": {"racecheck": {**SANITIZED, "found": True, "blamed": ["quantize s8 static"]}}},
    ],
)
def test_another_ops_fault_is_not_held_against_it(fault):
    data = synthetic.run()
    for part, entries in fault.items():
        data[part] = {**data[part], **entries}
    assert status([data]).status == "yes"
    assert status([data], "quantize.elementwise").status == "no"
