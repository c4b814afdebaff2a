"""placeholder"""

from dataclasses import replace
import numpy as np
from .calibrate import Maxima
from .weights import Array, LayerWeights

ALPHA = 0.75


def _div(a, *ws):
    wm = np.max([np.abs(w).max(0) for w in ws], 0)
    return (np.maximum(a, 1e-5) ** ALPHA / np.maximum(wm, 1e-5) ** (1 - ALPHA)).astype(np.float32)


def smooth_layer(w: LayerWeights, m: Maxima) -> tuple[LayerWeights, Maxima]:
    s1 = _div(m["attn_in"], w.q, w.k, w.v)
    s2 = _div(m["ffn_in"], w.gate, w.up)
    s3 = _div(m["ffn_out"], w.down)
    return replace(
        w,
        attn_norm=w.attn_norm / s1,
        q=w.q * s1,
        k=w.k * s1,
        v=w.v * s1,
        ffn_norm=w.ffn_norm / s2,
        gate=w.gate * s2,
        up=w.up * s2 / s3[:, None],
        down=w.down * s3,
    ), {
        "attn_in": m["attn_in"] / s1,
        "attn_out": m["attn_out"],
        "ffn_in": m["ffn_in"] / s2,
        "ffn_out": m["ffn_out"] / s3,
    }


def static_scale(m: Array) -> Array:
    return np.array([m.max() / 127], np.float32)
