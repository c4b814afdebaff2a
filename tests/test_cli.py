"""The command line: tables and JSON, exit codes, and errors of one line."""

import importlib.abc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan import cli, verify
from quantplan.bench import gpu_day
from quantplan.bench.runs import Run
from quantplan.ops import PLANS
from tests.bench import synthetic
from tests.formats.files import CASES, PREFIX, named, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SHAPE = ["--m", "16", "--n", "4096", "--k", "4096"]
LINEAR = ["explain", "smoothquant_linear", *SHAPE, "--output", "f16"]


@pytest.fixture
def quantplan(capsys):
    """Run a command in this process; return its exit code, output and errors."""

    def run(*args):
        try:
            code = cli.main([str(arg) for arg in args])
        except SystemExit as stop:  # argparse leaves so
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def report(monkeypatch):
    """Replace the verification by one that reports what the test wants."""
    asked = []

    def install(*plans, problems=(), coverage=()):
        def fake(target="cpu", op=None, *, strength):
            asked.append((target, op, strength))
            return verify.VerifyReport(target=str(target), plans=plans, problems=problems, coverage=coverage)

        monkeypatch.setattr(verify, "verify", fake)
        return asked

    return install


def process(*args, **options):
    """Run ``python -m quantplan`` in a fresh interpreter, with its output in a pipe."""
    settings = {"cwd": ROOT, "capture_output": True, "text": True, "encoding": "utf-8", "timeout": 60} | options
    environment = {"PYTHONIOENCODING": "utf-8"} | settings.pop("env", {})
    command = [sys.executable, "-m", "quantplan", *args]
    return subprocess.run(command, env={**os.environ, **environment}, check=False, **settings)


def one_line(err):
    """Whether an error is one line that says who speaks."""
    return err.startswith("quantplan") and err.endswith("\n") and err.count("\n") == 1


# ---- explain


def test_explain_exits_0_and_names_the_sku_where_a_variant_runs(quantplan):
    code, out, err = quantplan(*LINEAR)
    assert (code, err) == (0, "")
    assert out.startswith("smoothquant_linear on cpu: smoothquant_linear.reference.s8.f16.identity (REFERENCE)\n")
    assert "bit-identical, deterministic, batch-invariant; accumulates in s32" in out


def test_explain_exits_3_and_names_the_reasons_where_none_does(quantplan):
    code, out, err = quantplan(*LINEAR, "--target", "sm_75")
    assert (code, err) == (3, "")
    assert "smoothquant_linear on sm_75: unsupported" in out
    assert "runs on cpu only, and the target is sm_75" in out
    assert "needs sm_80, and the target is sm_75" in out


def test_explain_as_json(quantplan):
    code, out, err = quantplan(*LINEAR, "--target", "sm_75", "--json")
    data = json.loads(out)
    assert (code, err) == (3, "")
    assert data.keys() >= {"schema", "target", "op", "descriptor", "sku", "variants"}
    assert (data["schema"], data["target"], data["op"], data["sku"]) == (1, "sm_75", "smoothquant_linear", None)
    assert data["descriptor"]["k"] == 4096
    assert data["descriptor"]["output_element"] == "f16"
    assert data["variants"]
    for variant in data["variants"]:
        assert variant.keys() >= {"name", "supported", "reason"}
        assert (variant["supported"], bool(variant["reason"])) == (False, True)


def test_explain_as_json_names_the_sku(quantplan):
    code, out, _ = quantplan(*LINEAR, "--json")
    data = json.loads(out)
    assert code == 0
    assert data["sku"]["name"] == "smoothquant_linear.reference.s8.f16.identity"
    assert data["sku"]["precision_guarantee"]["batch_invariant"] is True
    assert [v["name"] for v in data["variants"] if v["supported"]] == ["reference"]


def test_what_explain_prints_as_json_is_a_record_again(quantplan):
    _, out, _ = quantplan(*LINEAR, "--json")
    desc = qp.SmoothQuantLinearDescriptor(m=16, n=4096, k=4096, output_element="f16")
    assert qp.Record.from_dict(json.loads(out)) == qp.explain("cpu", desc)


@pytest.mark.parametrize("op", PLANS)
def test_every_field_of_every_descriptor_has_a_flag(quantplan, op):
    """Each flag is set to what the field already holds, so that it must be accepted."""
    kind = PLANS[op]
    shape = {a.name: 16 for a in attrs.fields(kind.descriptor_type) if a.default is attrs.NOTHING}
    desc = kind.descriptor_type(**shape)
    flags = []
    for field in attrs.fields(kind.descriptor_type):
        value, flag = getattr(desc, field.name), field.name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags.append(f"--{flag}={getattr(value, 'value', value)}")
    code, out, err = quantplan("explain", op, *flags, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["descriptor"] == json.loads(json.dumps(desc.to_dict()))


@pytest.mark.parametrize(
    "flags, fields",
    [
        (["--input", "f64", "--output=u8", "--mode", "asymmetric"], {"output_element": "u8", "mode": "asymmetric"}),
        (["--scale", "0.5"], {"scale": 0.5}),
        (["--scale=2"], {"scale": 2.0}),
        (["--output", "fp8_e4m3", "--scale-element", "e8m0", "--scope", "group:32"], {"scale_element": "e8m0"}),
        (["--output", "fp8_e4m3", "--no-saturate"], {"saturate": False}),
        (["--q-min", "-5", "--q-max=6"], {"q_min": -5, "q_max": 6}),
        (["--mode", "asymmetric", "--zero-point", "-3", "--scale", "1e-3"], {"zero_point": -3, "scale": 0.001}),
    ],
)
def test_flags_of_quantize(quantplan, flags, fields):
    code, out, err = quantplan("explain", "quantize", "--m", 4, "--k", 32, *flags, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["descriptor"].items() >= fields.items()


def test_flags_of_the_linears(quantplan):
    flags = ["--act", "u8", "--act-scale", "0.02", "--act-zero-point", 128, "--bias", "--epilogue", "gelu_erf"]
    code, out, err = quantplan("explain", "smoothquant_linear", *SHAPE, *flags, "--weight-scope", "tensor", "--json")
    assert (code, err) == (0, "")
    expected = {"act_element": "u8", "act_scale": 0.02, "act_zero_point": 128, "bias": True, "epilogue": "gelu_erf"}
    assert json.loads(out)["descriptor"].items() >= expected.items()
    code, out, _ = quantplan("explain", "quantized_linear", *SHAPE, "--act-zero-point", "--json")
    assert (code, json.loads(out)["descriptor"]["act_zero_point"]) == (0, True)


def test_json_may_stand_before_or_after_the_op(quantplan):
    assert quantplan("explain", "--json", *LINEAR[1:]) == quantplan(*LINEAR, "--json")


def test_a_sum_that_could_overflow_is_unsupported(quantplan):
    """The reason is the op's, on any target."""
    code, out, _ = quantplan("explain", "smoothquant_linear", "--m", 1, "--n", 1, "--k", 131072)
    assert code == 3
    assert "K ≤ 131071 is exact" in out


# ---- errors


@pytest.mark.parametrize(
    "args, words",
    [
        ((), "COMMAND"),
        (("prove",), "invalid choice: 'prove'"),
        (("doctor", "--verbose"), "--verbose"),
        (("explain",), "OP"),
        (("explain", "linear"), "invalid choice: 'linear'"),
        (("explain", "quantize", "--k", "4"), "--m"),
        (("explain", "quantize", "--m", "4", "--k"), "--k"),
        (("explain", "quantize", "--m", "-1", "--k", "4"), "m: expected an integer in [0, 2**31), got -1"),
        (("explain", "quantize", "--m", "1.5", "--k", "4"), "m: expected an integer, got 1.5"),
        (("explain", "quantize", "--m", "many", "--k", "4"), "m: expected an integer, got 'many'"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--n", "4"), "--n: m is given twice"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--h", "4"), "--h"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--out", "s8"), "--out"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--output", "f99"), "output_element"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--output", "f32"), "output_element: expected one of s8"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--mode", "odd"), "mode: expected one of symmetric"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--scope", "rows"), "scope: expected tensor, token"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--scale", "nan"), "scale: expected a finite f32"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--scale", "9" * 400), "scale: expected"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--scale", "-1e-3"), "scale: expected a finite f32 above 0"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--scale", "-inf"), "scale: expected a finite f32 above 0"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--scale", "-.5E+2"), "scale: expected a finite f32 above 0"),
        (("explain", "quantize", "--m", "1", "--k", "4", "--target", "sm_1"), "target: expected 'cpu'"),
        (("explain", "smoothquant_linear", *SHAPE, "--epilogue", "tanh"), "epilogue: expected one of identity"),
        (("explain", "smoothquant_linear", *SHAPE, "--output-scale", "1"), "output_scale: expected None"),
        (("plans", "--target", "gpu"), "target: expected 'cpu'"),
        (("plans", "--op", "linear"), "invalid choice: 'linear'"),
        (("verify", "--op", "linear"), "invalid choice: 'linear'"),
        (("verify", "--target", "gpu"), "target: expected 'cpu'"),
    ],
)
def test_a_request_that_makes_no_sense_is_one_clear_line_and_exit_code_2(quantplan, args, words):
    code, out, err = quantplan(*args)
    assert (code, out) == (2, "")
    assert one_line(err), err
    assert words in err


@pytest.mark.parametrize("command", [["plans"], ["verify"], LINEAR])
def test_a_gpu_without_a_driver_is_one_line_with_a_hint(quantplan, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "cuda", None)
    code, out, err = quantplan(*command, "--target", "cuda:0")
    assert (code, out) == (2, "")
    assert one_line(err), err
    assert "quantplan[cuda13]" in err


@pytest.fixture
def without_rich(monkeypatch):
    """Pretend that rich is not installed."""

    class Missing(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "rich":
                raise ModuleNotFoundError("No module named 'rich'", name="rich")

    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])


@pytest.mark.parametrize("command", [["doctor"], ["plans", "--op", "repack_marlin"], LINEAR])
def test_without_rich_tables_come_with_a_hint_and_json_works(quantplan, without_rich, command):
    code, out, err = quantplan(*command)
    assert (code, err) == (2, "quantplan: rich is missing: pip install 'quantplan[cli]', or use --json\n")
    assert out == "", "an answer that breaks off half-way looks like one"
    code, out, err = quantplan(*command, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["schema"] == 1


def test_help_and_version(quantplan):
    assert quantplan("--version") == (0, f"{qp.__version__}\n", "")
    code, out, _ = quantplan("--help")
    assert code == 0
    assert all(command in out for command in ("doctor", "plans", "explain", "verify"))
    code, out, _ = quantplan("explain", "quantize", "--help")
    assert code == 0
    assert all(flag in out for flag in ("--m", "--output-element", "--zero-point", "--target", "--json"))


# ---- doctor and plans


def test_doctor_prints_remedies_as_they_are_typed(quantplan, monkeypatch):
    """To rich the brackets of ``quantplan[cuda13]`` are markup."""
    monkeypatch.setitem(sys.modules, "cuda", None)
    code, out, err = quantplan("doctor")
    assert (code, err) == (0, "")
    assert "pip install 'quantplan[cuda13]'" in out
    assert qp.__version__ in out


def test_doctor_as_json(quantplan):
    code, out, err = quantplan("doctor", "--json")
    data = json.loads(out)
    assert (code, err, data["schema"]) == (0, "", 1)
    assert [row["name"] for row in data["findings"]] == [row.name for row in qp.doctor()]
    assert all(row.keys() >= {"name", "found", "detail", "remedy", "needed_for"} for row in data["findings"])


@pytest.mark.untraced
@pytest.mark.parametrize("target", ["cpu", "sm_90a"])
@pytest.mark.parametrize("op", ["dynamic_range_quantize", pytest.param(None, marks=pytest.mark.slow)])
def test_plans_prints_every_sku_on_a_line_of_its_own(quantplan, target, op):
    """In a file or pipe nothing is cut off or folded."""
    code, out, err = quantplan("plans", "--target", target, *(("--op", op) if op else ()))
    assert (code, err) == (0, "")
    lines = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    cells = {parts[1].strip(): [part.strip() for part in parts[2:]] for parts in lines}
    rows = qp.plans(target, op)
    assert cells.keys() == {row.sku.name for row in rows}
    for row in rows:
        supported, guarantee = cells[row.sku.name][:2]
        assert supported == (row.reason or "yes")
        assert guarantee == cli.guarantee_text(row.sku.precision_guarantee)


def test_plans_as_json(quantplan):
    code, out, err = quantplan("plans", "--op", "quantize", "--target", "sm_121", "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert (data["schema"], data["target"]) == (1, "sm_121")
    assert [plan["sku"]["name"] for plan in data["plans"]] == [row.sku.name for row in qp.plans("cpu", "quantize")]
    for plan in data["plans"]:
        assert plan["supported"] == (plan["sku"]["backend"] == "bespoke")
        assert bool(plan["reason"]) != plan["supported"]


@pytest.fixture
def two_problems(monkeypatch):
    """Ask about two problems only, one of them of two launches: compiling every SKU takes minutes."""
    asked = []

    def few(op, **extents):
        asked.append((op, extents))
        for scope in ("token", "tensor"):
            yield qp.DynamicRangeQuantizeDescriptor(m=extents["m"], k=extents["k"], input_element="f16", scope=scope)

    monkeypatch.setattr(cli, "problems", few)
    return asked


def test_resources_prints_every_launch_on_a_line_of_its_own(quantplan, two_problems):
    code, out, err = quantplan("plans", "--resources", "--target", "sm_90a", "--m", 2048, "--k", "1024")
    assert (code, err) == (0, "")
    assert two_problems == [(None, {"m": 2048, "n": 4096, "k": 1024})]
    title, *lines = out.splitlines()
    assert title.rstrip() == "kernels of 2 SKUs on sm_90a; m, n, k: 2048, 4096, 1024"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[1] for row in rows] == ["aligned", "others"] + ["aligned"] * 2 + ["others"] * 2
    assert [row[3].partition("<")[0] for row in rows[2:4]] == ["ranges", "quantize_joined"]
    sku, _, traffic, kernel, registers, shared, spilled, blocks, loads, instructions = rows[0]
    assert sku == "dynamic_range_quantize.within_rows.f16.s8.f32.token.symmetric"
    assert (traffic, shared, spilled) == ("1.00", "0 + 0", "0, 0, 0")
    assert kernel.startswith("quantize_segments<f16, s8, f32, false, true, 8,")
    assert 16 <= int(registers) <= 64
    assert re.fullmatch(r"\d+ × 256 \(\d+%\)", blocks)
    assert re.fullmatch(r"\d × 16 B, \d+ KB", loads)
    assert "LDG.128.CONSTANT" in instructions
    assert "STG.64" in instructions


def test_resources_as_json(quantplan, two_problems):
    code, out, err = quantplan("plans", "--resources", "--target", "sm_80", "--op", "dynamic_range_quantize", "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert two_problems[0][0] == "dynamic_range_quantize"
    assert (data["schema"], data["target"]) == (1, "sm_80")
    assert [len(row["kernels"]) for row in data["resources"]] == [1, 1, 2, 2]
    first = data["resources"][0]
    assert first["descriptor"]["m"] == first["descriptor"]["k"] == 4096
    assert first["bytes_moved"] == first["bytes_least"] == 4096 * 4096 * 3 + 4096 * 4
    assert first["kernels"][0]["code"]["spill_store_bytes"] == 0
    assert first["kernels"][0]["occupancy"]["limit"] == "registers"


def test_resources_of_what_has_no_architecture_are_one_line_of_error(quantplan):
    code, out, err = quantplan("plans", "--resources")
    assert (code, out) == (2, "")
    assert one_line(err)
    assert "expected an architecture such as sm_90a, got cpu" in err


def test_a_guarantee_in_words():
    relu = qp.SmoothQuantLinearPlan.select("cpu", qp.SmoothQuantLinearDescriptor(m=1, n=1, k=1, epilogue="silu"))
    assert cli.guarantee_text(relu.precision_guarantee) == (
        "bounded error, deterministic, batch-invariant; accumulates in s32"
    )
    tensor = qp.DynamicRangeQuantizeDescriptor(m=1, k=1, scope="tensor")
    tensor = qp.DynamicRangeQuantizePlan.select("cpu", tensor)
    assert cli.guarantee_text(tensor.precision_guarantee) == "bit-identical, deterministic; accumulates in f32"


# ---- verify

HELD = {"op": "quantize", "sku": "quantize.reference.x", "backend": "reference", "cases": 9, "mismatches": 0}


def test_verify_exits_0_where_every_guarantee_holds(quantplan, report):
    asked = report(verify.PlanReport(**HELD, worst_fraction=None), verify.PlanReport(**HELD, worst_fraction=0.5))
    code, out, err = quantplan("verify", "--op", "quantize")
    assert (code, err) == (0, "")
    assert "every guarantee holds" in out
    assert "0.500" in out
    assert asked == [("cpu", "quantize", verify.STRENGTH)]


def test_verify_says_how_much_it_attacked(quantplan, report):
    share = verify.Coverage(op="quantize", skus=324, attacked=131, rule="by some rule")
    asked = report(verify.PlanReport(**HELD, worst_fraction=None), coverage=(share,))
    _, out, _ = quantplan("verify", "--all")
    assert "quantize: 131 of 324 SKUs attacked, by some rule" in out
    assert "every attacked guarantee holds" in out
    assert asked == [("cpu", None, None)]
    assert json.loads(quantplan("verify", "--json")[1])["coverage"] == [attrs.asdict(share)]


def test_verify_exits_1_and_says_what_is_wrong_where_one_does_not(quantplan, report):
    problem = "quantize.reference.x: 3 mismatches [of 9]"
    report(verify.PlanReport(**HELD | {"mismatches": 3}, worst_fraction=None), problems=(problem,))
    code, out, err = quantplan("verify")
    assert (code, err) == (1, "")
    assert problem in out
    assert "every guarantee holds" not in out


def test_verify_as_json(quantplan, report):
    report(verify.PlanReport(**HELD, worst_fraction=0.5), problems=("too loose",))
    code, out, _ = quantplan("verify", "--json")
    data = json.loads(out)
    assert code == 1
    assert (data["schema"], data["target"], data["ok"], data["problems"]) == (2, "cpu", False, ["too loose"])
    assert data["plans"] == [HELD | {"worst_fraction": 0.5}]


def test_verify_refuses_a_target_where_nothing_can_run(quantplan):
    """An architecture without a device verifies nothing: that is no success."""
    code, out, err = quantplan("verify", "--target", "sm_90a", "--json")
    assert (code, out) == (2, "")
    assert one_line(err), err
    assert "sm_90a" in err


# ---- as a process


def test_python_m_quantplan_explains_and_exits_3():
    done = process(*LINEAR, "--target", "sm_75")
    assert (done.returncode, done.stderr) == (3, "")
    assert "runs on cpu only, and the target is sm_75" in done.stdout


def test_python_m_quantplan_plans_in_a_pipe_is_not_cut_off():
    """Whatever the width that a terminal had."""
    done = process("plans", "--op", "dynamic_range_quantize", env={"COLUMNS": "40", "TERM": "xterm-256color"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "…" not in done.stdout
    assert all(row.sku.name in done.stdout for row in qp.plans("cpu", "dynamic_range_quantize"))


def test_python_m_quantplan_refuses_with_one_line_and_exits_2():
    done = process("plans", "--target", "gpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert one_line(done.stderr), done.stderr


@pytest.fixture
def nobody_reads():
    """Write end of a pipe whose reader is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [("doctor",), ("doctor", "--json"), ("plans", "--json", "--op", "quantize")])
def test_a_reader_that_goes_away_is_no_error(nobody_reads, args, unbuffered):
    """``quantplan plans | head`` ends without a traceback, for tables as for JSON, whatever fits in the buffer."""
    options = {"capture_output": False, "stdout": nobody_reads, "stderr": subprocess.PIPE}
    done = process(*args, env={"PYTHONUNBUFFERED": unbuffered}, **options)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("args", [("plans", "--op", "quantize"), ("doctor", "--json")])
def test_an_answer_that_cannot_be_written_is_one_line_and_exit_code_2(args):
    with Path("/dev/full").open("w") as full:
        done = process(*args, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, "quantplan: standard output: No space left on device\n")


def test_a_broken_guarantee_is_not_lost_with_the_reader(nobody_reads):
    """``quantplan verify --json | head -1`` under pipefail must not say that all is well."""
    code = (
        "import sys; from quantplan import cli, verify\n"
        "verify.verify = lambda **asked: verify.VerifyReport(target='cpu', plans=(), problems=('broken',))\n"
        "sys.exit(cli.main(['verify', '--json']))\n"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=nobody_reads, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("args", [("explain", "smoothquant_linear", "--m", "1", "--n", "1", "--k", "200000"), LINEAR])
def test_output_that_cannot_show_a_sign_is_no_crash(args, encoding):
    """On Windows a pipe speaks cp1252, which has no ≤."""
    done = process(*args, env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}, encoding=encoding)
    assert done.stderr == ""
    assert done.returncode == (3 if "200000" in args else 0)


def test_explain_takes_preferences(quantplan):
    """FAST is reached through a preference: explain shows that selection too."""
    sizes = ["--m", "1", "--n", "8", "--k", "64"]
    code, out, _ = quantplan("explain", "fp8_gemm", *sizes, "--accumulation", "fast", "--json")
    assert code == 0
    assert json.loads(out)["sku"]["name"].startswith("fp8_gemm.reference_fast.")
    code, out, _ = quantplan("explain", "quantize", "--m", "1", "--k", "8", "--backend", "bespoke", "--json")
    assert code == 3
    assert json.loads(out)["variants"][-1]["reason"] == "backend is reference, and bespoke is required"


def test_explain_names_our_own_kernels_for_a_gpu_that_is_not_here(quantplan):
    """Rows and columns of the quantize family have the names n and d too."""
    flags = ["--n", "70000", "--d", "4096", "--input", "bf16", "--output", "s8", "--target", "sm_90a"]
    code, out, err = quantplan("explain", "dynamic_range_quantize", *flags)
    assert (code, err) == (0, "")
    assert "dynamic_range_quantize.within_rows.bf16.s8.f32.token.symmetric (BESPOKE)" in out


def test_warmup_writes_cubins_and_says_where(quantplan, tmp_path):
    pytest.importorskip("cuda.core", reason="compiling for GPUs needs cuda-core, which this environment lacks")
    listed = tmp_path / "plans.json"
    listed.write_text(json.dumps([qp.DequantizeDescriptor(m=2, k=8).to_dict()]))
    flags = ["--target", "sm_90a", "--plans", str(listed), "--out", str(tmp_path / "cubins")]
    code, out, _ = quantplan("warmup", *flags)
    assert code == 0
    assert out.startswith("2 cubins for sm_90a")
    code, out, err = quantplan("warmup", *flags, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert sorted(data["cubins"]) == sorted(map(str, (tmp_path / "cubins").glob("*.cubin")))


# ---- bench


@pytest.fixture
def day(monkeypatch):
    """Replace the GPU day by one that finds what the test wants."""
    asked = []

    def install(**changes):
        def run_day(out, *, say, **options):
            asked.append((out, options))
            say("a line of progress")
            return Run(out / "gpu-some.json", synthetic.run(**changes))

        monkeypatch.setattr(gpu_day, "run_day", run_day)
        return asked

    return install


def test_bench_runs_a_gpu_day_and_ends_with_what_failed(quantplan, day, tmp_path):
    asked = day()
    code, out, err = quantplan("bench", "--out", tmp_path, "--budget", 60, "--only", "tests", "host")
    assert code == 0
    assert err == "a line of progress\n"
    assert out.splitlines()[-1] == f"no failures; result: {tmp_path / 'gpu-some.json'}"
    ((out, options),) = asked
    assert (out, options["budget"], options["only"], options["target"]) == (tmp_path, 60.0, ["tests", "host"], "cuda:0")


def test_bench_fails_where_anything_did(quantplan, day, tmp_path):
    day(roofs={"copy": {"error": "hung"}})
    code, out, _ = quantplan("bench", "--out", tmp_path)
    assert code == 1
    assert "FAILED roofs: copy: hung" in out


def test_bench_writes_a_page(quantplan, day, tmp_path):
    day()
    page = tmp_path / "page.html"
    code, _, _ = quantplan("bench", "--out", tmp_path, "--html", page)
    assert code == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_bench_writes_no_page_of_a_machine_that_did_not_answer(quantplan, day, tmp_path):
    day(machine={}, stages={"machine": {"status": "failed", "reason": "no driver"}})
    code, out, _ = quantplan("bench", "--out", tmp_path, "--html", tmp_path / "page.html")
    assert code == 1
    assert "FAILED machine: no driver" in out
    assert not (tmp_path / "page.html").exists()


def test_bench_prints_its_result_as_json(quantplan, day, tmp_path):
    day()
    _, out, _ = quantplan("bench", "--out", tmp_path, "--json")
    assert json.loads(out)["synthetic"] is True


def test_bench_refuses_a_stage_that_there_is_not(quantplan, tmp_path):
    code, out, err = quantplan("bench", "--out", tmp_path, "--only", "sleep")
    assert (code, out) == (2, "")
    assert one_line(err)
    assert "only: expected one of machine" in err


# ---- inspect and repack


def checkpoint(folder, case, **others):
    _, tensors, config = CASES[case](np.random.default_rng(1))
    return write_checkpoint(folder, named(tensors) | others, config)


@pytest.mark.parametrize("case", CASES)
def test_inspect_and_repack_work_on_every_format(quantplan, tmp_path, case):
    source, target = checkpoint(tmp_path / "source", case), tmp_path / "out.safetensors"
    code, out, err = quantplan("inspect", source)
    assert (code, err) == (0, "")
    assert out.startswith("1 of 1 quantized linears")
    assert f"│ {PREFIX} │ {case.partition(',')[0]}" in out
    code, out, _ = quantplan("repack", source, target)
    assert (code, out[:20]) == (0, "linears repacked: 1;")
    code, out, _ = quantplan("inspect", target)
    assert code == 0
    assert f"│ {PREFIX} │ quantplan" in out
    code, out, _ = quantplan("repack", source, target)
    assert (code, out.strip()[-34:]) == (0, "0 files written, 1 complete before")


def test_inspect_tells_size_groups_order_and_what_else_there_is(quantplan, tmp_path):
    source = checkpoint(tmp_path, "gptq v1, act-order", **{"model.norm.weight": np.ones((2, 3), np.float32)})
    _, out, _ = quantplan("inspect", source)
    cells = ["136 × 40", "32", "its own", "reordered", "f16", "no", "3,764"]
    assert [cell for cell in cells if f"│ {cell}" not in out] == []
    assert "1 other tensors" in out
    assert re.search(r"│ model\.norm\.weight │ F32 +│ 2 × 3 │ 24 +│", out)


def test_inspect_as_json(quantplan, tmp_path):
    source = checkpoint(tmp_path, "awq", **{"norm.weight": np.ones(3, np.float32)})
    code, out, err = quantplan("inspect", source, "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert (data["schema"], data["files"]) == (1, [str(source)])
    (linear,) = data["linears"]
    assert (linear["prefix"], linear["format"], linear["k"], linear["n"], linear["problem"]) == (
        PREFIX,
        "awq",
        132,
        40,
        "",
    )
    assert data["others"] == [{"name": "norm.weight", "dtype": "F32", "shape": [3], "nbytes": 12}]


def test_inspect_exits_1_and_says_why_where_a_linear_cannot_be_read(quantplan, tmp_path):
    source = checkpoint(tmp_path, "awq")
    code, out, err = quantplan("inspect", source, "--config", '{"bits": 3}')
    assert (code, err) == (1, "")
    assert "0 of 1 quantized linears" in out
    assert f"cannot read {PREFIX}: load_linear: {PREFIX}.bits: in {source}: expected 4, got 3" in out
    code, out, _ = quantplan("inspect", source, "--config", '{"bits": 3}', "--json")
    assert (code, json.loads(out)["linears"][0]["problem"][:11]) == (1, "load_linear")


def test_repack_as_json_rounds_scales_when_it_is_asked_to(quantplan, tmp_path):
    source, target = checkpoint(tmp_path / "source", "awq"), tmp_path / "out.safetensors"
    code, out, err = quantplan("repack", source, target, "--scale-element", "bf16", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"schema": 1, "linears": 1, "written": [str(target)], "complete": []}
    _, out, _ = quantplan("inspect", target, "--json")
    assert json.loads(out)["linears"][0]["scale_element"] == "bf16"


@pytest.mark.parametrize(
    "args, words",
    [
        (["inspect", "{}/missing.safetensors"], "path: in .*expected a file, got none"),
        (["inspect", "{}"], "a folder of .safetensors files"),
        (["inspect", "{}/x.safetensors", "--config", "[1]"], r"--config: .*expected a JSON object, got \[1\]"),
        (["inspect", "{}/x.safetensors", "--config", '{{"bits": 4, "bits": 8}}'], "--config: .*each key once"),
        (["inspect", "{}/x.safetensors", "--config", "{{"], "--config: .*expected JSON"),
        (["repack", "{}/source/model.safetensors", "{}/source/model.safetensors"], "a place outside"),
        (["repack", "{}/source", "{}/source/out"], "a place outside"),
        (["repack", "{}/source", "{}/out", "--scale-element", "s8"], "f16, bf16 or f32"),
    ],
)
def test_inspect_and_repack_refuse_in_one_line(quantplan, tmp_path, args, words):
    checkpoint(tmp_path / "source", "awq")
    code, out, err = quantplan(*(arg.format(tmp_path) for arg in args))
    assert (code, out) == (2, "")
    assert one_line(err)
    assert re.search(words, err)


def test_repack_shows_a_bar_on_standard_error(tmp_path):
    source = checkpoint(tmp_path, "awq")
    done = process("repack", str(source), str(tmp_path / "out.safetensors"), env={"FORCE_COLOR": "1", "COLUMNS": "200"})
    assert done.returncode == 0
    assert "repacking" in done.stderr
    assert "repacking" not in done.stdout
