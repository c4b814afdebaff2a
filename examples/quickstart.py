"""An 8-bit linear on the reference device, what it promises, and which kernel would run it on a GPU."""

import numpy as np

import quantplan as qp

x, w = np.random.default_rng(0).standard_normal((2, 8, 64), dtype=np.float32)

# Quantize rows: the activations' tokens, and the weight's output channels.
rows = qp.DynamicRangeQuantizeDescriptor(m=8, k=64, scope=qp.Scope.token())
quantizer = qp.DynamicRangeQuantizePlan.select("cpu", rows)
x_q, w_q = np.empty((2, 8, 64), np.int8)
x_scale, w_scale = np.empty((2, 8), np.float32)
quantizer.run(None, None, qp.DynamicRangeQuantizeArgs(x=x, q=x_q, scale=x_scale))
quantizer.run(None, None, qp.DynamicRangeQuantizeArgs(x=w, q=w_q, scale=w_scale))

# Describe the linear, select a plan for it, run it.
desc = qp.QuantizedLinearDescriptor(m=8, n=8, k=64)
linear = qp.QuantizedLinearPlan.select("cpu", desc)
y = np.empty((8, 8), np.float32)
args = qp.QuantizedLinearArgs(act_q=x_q, act_scale=x_scale, weight_q=w_q, weight_scale=w_scale, output=y)
linear.run(None, None, args)

print("largest error of quantizing:", np.abs(y - x @ w.T).max())
print("same bits on every device:", linear.precision_guarantee.bit_identical_to_reference)
print("on an sm_90a GPU:", qp.QuantizedLinearPlan.select("sm_90a", desc).sku.name)
