"""Large, odd and borrowed memory: offsets beyond 32 bits, many rows, workspaces, and operands that stay untouched."""

import mmap
import re

import numpy as np
import pytest

import quantplan as qp
from quantplan.emulator.schedule import schedule
from quantplan.kernels import source_root
from quantplan.ops import _crossing_kernels as crossing
from quantplan.ops import _quantize_kernels as host
from quantplan.plan import plan_type

TARGET = "emulated:sm_90a"
PAGE = mmap.PAGESIZE


def sparse(rows, columns, pitch, dtype):
    """Return a matrix whose rows lie `pitch` elements apart, in memory that only exists where it is touched."""
    size = np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, ((rows - 1) * pitch + columns) * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    flat = np.frombuffer(memory, dtype)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (pitch * size, size))


class TestBeyond32Bits:
    """Row times pitch exceeds 2³¹ elements, and 2³² bytes."""

    PITCH = 720_000_000

    @pytest.mark.parametrize(
        "scope, variant",
        [
            *(("tensor", variant) for variant in ("within_cluster", "whole_tensor")),
            *((scope, None) for scope in ("token", "channel:1", "group:32", "group:2:0")),
        ],
    )
    def test_dynamic_quantize(self, twin, scope, variant):
        x, q = sparse(7, 96, self.PITCH, np.float32), sparse(7, 96, self.PITCH, np.int8)
        assert 6 * self.PITCH > 2**32
        desc = qp.DynamicRangeQuantizeDescriptor(m=7, k=96, scope=scope)
        arrays = twin.lab.operands(desc)
        x[...] = arrays["x"]
        expected = twin.run("cpu", desc, {name: array.copy() for name, array in arrays.items()})
        got = twin.run(TARGET, desc, arrays | {"x": x, "q": q}, variant, checked=False)
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)

    def test_dequantize(self, twin):
        q, output = sparse(7, 96, self.PITCH, np.int8), sparse(7, 96, self.PITCH, np.float32)
        desc = qp.DequantizeDescriptor(m=7, k=96, scope="token")
        arrays = twin.lab.operands(desc)
        q[...] = arrays["q"]
        expected = twin.run("cpu", desc, {name: array.copy() for name, array in arrays.items()})
        twin.run(TARGET, desc, arrays | {"q": q, "output": output}, checked=False)
        np.testing.assert_array_equal(output, expected["output"])


@pytest.mark.parametrize("scope", ["token", "tensor", "channel:1", "group:2", "group:4:0"])
def test_more_rows_than_a_grid_has_in_y(twin, scope):
    """Rows go in grid.x."""
    desc = qp.DynamicRangeQuantizeDescriptor(m=70_000, k=4, scope=scope)
    twin.check(desc, checked=False)


class TestWorkspace:
    DESC = qp.DynamicRangeQuantizeDescriptor(m=300, k=40, scope="tensor")
    TARGET = "emulated:sm_80"  # which has no clusters: parts' ranges go through memory

    def test_one_byte_short_is_refused(self, twin):
        plan = qp.DynamicRangeQuantizePlan.select(self.TARGET, self.DESC)
        args = twin.lab.args(self.DESC, twin.lab.operands(self.DESC))
        short = qp.Workspace.allocate(plan.workspace_size - 1, self.TARGET)
        with pytest.raises(qp.WorkspaceTooSmall):
            plan.run(None, short, args)
        with pytest.raises(qp.WorkspaceTooSmall):
            plan.run(None, None, args)

    def test_nothing_is_written_behind_it(self, twin):
        plan = qp.DynamicRangeQuantizePlan.select(self.TARGET, self.DESC)
        memory = qp.Workspace.allocate(plan.workspace_size + 256, self.TARGET).numpy()
        memory[...] = 0x5A
        exact = qp.Workspace.from_buffer(memory[: plan.workspace_size])
        plan.run(None, exact, twin.lab.args(self.DESC, twin.lab.operands(self.DESC)))
        assert set(memory[plan.workspace_size :].tolist()) == {0x5A}

    @pytest.mark.parametrize("dirt", [0x00, 0xFF, 0x7F])
    def test_what_lies_in_it_does_not_matter(self, twin, dirt):
        """Nobody clears it, and the last launch may have been another op's."""
        plan = qp.DynamicRangeQuantizePlan.select(self.TARGET, self.DESC)
        arrays = twin.lab.operands(self.DESC)
        expected = twin.run("cpu", self.DESC, {name: array.copy() for name, array in arrays.items()})
        workspace = qp.Workspace.allocate(plan.workspace_size, self.TARGET)
        workspace.numpy()[...] = dirt
        plan.run(None, workspace, twin.lab.args(self.DESC, arrays))
        np.testing.assert_array_equal(arrays["scale"], expected["scale"])


@pytest.mark.parametrize("scope", ["token", "group:16"])
def test_a_rows_bits_depend_on_that_row_alone(twin, scope):
    """Not on M, not on its position, not on other rows."""
    desc = qp.DynamicRangeQuantizeDescriptor(m=300, k=1100, input_element="bf16", scope=scope)
    arrays = twin.lab.operands(desc)
    twin.run(TARGET, desc, arrays, checked=False)
    for row in (0, 7, 299):
        alone, part = twin.lab.row(desc, arrays, row)
        expected = {name: part[name].copy() for name in ("q", "scale")}
        part["q"][...], part["scale"][...] = 0, 0
        got = twin.run(TARGET, alone, part)
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)


def test_operands_that_are_only_read_stay_as_they_are(twin):
    for desc in (
        qp.QuantizeDescriptor(m=5, k=70, scope="channel:1", mode="asymmetric"),
        qp.DequantizeDescriptor(m=5, k=70, scope="group:32"),
        qp.DynamicRangeQuantizeDescriptor(m=5, k=70, scope="tensor"),
    ):
        arrays = twin.lab.operands(desc)
        before = {name: array.copy() for name, array in arrays.items()}
        twin.run(TARGET, desc, arrays)
        written = {operand.name for operand in plan_type(desc).operands(desc) if operand.output}
        for name in arrays.keys() - written:
            np.testing.assert_array_equal(arrays[name], before[name])


def test_a_plan_of_an_architecture_does_not_run(twin):
    desc = qp.DynamicRangeQuantizeDescriptor(m=2, k=8)
    plan = qp.DynamicRangeQuantizePlan.select("sm_90a", desc)
    assert plan.sku.backend is qp.BackendKind.BESPOKE
    with pytest.raises(qp.Unsupported, match="architecture"):
        plan.run(None, None, twin.lab.args(desc, twin.lab.operands(desc)))


def test_launches_of_a_bound_plan_follow_the_schedule_of_the_moment(twin):
    desc = qp.DynamicRangeQuantizeDescriptor(m=2, k=8)
    arrays = twin.lab.operands(desc)
    bound = qp.DynamicRangeQuantizePlan.select(TARGET, desc).bind(None, twin.lab.args(desc, arrays))
    bound.run(None)
    first = arrays["q"].copy()
    arrays["x"] *= 2
    with schedule(checked=False, order="random", seed=5):
        bound.run(None)
    np.testing.assert_array_equal(arrays["q"], first)  # twice the values, twice the scale


C_TYPES = {"P": {"const void*", "void*", "const int*", "int*"}, "q": {"int64"}, "d": {"double"}, "i": {"int"}}


@pytest.mark.parametrize(
    "params",
    [value for name, value in (vars(host) | vars(crossing)).items() if name.endswith("_PARAMS")],
    ids=lambda params: params.name,
)
def test_parameter_structs_are_those_of_the_sources(params):
    """The host packs what the kernel declares: the same names, in the same order, of the same types."""
    text = "\n".join(path.read_text() for path in source_root().glob("*.cu"))
    (body,) = re.findall(rf"struct {params.name} {{(.*?)\n}};", text, re.DOTALL)
    declared = []
    for line in re.sub(r"//[^\n]*", "", body).split(";"):
        if match := re.fullmatch(r"\s*((?:const )?\w+\*?)\s+(.*\S)\s*", line, re.DOTALL):
            declared += [(name.strip(), match[1]) for name in match[2].split(",")]
    assert [name for name, _ in declared] == [name for name, _ in params.fields]
    for (name, c_type), (_, letter) in zip(declared, params.fields, strict=True):
        assert c_type in C_TYPES[letter], name
