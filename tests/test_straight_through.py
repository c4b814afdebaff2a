"""A cast that torch differentiates: its values are the plans', and its gradient is the identity's, or zero.

Every test runs on a stand-in, and on torch itself where that is installed: it is too large to be a test's dependency.
"""

import importlib
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

import quantplan as qp
from tests import fake_torch

RECIPES = [
    qp.Float8CurrentScaling(),
    qp.Float8CurrentScaling(element="e5m2", scope="token"),
    qp.Float8BlockScaling(),
    qp.Float8BlockScaling(block_rows=128),
    qp.MXFP8BlockScaling(),
    qp.NVFP4BlockScaling(),
    qp.INT4Scaling(group_size=32),
    qp.INT4Scaling(group_size=32, symmetric=False, scale_element="bf16"),
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# One test below says that torch is missing.
LIBRARIES = ["stand-in", *(["torch"] if importlib.util.find_spec("torch") else [])]


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    """Put the stand-in or torch itself under quantplan.straight_through, and return both modules."""
    torch = fake_torch.module() if request.param == "stand-in" else importlib.import_module("torch")
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.delitem(sys.modules, "quantplan.straight_through", raising=False)
    yield torch, importlib.import_module("quantplan.straight_through")
    del sys.modules["quantplan.straight_through"]


def step(library, x, recipe, gradient=None, **options):
    """Run forward and backward; return the values, and the gradient of x."""
    torch, module = library
    leaf = torch.from_numpy(x)
    leaf.requires_grad = True
    y = module.fake_quantize(leaf, recipe, **options)
    y.backward(torch.from_numpy(np.ones_like(x) if gradient is None else gradient))
    return y.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_are_those_of_the_plans_and_gradients_pass(library, recipe, dtype):
    x, gradient = normal(5, 70).astype(dtype), normal(5, 70, seed=1).astype(dtype)
    y, passed = step(library, x, recipe, gradient)
    assert y.dtype == dtype
    assert y.tobytes() == qp.dequantize(qp.cast(x, recipe), y.dtype.name).tobytes()
    assert passed.tobytes() == gradient.tobytes()


def test_what_a_delayed_scale_clips_has_no_gradient(library):
    history = qp.AmaxHistory(qp.DelayedScaling())
    history.record(448)  # the scale is 1
    # 464 lies halfway to 480, the next number of an unlimited format; below it a value rounds to 448.
    x = np.array([[448, -463.9, 464.1, -1000, 3, 0]], np.float32)
    y, passed = step(library, x, history, np.full((1, 6), 2, np.float32))
    assert y.tolist() == [[448, -448, 448, -448, 3, 0]]
    assert passed.tolist() == [[2, 2, 0, 0, 2, 2]]
    assert history.amaxes == (448, 1000), "each call is a step"


def test_the_gradient_passes_where_the_bound_holds(library):
    """The rule is the recipe's own: no bound, no gradient."""
    x = np.random.default_rng(3).standard_t(2, (8, 64)).astype(np.float32)
    recipe = qp.INT4Scaling(group_size=32, mse=True)
    wanted = np.isfinite(qp.cast(x, recipe).error_bound(x))
    assert 0 < wanted.mean() < 1
    assert (step(library, x, recipe)[1] == wanted).all()


def test_nothing_is_clipped_by_scales_that_come_from_the_tensor():
    for recipe in RECIPES:
        x = np.random.default_rng(5).standard_t(2, (40, 70)).astype(np.float32)
        assert np.isfinite(qp.cast(x, recipe).error_bound(x)).all(), recipe


@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), (0, 64), (3, 0)])
def test_leading_axes_are_rows(library, shape):
    x = normal(*shape)
    y, passed = step(library, x, qp.Float8CurrentScaling(scope="token"))
    assert y.shape == passed.shape == shape
    rows = x.reshape(int(np.prod(shape[:-1])), shape[-1])
    assert y.tobytes() == qp.dequantize(qp.cast(rows, qp.Float8CurrentScaling(scope="token"))).tobytes()


def test_strided_tensors_are_taken_as_they_read(library):
    x = normal(64, 6).T
    y, _ = step(library, x, qp.MXFP8BlockScaling())
    assert (y == qp.dequantize(qp.cast(np.ascontiguousarray(x), qp.MXFP8BlockScaling()))).all()


def test_kernels_give_the_same_values(library):
    x = normal(3, 40)
    here, there = (step(library, x, qp.MXFP8BlockScaling(), target=target)[0] for target in ("cpu", "emulated:sm_90a"))
    assert here.tobytes() == there.tobytes()


@pytest.mark.parametrize("x", [np.ones((2, 64), np.float32), 1.0])
def test_what_is_no_tensor_of_torch_is_refused(library, x):
    with pytest.raises(qp.InvalidProblem, match=r"fake_quantize: x: expected a torch\.Tensor"):
        library[1].fake_quantize(x, qp.MXFP8BlockScaling())


def test_what_cast_refuses_is_refused(library):
    torch, module = library
    x = torch.from_numpy(normal(2, 64))
    with pytest.raises(qp.InvalidProblem, match="AmaxHistory"):
        module.fake_quantize(x, qp.DelayedScaling())
    with pytest.raises(qp.InvalidProblem, match="round it to f32"):
        module.fake_quantize(torch.from_numpy(np.ones((2, 64))), qp.MXFP8BlockScaling())
    with pytest.raises(qp.InvalidProblem, match="at least one axis"):
        module.fake_quantize(torch.from_numpy(np.ones((), np.float32)), qp.MXFP8BlockScaling())


def test_a_quantized_layer_learns():
    """A least-squares fit with a 4-bit weight at every step: with rounding's own gradient it would stand still."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'quantplan[torch]'")
    from quantplan.straight_through import fake_quantize  # noqa: PLC0415 - it imports torch

    x, goal = torch.from_numpy(normal(256, 32, seed=6)), torch.from_numpy(normal(8, 32, seed=7))
    weight, losses = torch.zeros(8, 32, requires_grad=True), []
    for _ in range(5):
        loss = ((x @ (fake_quantize(weight, qp.NVFP4BlockScaling()) - goal).T) ** 2).mean()
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, weight)
        weight = (weight - gradient).detach().requires_grad_()
    assert losses == sorted(losses, reverse=True)


def test_without_torch_the_error_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import quantplan.straight_through"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install 'quantplan[torch]'" in done.stderr.splitlines()[-1]
