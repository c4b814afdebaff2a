"""Stages ask for what tells most first, keep every answer, and stop when their time is over."""

import pytest

from quantplan.bench import runs, stages
from quantplan.bench.problems import FEW, ROWS, row
from quantplan.verify.runner import sample
from tests.bench.days import MACHINE, over, soon


def test_the_machine_names_the_file_and_says_what_has_no_kernel(make):
    day = make(lambda task: MACHINE if task["do"] == "machine" else {"absent": "no torch"})
    day.run.data["machine"] = {}
    assert stages.machine(day, soon())
    assert day.run.path.name.startswith("gpu-abacus-9000-")
    assert "  no kernel: fp8_gemm mx: reference: runs on cpu only" in make.said
    assert set(day.run.data["roofs"]) == set(stages.ROOFS)
    assert [r.name for r in day.rows] == [r.name for r in ROWS if r.rate is None]


def test_a_machine_that_does_not_answer_fails_the_stage(make):
    with pytest.raises(RuntimeError, match="no driver"):
        stages.machine(make(lambda task: {"error": "no driver"}), soon())


def test_only_the_ops_that_are_asked_for_are_measured(make):
    day = make(lambda task: {}, ops=("dequantize", "quantize s8 token"))
    assert [r.name for r in day.rows] == ["quantize s8 token", "dequantize s8 token"]


def test_guarantees_come_from_every_op_and_whatever_two_parts_meet_is_attacked(make):
    day = make(lambda task: {"plans": [], "problems": []}, ops=("quantize", "dequantize"))
    assert stages.guarantees(day, soon())
    asked = [(task["op"], number) for task in day.asked for number in task["numbers"]]
    wanted = [subject for op in ("quantize", "dequantize") for subject in sample(op, day.arch, 2)]
    assert len(asked) == len(set(asked)) >= len(wanted)
    place = {desc: number for number, desc in enumerate(stages.PLANS["quantize"].catalogue())}
    assert {("quantize", place[s.desc]) for s in sample("quantize", day.arch, 2)} <= set(asked)
    assert {task["op"] for task in day.asked[:2]} == {"quantize", "dequantize"}


def test_a_task_of_guarantees_is_about_one_variant(make):
    day = make(lambda task: {"plans": [], "problems": []}, ops=("fp8_gemm",), smoke=True)
    assert stages.guarantees(day, soon())
    variants = {kernel for kernel in runs.kernels() if kernel.startswith("fp8_gemm.")}
    supported = {f"fp8_gemm.{subject.variant.name}" for subject in sample("fp8_gemm", day.arch, 1)}
    assert {f"{task['op']}.{task['variant']}" for task in day.asked} == supported <= variants
    assert max(len(task["numbers"]) for task in day.asked) <= 4


def test_a_smoke_needs_few(make):
    day = make(lambda task: {"plans": [], "problems": []}, smoke=True)
    day.run.data["machine"] = MACHINE
    for stage in (stages.guarantees, stages.exercises, stages.benchmarks):
        assert stage(day, soon())
    assert {task["shape"] for task in day.asked if task["do"] != "guarantee"} == {"small"}
    assert len(day.asked) < 160


def test_every_answer_is_kept_and_asked_for_once(make):
    day = make(lambda task: {"us": {}}, ops=("dequantize",))
    assert stages.benchmarks(day, soon())
    count = len(day.asked)
    assert count == len(day.run.data["points"]) == 14 * len(row("dequantize s8 token").shapes)
    assert stages.benchmarks(day, soon())
    assert len(day.asked) == count, "a run that goes on asks for nothing twice"


def test_every_variant_is_timed_where_it_tells_most(make):
    day = make(lambda task: {"us": {}}, ops=("dequantize",))
    stages.benchmarks(day, soon())
    asked = {(task["shape"], task["m"]) for task in day.asked if task.get("every_variant")}
    assert asked == {(row("dequantize s8 token").shapes[0].label, m) for m in FEW}


def test_time_that_is_over_cuts_a_stage(make):
    day = make(lambda task: {})
    assert not stages.benchmarks(day, over())
    assert day.asked == []


def test_an_error_is_kept_and_said(make):
    day = make(lambda task: {"error": "crashed: exit code 7"}, ops=("dequantize",), smoke=True)
    assert stages.benchmarks(day, soon())
    assert make.said[0] == "  points: dequantize s8 token | small | 1: crashed: exit code 7"
    assert all(answer["error"] for answer in day.run.data["points"].values())


def test_a_stage_that_goes_on_says_so(make, monkeypatch):
    monkeypatch.setattr(stages, "_PROGRESS_S", 0.0)
    day = make(lambda task: {"us": {}}, ops=("dequantize",), smoke=True)
    stages.benchmarks(day, soon())
    assert make.said[0].startswith("  points: 1 done, the last one dequantize s8 token | small | 1; ")


def test_the_clocks_are_read_while_the_gpu_is_warm(make, monkeypatch):
    asked = []
    monkeypatch.setattr(stages, "clocks", lambda index: asked.append(index) or {"clocks.sm": "1980 MHz"})
    day = make(lambda task: {"us": {}}, ops=("dequantize",), target="cuda:1", smoke=True)
    stages.benchmarks(day, soon())
    assert asked == [1]
    assert day.run.data["machine"]["clocks after benchmarks"] == {"clocks.sm": "1980 MHz"}


# ---- kernels that take processes along, and the order


def test_a_kernel_that_has_taken_two_processes_along_is_left_alone(make):
    sku = "dequantize.elementwise.bf16.s8"

    def answer(task):
        if task.get("skip"):
            return {"not run": "dequantize.elementwise: it has taken processes along before"}
        return {"error": f"{sku}: hung: no answer within 25 s", "lost": True, "at": sku}

    day = make(answer, ops=("dequantize",))
    assert stages.benchmarks(day, soon())
    assert [task.get("skip") for task in day.asked[:3]] == [None, None, ["dequantize.elementwise"]]
    assert sum("error" in found for found in day.run.data["points"].values()) == 2
    assert any("not run: dequantize.elementwise" in line for line in make.said)
    assert day.exercise(row("dequantize s8 token"), row("dequantize s8 token").small, 1)["skip"] == day.struck


def test_what_a_kernel_did_stands_when_a_run_goes_on(make):
    sku = "dequantize.elementwise.bf16.s8"
    lost = {"error": f"{sku}: hung: no answer within 25 s", "lost": True, "at": sku}
    day = make(lambda task: {"not run": "it hung"}, ops=("dequantize",))
    keys = [f"dequantize s8 token | 8192 | {m}" for m in FEW[:2]]
    day.run.data["points"] |= dict.fromkeys(keys, lost)
    assert stages.benchmarks(day, soon())
    assert all(task["skip"] == ["dequantize.elementwise"] for task in day.asked)
    assert [day.run.data["points"][key] for key in keys] == [{**lost, "not run": "it hung"}] * 2


def test_what_has_no_rows_is_compared_once(make):
    day = make(lambda task: {"skus": [], "wrong": {}}, ops=("repack_marlin", "quantize s8 static"))
    assert stages.exercises(day, soon())
    asked = [task["row"] for task in day.asked]
    assert asked.count("repack_marlin awq") == 1
    assert asked.count("quantize s8 static") == 3


def test_ops_that_no_result_knows_come_first(make):
    ranks = dict.fromkeys(runs.kernels(), 2) | {"fp8_gemm.mma-16x32": 0, "norm_quantize.row": 1}
    day = make(lambda task: {"us": {}}, ranks=ranks)
    rows = [r.name for r in day.rows]
    assert rows[:4] == ["fp8_gemm tensor", "fp8_gemm token_channel", "fp8_gemm block", "fp8_gemm mx"]
    assert rows[4].startswith("norm_quantize")
    assert rows[-1].startswith("repack_marlin")


def test_what_is_bounded_is_compared_where_a_cpu_can_follow(make):
    day = make(lambda task: {"skus": [], "wrong": {}})
    assert stages.exercises(day, soon())
    shapes = {task["row"]: task["shape"] for task in day.asked}
    assert shapes["int4_marlin_gemm"] == shapes["fp8_gemm mx"] == "512 × 4096"
    assert shapes["quantized_linear int8"] == "8192 × 8192"


# ---- compiling


def test_compiling_is_another_process_that_ends_with_its_time(make, monkeypatch, tmp_path):
    monkeypatch.setattr(stages.sys, "executable", str(tmp_path / "python"))
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$@"\nsleep 60\n', encoding="utf-8")
    script.chmod(0o755)
    day = make(lambda task: {}, ops=("quantize",))
    assert not stages.compiled(day, soon(1.0))
    told = day.log.read_text(encoding="utf-8")
    assert "-m quantplan.bench.gpu_day --compile-only" in told
    assert "--target sm_90a" in told
    assert told.rstrip().endswith("--ops quantize")
    script.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    assert stages.compiled(day, soon(30.0))


def test_shares_make_a_whole_and_correctness_comes_before_time():
    assert sum(stage.share for stage in stages.STAGES) == pytest.approx(1.0)
    names = [stage.name for stage in stages.STAGES]
    assert names.index("tests") < names.index("guarantees") < names.index("benchmarks")
