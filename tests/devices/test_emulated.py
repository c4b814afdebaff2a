"""The emulated device: kernels are built once, launched when they are called, and touch what they say they touch."""

import numpy as np
import pytest

import quantplan as qp
from quantplan.devices import emulated
from quantplan.devices.device import Grid, Touched
from quantplan.emulator import compiler
from quantplan.emulator.schedule import schedule
from quantplan.errors import FaultKind
from quantplan.ops import _quantize_kernels as family

DESC = qp.QuantizeDescriptor(m=3, k=40, scale=0.5)
SPECS = family.QuantizeProgram().specs(DESC)


@pytest.fixture
def builds(monkeypatch):
    """Forget what was built, and count what is built now."""
    seen = []
    original = compiler.build

    def build(text, **options):
        seen.append((text, options))
        return original(text, **options)

    monkeypatch.setattr(compiler, "build", build)
    monkeypatch.setattr(emulated, "_libraries", {})
    return seen


def problem():
    x = np.linspace(-70, 70, 120, dtype=np.float32).reshape(3, 40)
    return qp.QuantizeArgs(x=x, q=np.zeros((3, 40), np.int8))


def launch_of(args):
    return family.quantize_launch(DESC, args, host_scale=0.5)


def test_kernels_that_are_loaded_together_are_built_together_and_once(builds):
    device = emulated.device((9, 0))
    kernels = device.load(SPECS)
    assert [kernel.spec for kernel in kernels] == list(SPECS)
    assert len(builds) == 1
    assert builds[0][1] == {"arch": 900, "checked": True}
    device.load(reversed(SPECS))
    qp.QuantizePlan.select("emulated:sm_90a", DESC)
    assert len(builds) == 1


def test_other_checks_and_architectures_are_other_builds(builds):
    emulated.device((9, 0)).load(SPECS[:1])
    with schedule(checked=False):
        emulated.device((9, 0)).load(SPECS[:1])
    emulated.device((8, 0)).load(SPECS[:1])
    assert [options for _, options in builds] == [
        {"arch": 900, "checked": True},
        {"arch": 900, "checked": False},
        {"arch": 800, "checked": True},
    ]


def params_of(one, args):
    """Return the parameter struct of a launch, with the operands' addresses."""
    views = [getattr(args, value) if isinstance(value, str) else None for value in one.values]
    addresses = [0 if view is None else view.pointer for view in views]
    pointers = one.spec.params.pointers
    return one.spec.params.pack([*addresses[:pointers], *one.values[pointers:]])


def touched_by(one, args):
    names = [value for value in one.values if isinstance(value, str) and getattr(args, value) is not None]
    return [Touched(name, getattr(args, name), name in one.written) for name in names]


def test_a_prepared_launch_runs_when_it_is_called(builds):
    args = problem()
    one = launch_of(args)
    (kernel,) = emulated.device((9, 0)).load([one.spec])
    launch = kernel.prepare(one.grid, params_of(one, args), lambda: touched_by(one, args))
    assert not args.q.numpy().any()
    launch(None)
    np.testing.assert_array_equal(args.q.numpy(), np.rint(np.clip(args.x.numpy() / 0.5, -127, 127)))
    with schedule(checked=False):  # nobody asked for this build when the kernel was loaded
        launch(None)
    assert len(builds) == 2


@pytest.mark.parametrize(
    "forget, written, kind",
    [("x", True, FaultKind.OUT_OF_BOUNDS), ("q", True, FaultKind.OUT_OF_BOUNDS), (None, False, FaultKind.READ_ONLY)],
)
def test_memory_that_a_launch_does_not_name_is_out_of_bounds(forget, written, kind):
    args = problem()
    one = launch_of(args)
    touched = [Touched(t.name, t.view, t.written and written) for t in touched_by(one, args) if t.name != forget]
    (kernel,) = emulated.device((9, 0)).load([one.spec])
    with pytest.raises(qp.KernelFault) as caught:
        kernel.prepare(one.grid, params_of(one, args), lambda: touched)(None)
    assert caught.value.kind is kind


def test_regions_are_the_rows_of_a_view():
    wide = np.zeros((5, 100), np.float32)
    region = emulated._region(Touched("x", qp.TensorView.of(wide[:, 8:48]), written=False))
    assert (region.begin, region.row_bytes, region.pitch, region.rows) == (wide.ctypes.data + 32, 160, 400, 5)
    assert (region.writable, region.initialized) == (False, True)
    vector = emulated._region(Touched("scale", qp.TensorView.of(wide[0]), written=True))
    assert (vector.row_bytes, vector.rows, vector.writable, vector.initialized) == (400, 1, True, False)
    empty = emulated._region(Touched("q", qp.TensorView.of(np.zeros((3, 0), np.int8)), written=True))
    assert empty.rows == 0


def regions_of(*operands):
    views = [(name, qp.TensorView.of(array), written) for name, array, written in operands]
    return emulated._regions([Touched(name, view, written) for name, view, written in views])


def test_an_output_in_the_place_of_an_input_is_one_region_that_may_be_read_first():
    stream = np.zeros((5, 100), np.float32)[:, 8:48]
    (region,) = regions_of(("residual", stream, False), ("residual_output", stream, True))
    assert (region.name, region.writable, region.initialized) == ("residual_output", True, True)
    (region,) = regions_of(("residual_output", stream, True), ("residual", stream, False))
    assert (region.writable, region.initialized) == (True, True)


def test_a_single_row_is_in_its_place_whatever_its_distance_to_others():
    wide = np.zeros((5, 100), np.float32)
    (region,) = regions_of(("residual", wide[:1], False), ("residual_output", wide[:1].reshape(100)[None], True))
    assert (region.row_bytes, region.rows, region.writable, region.initialized) == (400, 1, True, True)
    (region,) = regions_of(("residual", wide[:1], False), ("residual_output", wide[::2][:1], True))
    assert (region.writable, region.initialized) == (True, True)


def test_operands_with_memory_of_their_own_are_regions_of_their_own():
    """Also those that lie between each other's rows, or are inputs in the place of inputs, or have no elements."""
    wide = np.zeros((5, 100), np.float32)
    both = regions_of(("x", wide[:, :40], False), ("output", wide[:, 40:], True))
    assert [(region.name, region.writable, region.initialized) for region in both] == [
        ("x", False, True),
        ("output", True, False),
    ]
    (region,) = regions_of(("gate", wide, False), ("up", wide, False))
    assert not region.writable


def test_a_grid_of_many_blocks_covers_all_rows():
    desc = qp.QuantizeDescriptor(m=1000, k=8, scale=1.0)
    x = np.arange(8000, dtype=np.float32).reshape(1000, 8) % 100
    args = qp.QuantizeArgs(x=x, q=np.zeros((1000, 8), np.int8))
    one = family.quantize_launch(desc, args, host_scale=1.0)
    assert isinstance(one.grid, Grid)
    assert one.grid.blocks > 1
    qp.QuantizePlan.select("emulated:sm_90a", desc).run(None, None, args)
    np.testing.assert_array_equal(args.q.numpy(), x)
