"""Scaling recipes are data: what they ask for, what they refuse, and what their scales look like."""

import pickle

import numpy as np
import pytest

import quantplan as qp
from quantplan.reference.bounds import QuantizeErrorBound

RECIPES = [
    qp.DelayedScaling(margin=1),
    qp.Float8CurrentScaling(),
    qp.Float8CurrentScaling(element="fp8_e5m2", scope="token"),
    qp.Float8BlockScaling(block_rows=128),
    qp.MXFP8BlockScaling(element="e5m2"),
    qp.NVFP4BlockScaling(),
    qp.INT4Scaling(group_size=32, symmetric=False, scale_element="bf16", mse=True),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)
def test_recipes_are_plain_data(recipe):
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert qp.ScalingRecipe.from_dict(recipe.to_dict()) == recipe
    assert hash(recipe.replace()) == hash(recipe)
    assert type(recipe).__name__ in repr(recipe)
    assert recipe.error_bound == QuantizeErrorBound()
    assert "scale" in recipe.error_bound.formula


@pytest.mark.parametrize(
    "recipe, element, scale_element, shape",
    [
        (qp.DelayedScaling(), qp.FP8_E4M3, qp.F32, (1,)),
        (qp.Float8CurrentScaling(scope="token"), qp.FP8_E4M3, qp.F32, (130,)),
        (qp.Float8BlockScaling(), qp.FP8_E4M3, qp.F32, (130, 3)),
        (qp.Float8BlockScaling(block_rows=128), qp.FP8_E4M3, qp.F32, (2, 3)),
        (qp.MXFP8BlockScaling(), qp.FP8_E4M3, qp.E8M0, (130, 10)),
        (qp.NVFP4BlockScaling(), qp.FP4_E2M1, qp.FP8_E4M3, (130, 19)),
        (qp.INT4Scaling(), qp.U4, qp.F16, (130, 3)),
        (qp.INT4Scaling(group_size=-1), qp.U4, qp.F16, (130,)),
    ],
)
def test_elements_and_shapes_of_scales(recipe, element, scale_element, shape):
    assert (recipe.element, recipe.scale_element) == (element, scale_element)
    assert recipe.scale_shape(130, 300) == shape


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: qp.Float8CurrentScaling(element="s8"), "element"),
        (lambda: qp.Float8CurrentScaling(scope="group:32"), "scope"),
        (lambda: qp.Float8BlockScaling(element="f16"), "element"),
        (lambda: qp.Float8BlockScaling(block_rows=64), "block_rows"),
        (lambda: qp.MXFP8BlockScaling(element="fp4_e2m1"), "element"),
        (lambda: qp.INT4Scaling(group_size=16), "group_size"),
        (lambda: qp.INT4Scaling(scale_element="f32"), "scale_element"),
        (lambda: qp.INT4Scaling(symmetric=1), "symmetric"),
        (lambda: qp.DelayedScaling(margin=-1), "margin"),
    ],
)
def test_what_is_no_recipe_is_refused_by_name(make, field):
    with pytest.raises(qp.InvalidProblem) as error:
        make()
    assert error.value.field == field


@pytest.mark.parametrize("shape", [(64, 64), (70, 100), (1, 30)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_packed_weight_unpacks_to_what_was_rounded(shape, symmetric):
    recipe = qp.INT4Scaling(group_size=32, symmetric=symmetric)
    w = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
    packed = recipe.quantize(w)
    back = recipe.unpack(packed.weight_q, packed.weight_scale, packed.weight_zero_point, shape)
    assert back.q.shape == shape[::-1]
    step = np.repeat(back.scales.astype(np.float32), 32, axis=0)[: shape[1]]
    assert (np.abs(back.dequantize() - w.T) <= step * 0.5001).all()
