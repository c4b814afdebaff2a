"""The layer that is to be quantized: random parameters of a trained one's kind, and the layer in NumPy float32."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""NumPy's, or CuPy's on a GPU."""
Arrays: TypeAlias = dict[str, Array]

SAMPLES, EPSILON = 2, 1e-5


@dataclass(frozen=True, kw_only=True)
class Model:
    """A matrix [outputs, inputs] for each product, and for each norm what comes with it.

    With ``adaln`` a layer of a diffusion transformer: norms without weights, and for each sample gates and modulations.
    """

    heads: int
    adaln: bool
    matrices: Arrays
    norms: tuple[Arrays, Arrays, Arrays]

    @classmethod
    def random(cls, rng: np.random.Generator, hidden: int, heads: int, *, adaln: bool) -> "Model":
        """Make parameters such that some channels are far larger than the rest, before every product."""
        shapes = {"qkv": (3, hidden, hidden), "proj": (hidden, hidden)}
        shapes |= {"gate_up": (2, 2 * hidden, hidden), "down": (hidden, 2 * hidden)}
        matrices = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        matrices["qkv"][2, ::29] *= 20  # what attention takes the mean of
        matrices["gate_up"][1, ::29] *= 20  # what the activation is multiplied by
        matrices = {name: w.reshape(-1, w.shape[-1]) / np.sqrt(w.shape[-1]) for name, w in matrices.items()}

        def around(mean: float, *shape: int) -> Array:
            return rng.normal(mean, 0.2, (*shape, hidden)).astype(np.float16)

        def norm() -> Arrays:
            if not adaln:
                return {"weight": around(1)}
            means = {"modulation_scale": 0, "modulation_shift": 0, "residual_gate": 0.5}
            return {name: around(mean, SAMPLES) for name, mean in means.items()}

        single = {name: w.astype(np.float32) for name, w in matrices.items()}
        return cls(heads=heads, adaln=adaln, matrices=single, norms=(norm(), norm(), norm()))

    def tokens(self, rng: np.random.Generator, count: int) -> Array:
        """Make the stream that enters the layer."""
        stream = rng.standard_normal((count, self.matrices["proj"].shape[0]))
        stream[:, ::31] *= 20
        return stream.astype(np.float16)

    def run(self, stream: Array) -> Arrays:
        """Return the layer's ``result``, and under each product's name what enters it."""
        seen, h = {}, stream.astype(np.float32)
        seen["qkv"] = self._norm(0, h)
        seen["proj"] = self.attention(seen["qkv"] @ self.matrices["qkv"].T)
        h = self._add(1, h, seen["proj"] @ self.matrices["proj"].T)
        seen["gate_up"] = self._norm(1, h)
        seen["down"] = self._activate(seen["gate_up"] @ self.matrices["gate_up"].T)
        h = self._add(2, h, seen["down"] @ self.matrices["down"].T)
        return seen | {"result": self._norm(2, h)}

    def attention(self, qkv: Array) -> Array:
        """Let the tokens of each sample see each other."""
        parts = qkv.astype(np.float32).reshape(SAMPLES, -1, 3, self.heads, qkv.shape[1] // 3 // self.heads)
        q, k, v = parts.transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(q.shape[-1]))
        likely = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return (likely / likely.sum(axis=-1, keepdims=True) @ v).swapaxes(1, 2).reshape(len(qkv), -1)

    def _norm(self, index: int, h: Array) -> Array:
        d = h - h.mean(axis=1, keepdims=True) if self.adaln else h
        n = d / np.sqrt(np.square(d).mean(axis=1, keepdims=True) + np.float32(EPSILON))
        if not self.adaln:
            return n * self.norms[index]["weight"].astype(np.float32)
        return n * (1 + self._rows(index, "modulation_scale", h)) + self._rows(index, "modulation_shift", h)

    def _add(self, index: int, h: Array, x: Array) -> Array:
        return h + (self._rows(index, "residual_gate", h) * x if self.adaln else x)

    def _rows(self, index: int, name: str, h: Array) -> Array:
        """Repeat each sample's row for its tokens."""
        return np.repeat(self.norms[index][name].astype(np.float32), len(h) // SAMPLES, axis=0)

    def _activate(self, x: Array) -> Array:
        gate, up = np.split(x, 2, axis=1)
        if self.adaln:
            inner = np.float32(np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate**3)
            return gate / 2 * (1 + np.tanh(inner)) * up
        return gate / (1 + np.exp(-gate)) * up
