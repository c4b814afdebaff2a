"""The kernels of a day are known beforehand, those first that no result has run, and found where they were compiled."""

import pytest

import quantplan as qp
from quantplan import cubins
from quantplan.bench import gpu_day, problems, wanted
from quantplan.bench.problems import ROWS, row

ARCH = qp.Target.parse("sm_90a")
SOME = [row("quantize s8 token"), row("norm_quantize bf16")]


FEW = [line for line in ROWS if line.op in ("quantize", "fp8_gemm", "repack_marlin")]


@pytest.fixture(
    scope="module", params=[pytest.param(ROWS, marks=pytest.mark.slow, id="all"), pytest.param(FEW, id="few")]
)
def rows(request):
    return request.param


@pytest.fixture(scope="module")
def kernels(rows):
    return wanted.kernels(ARCH, rows, {})


def selected(desc):
    return set(qp.plan.plan_type(desc).choose(ARCH, desc).kernels(desc))


def test_what_tests_exercises_and_benchmarks_run_is_among_them(kernels, rows):
    known = set(kernels)
    assert len(known) == len(kernels)
    for line in rows:
        for m, shape in ((67, line.small), (0, problems.Shape("no columns", 0, 64)), (300, line.compared)):
            if shape.n or not line.small.n:
                assert selected(line.descriptor(m, shape)) <= known
    for point in problems.points(rows[:12]):
        assert selected(point.descriptor) <= known


def test_what_a_problem_runs_by_every_variant_is_among_them(kernels):
    desc = row("fp8_gemm tensor").descriptor(16, row("fp8_gemm tensor").shapes[0])
    variants = [report.name for report in qp.Fp8GemmPlan.why_not(ARCH, desc) if report.supported]
    found = list(wanted.of_problem(ARCH, desc, every=True))
    assert [variant.name for _, variant, _ in found] == variants
    assert all(set(specs) <= set(kernels) for *_, specs in found)
    assert [variant.name for _, variant, _ in wanted.of_problem(ARCH, desc, every=False)] == variants[:1]


def test_kernels_that_no_result_has_run_come_first():
    variants = ("within_rows", "within_cluster", "whole_tensor", "across_rows")
    ranks = {**{f"dynamic_range_quantize.{name}": 1 + len(name) % 2 for name in variants}, "norm_quantize.row": 0}
    sources = [spec.source for spec in wanted.kernels(ARCH, SOME, ranks)]
    count = sources.count("norm_quantize.cu")
    assert set(sources[:count]) == {"norm_quantize.cu"}
    assert "dynamic_range_quantize.cu" in sources[count:]


def test_only_the_ops_that_are_asked_for_are_compiled():
    sources = {spec.source for spec in wanted.kernels(ARCH, [row("repack_marlin awq")], {})}
    assert sources == {"repack_marlin.cu", "dynamic_range_quantize.cu"}, "and what the host is timed with"


def test_they_are_compiled_into_a_folder_once_and_found_there(tmp_path, monkeypatch):
    pytest.importorskip("cuda.core", reason="compiling for GPUs needs cuda-core, which this environment lacks")
    specs = wanted.kernels(ARCH, SOME, {})[:2]
    monkeypatch.setattr(wanted, "kernels", lambda *_: specs)
    assert gpu_day.main(["--compile-only", str(tmp_path / "cubins"), "--target", "sm_90a"]) == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cubins").glob("*.cubin")}
    assert len(made) == 2
    monkeypatch.setenv(cubins.PATH_VARIABLE, str(tmp_path / "cubins"))
    assert all(cubins.is_precompiled(spec, "sm_90a") for spec in specs)
    assert gpu_day.main(["--compile-only", str(tmp_path / "more"), "--target", "sm_90a"]) == 0
    assert list((tmp_path / "more").glob("*.cubin")) == [], "what is at hand is not compiled again"
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_what_runs_no_cubins_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_day.main(["--compile-only", str(tmp_path), "--target", "emulated:sm_90a"])
    assert "expected an architecture such as sm_90a" in capsys.readouterr().err
