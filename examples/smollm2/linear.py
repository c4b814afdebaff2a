"""The recipes: one class each for how the matrices of a site are stored and multiplied.

A recipe knows plans, not arithmetic. At load it describes its operations, takes a family of plans for each description,
which covers every number of rows up to MAX_ROWS, and binds the weights. At each step it hands over the activations. A
new recipe is one more class, listed in recipes.py: w4a16.py and fp8.py hold such.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

import quantplan as qp
from quantplan.recipes.smoothquant import (
    fold_into_linear,
    fold_into_norm,
    quantize_weight_per_channel,
    smooth_weight,
    smoothing_factors,
)

from .calibrate import Ranges
from .model import MAX_ROWS
from .weights import Array, LayerWeights

Matrices = Mapping[str, Array]
Scales = Mapping[str, float]

# The numbers of rows for which a kernel is chosen: one for decoding, the others for prompts of up to that length.
BUCKETS = (1, 8, 64, MAX_ROWS)

# How much of the activations' difficulty SmoothQuant moves into the weights. At the first token of a chat, channels of
# down's input are in some layers a hundred times larger than the rest: on the calibration text the usual 0.5 costs this
# model a quarter in perplexity, 0.75 a twentieth.
ALPHA = 0.75

# Down is smoothed in layers where the largest channel of its input exceeds the median one this many times.
OUTLIER = 20


@dataclass(frozen=True, kw_only=True)
class Use:
    """One operation of a site, for the table: what it makes, from how many channels to how many, with which plans."""

    what: str
    shape: str
    family: qp.PlanFamily[Any, Any] | None  # None: NumPy, no plan


class Runtime:
    """What all layers share: the target, one family of plans per description, one workspace, and the buffers."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.stream = None  # the reference device and the emulated ones compute at once, without a stream
        self.workspace = qp.Workspace.allocate(0, target)  # refuses at once a target on which nothing runs
        self._families: dict[Hashable, qp.PlanFamily[Any, Any]] = {}
        self._buffers: dict[Hashable, npt.NDArray[Any]] = {}

    def family(self, descriptor: Any) -> qp.PlanFamily[Any, Any]:  # noqa: ANN401 - each op has a descriptor of its own
        """Return the plans for a description; layers of one shape share them.

        An emulated device works on the host's memory. So operations for which it has no kernel can run on the CPU
        beside it, and the table of plans says where each one runs.
        """
        if descriptor not in self._families:
            beside = self.target.startswith("emulated:") and qp.explain(self.target, descriptor).sku is None
            target = "cpu" if beside else self.target
            self._families[descriptor] = qp.PlanFamily.select(target, descriptor, ms=BUCKETS)
        return self._families[descriptor]

    def allocate(self) -> None:
        """Allocate the workspace, when all families are known. Layers run in turn, so the largest need is enough."""
        need = max((family.workspace_size for family in self._families.values()), default=0)
        self.workspace = qp.Workspace.allocate(need, self.target)

    def buffer(self, name: str, *shape: int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """Return the memory of that name and shape. Layers share it, for they run one after the other."""
        key = (name, shape, np.dtype(dtype))
        if key not in self._buffers:
            self._buffers[key] = np.empty(shape, dtype)
        return self._buffers[key]


class Recipe(ABC):
    """The matrices of one site, which share their input, under one recipe."""

    name: ClassVar[str]
    needs_calibration: ClassVar[bool] = False

    def __init__(self, runtime: Runtime, site: str, matrices: Matrices, act_scale: float | None) -> None:
        self.runtime = runtime
        self.k = next(iter(matrices.values())).shape[1]
        self.uses: list[Use] = []
        self.weight_bytes = 0
        self.outputs = [runtime.buffer(name, MAX_ROWS, len(matrix)) for name, matrix in matrices.items()]
        self.load(site, matrices, act_scale)

    @classmethod
    def prepare(cls, weights: LayerWeights, ranges: Ranges) -> tuple[LayerWeights, Scales]:  # noqa: ARG003 - see below
        """Rewrite a layer before its sites are built, and choose their inputs' scales; most recipes do neither."""
        return weights, {}

    @abstractmethod
    def load(self, site: str, matrices: Matrices, act_scale: float | None) -> None:
        """Select the plans and bind the weights."""

    @abstractmethod
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Multiply the rows of x with every matrix of the site."""

    def plans(self, what: str, descriptor: Any) -> qp.PlanFamily[Any, Any]:  # noqa: ANN401 - each op has its own
        """Return the plans for a description, and note for the table what they are used for."""
        family = self.runtime.family(descriptor)
        n = getattr(descriptor, "n", None)
        self.uses.append(Use(what=what, shape=f"{self.k} → {n}" if n else f"{self.k}", family=family))
        return family

    def quantized(self, matrix: Array) -> dict[str, npt.NDArray[Any]]:
        """Round a matrix to s8 with a scale per output channel, count its bytes, and return what the plans bind."""
        weight_q, weight_scale = quantize_weight_per_channel(matrix)
        self.weight_bytes += weight_q.nbytes + weight_scale.nbytes
        return {"weight_q": weight_q, "weight_scale": weight_scale}


class Fp32(Recipe):
    """Float32 and NumPy's matmul: what the others are compared with."""

    name = "fp32"

    def load(self, site: str, matrices: Matrices, act_scale: float | None) -> None:  # noqa: ARG002 - nothing is rounded
        """Keep the matrices as they are."""
        self.matrices = tuple(matrices.values())
        self.weight_bytes = sum(matrix.nbytes for matrix in self.matrices)
        self.uses = [Use(what=name, shape=f"{self.k} → {len(w)}", family=None) for name, w in matrices.items()]

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Multiply."""
        pairs = zip(self.matrices, self.outputs, strict=True)
        return tuple(np.matmul(x, matrix.T, out=output[: len(x)]) for matrix, output in pairs)


class W8A8Dynamic(Recipe):
    """Int8 weights with a scale per output channel; activations rounded to int8 on the fly, with a scale per token."""

    name = "w8a8-dynamic"

    def load(self, site: str, matrices: Matrices, act_scale: float | None) -> None:  # noqa: ARG002 - scales are made later
        """Round the weights and bind them."""
        self.act_q = self.runtime.buffer(f"{site}.q", MAX_ROWS, self.k, dtype=np.int8)
        self.act_scale = self.runtime.buffer(f"{site}.scale", MAX_ROWS)
        self.quantize = self.plans(site, qp.DynamicRangeQuantizeDescriptor(m=MAX_ROWS, k=self.k)).bind()
        self.products = []
        for name, matrix in matrices.items():
            family = self.plans(name, qp.QuantizedLinearDescriptor(m=MAX_ROWS, n=len(matrix), k=self.k))
            self.products.append(family.bind(**self.quantized(matrix)))

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Round the activations once, then multiply them with each matrix."""
        stream, workspace, m = self.runtime.stream, self.runtime.workspace, len(x)
        act_q, act_scale = self.act_q[:m], self.act_scale[:m]
        outputs = tuple(output[:m] for output in self.outputs)
        self.quantize.run(stream, workspace, x=x, q=act_q, scale=act_scale)
        for product, output in zip(self.products, outputs, strict=True):
            product.run(stream, workspace, act_q=act_q, act_scale=act_scale, output=output)
        return outputs


class W8A8SmoothQuant(Recipe):
    """Int8 weights; int8 activations with a static scale per site, after their outliers were moved into the weights."""

    name = "w8a8-smoothquant"
    needs_calibration = True

    @classmethod
    def prepare(cls, weights: LayerWeights, ranges: Ranges) -> tuple[LayerWeights, Scales]:
        """Even out channels: what a site's matrices are multiplied by, the layer before it is divided by.

        The input of down is silu(gate)·up, linear in up, so that up takes its factors. Down is smoothed only where
        outliers ask for it: there every channel is stretched to its own maximum, and one that was quiet in calibration
        but is loud in an answer saturates. The input of o is left as it is.
        """
        attn = smoothing_factors(ranges["attn_in"].amax, [weights.q, weights.k, weights.v], ALPHA)
        ffn = smoothing_factors(ranges["ffn_in"].amax, [weights.gate, weights.up], ALPHA)
        loudest = ranges["ffn_out"].amax
        uneven = np.max(loudest) > OUTLIER * np.median(loudest)
        down = smoothing_factors(loudest, [weights.down], ALPHA) if uneven else np.ones_like(loudest)
        up, _ = fold_into_linear(smooth_weight(weights.up, ffn), None, down)
        smoothed = replace(
            weights,
            attn_norm=fold_into_norm(weights.attn_norm, attn),
            q=smooth_weight(weights.q, attn),
            k=smooth_weight(weights.k, attn),
            v=smooth_weight(weights.v, attn),
            ffn_norm=fold_into_norm(weights.ffn_norm, ffn),
            gate=smooth_weight(weights.gate, ffn),
            up=up,
            down=smooth_weight(weights.down, down),
        )
        factors = {"attn_in": attn, "attn_out": None, "ffn_in": ffn, "ffn_out": down}
        return smoothed, {site: ranges[site].act_scale(factors=used) for site, used in factors.items()}

    def load(self, site: str, matrices: Matrices, act_scale: float | None) -> None:
        """Round the weights and bind them with the scale of the site's input."""
        scale = np.array([act_scale], np.float32)
        self.act_q = self.runtime.buffer(f"{site}.q", MAX_ROWS, self.k, dtype=np.int8)
        self.quantize = self.plans(site, qp.QuantizeDescriptor(m=MAX_ROWS, k=self.k)).bind(scale=scale)
        self.products = []
        for name, matrix in matrices.items():
            family = self.plans(name, qp.SmoothQuantLinearDescriptor(m=MAX_ROWS, n=len(matrix), k=self.k))
            self.products.append(family.bind(**self.quantized(matrix), act_scale=scale))

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Round the activations once, then multiply them with each matrix."""
        stream, workspace, m = self.runtime.stream, self.runtime.workspace, len(x)
        act_q = self.act_q[:m]
        outputs = tuple(output[:m] for output in self.outputs)
        self.quantize.run(stream, workspace, x=x, q=act_q)
        for product, output in zip(self.products, outputs, strict=True):
            product.run(stream, workspace, act_q=act_q, output=output)
        return outputs
