"""What every op promises, on silicon: the same bits always, whatever runs beside, and wherever the operands lie.

The ops are those that the GPU day measures, and each of them has kernels for every GPU.
"""

import numpy as np
import pytest

import quantplan as qp
from quantplan.bench.problems import ROWS, Shape
from quantplan.bench.tasks import differing
from quantplan.plan import plan_type

RUNS = 100
M, SOME = 67, (1, 16, 33)
ODD = (Shape("one", 1, 1), Shape("odd", 17, 33), Shape("no columns", 0, 64), Shape("no products", 130, 0))


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request):
    return request.param


class Problem:
    """A plan with operands of its own on the GPU."""

    def __init__(self, twin, desc, arrays):
        self.plan, self.twin = plan_type(desc).select(twin.target, desc), twin
        self.args, self.copies = twin.send(desc, arrays)
        size = self.plan.workspace_size
        workspace = qp.Workspace.allocate(size, twin.target) if size else None
        self.bound = self.plan.bind(workspace, self.args)
        self.written = [operand for operand in self.plan.operands(desc) if operand.output]

    def run(self, stream):
        """Launch into outputs that hold nothing of an earlier launch."""
        for operand in self.written:
            copy = self.copies[operand.name]
            copy.data.memset_async(0, copy.nbytes, stream)
        self.bound.run(stream)

    def outputs(self, stream):
        """Wait, and return the outputs' bytes."""
        return {operand.name: self.copies[operand.name].get(stream=stream).tobytes() for operand in self.written}


@pytest.fixture
def arrays(row, twin):
    return twin.lab.operands(row.descriptor(M, row.small))


def test_a_hundred_runs_of_every_op_give_the_same_bits(row, arrays, twin):
    problem = Problem(twin, row.descriptor(M, row.small), arrays)
    problem.run(twin.stream)
    first = problem.outputs(twin.stream)
    assert any(any(content) for content in first.values()), "nothing was written"
    for _ in range(RUNS):
        problem.run(twin.stream)
        assert problem.outputs(twin.stream) == first


def test_a_rows_bits_depend_on_no_other_row_of_any_op(row, arrays, twin):
    """Neither on how many rows there are, nor on where they are."""
    desc = row.descriptor(M, row.small)
    whole = Problem(twin, desc, arrays)
    promise = whole.plan.precision_guarantee
    if not promise.batch_invariant:
        pytest.skip(f"{whole.plan.sku.name} does not promise it")
    whole.run(twin.stream)
    outputs = whole.outputs(twin.stream)
    for m in SOME:
        fewer = row.descriptor(m, row.small)
        part = Problem(twin, fewer, _last_rows(desc, fewer, arrays))
        theirs = part.plan.precision_guarantee
        if not promise.bit_identical_to_reference and theirs.reduction_id != promise.reduction_id:
            continue  # another order of the sum
        part.run(twin.stream)
        for name, content in part.outputs(twin.stream).items():
            assert outputs[name][-len(content) :] == content, f"the last {m} rows of {name}"


def _last_rows(desc, part, arrays):
    """Return the operands of a problem of fewer rows: the last ones of a larger one's."""
    kind = plan_type(desc)
    return {
        many.name: arrays[many.name][many.shape[0] - one.shape[0] :].copy()
        for many, one in zip(kind.operands(desc), kind.operands(part), strict=True)
    }


def test_every_op_is_captured_and_replayed(row, arrays, twin):
    problem, stream = Problem(twin, row.descriptor(M, row.small), arrays), twin.stream
    problem.run(stream)
    expected = problem.outputs(stream)
    stream.begin_capture()
    problem.bound.run(stream)
    graph = stream.end_capture()
    for operand in problem.written:
        copy = problem.copies[operand.name]
        copy.data.memset_async(0, copy.nbytes, stream)
    graph.launch(stream)
    assert problem.outputs(stream) == expected


def test_every_op_gives_the_same_bits_beside_itself_on_other_streams(row, twin, cupy):
    desc = row.descriptor(M, row.small)
    problems = [Problem(twin, desc, twin.lab.operands(desc)) for _ in range(4)]
    alone = []
    for problem in problems:
        problem.run(twin.stream)
        alone.append(problem.outputs(twin.stream))
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in problems]
    for _ in range(RUNS):
        for problem, stream in zip(problems, streams, strict=True):
            problem.run(stream)
    for problem, stream, expected in zip(problems, streams, alone, strict=True):
        assert problem.outputs(stream) == expected


@pytest.mark.parametrize("layout", ["strided", "padded", "misaligned"])
def test_where_operands_of_every_op_lie_does_not_matter(row, arrays, twin, layout):
    desc = row.descriptor(M, row.small)
    dense = twin.run("cuda:0", desc, {name: array.copy() for name, array in arrays.items()})
    for name, array in twin.run("cuda:0", desc, twin.lab.placed(desc, arrays, layout)).items():
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(dense[name]).tobytes(), name
        if layout == "strided" and array.ndim == 2:
            assert twin.lab.gaps(array) == {0xA5}, f"{name}: written between its rows"


@pytest.mark.parametrize("m", [0, 1, 3])
@pytest.mark.parametrize("shape", ODD, ids=lambda shape: shape.label)
def test_odd_and_empty_shapes_of_every_op_are_the_references(row, twin, shape, m):
    if shape.n == 0 and not row.small.n and shape.k == 64:
        pytest.skip("it has no N")
    try:
        desc = row.descriptor(m, shape)
    except qp.InvalidProblem as error:
        pytest.skip(f"there is no such problem: {error}")
    arrays = twin.lab.operands(desc)
    expected = twin.run("cpu", desc, {name: array.copy() for name, array in arrays.items()})
    plan = plan_type(desc).select(twin.target, desc)
    got = twin.run("cuda:0", desc, {name: array.copy() for name, array in arrays.items()})
    written = twin.lab.args(desc, arrays | expected)  # codes are as far apart as their scales are large
    for name, array in got.items():
        assert differing(plan, name, array, expected[name], lambda bound: bound.bounds(desc, written)) == 0, name
