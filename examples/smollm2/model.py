"""The Llama architecture in NumPy, with the linear layers behind one small interface.

    ids ─ embedding ─ Block ─ Block ─ … ─ norm ─ embeddingᵀ ─ logits

    Block:  x ─┬─ norm ─ q,k,v ─ RoPE ─ attention ─ o ─ + ─┬─ norm ─ gate,up ─ silu(gate)·up ─ down ─ + ─ x
               └────────────────────────────────────────┘  └──────────────────────────────────────────┘

Nothing here knows how a linear layer computes. Each place where one stands is a *site* with one input and one or more
weight matrices, so that q, k and v quantize their common input once. What fills the sites is in linear.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .weights import Array, Config, Weights

Rotation = npt.NDArray[np.complex64]
Ids = Sequence[int] | npt.NDArray[np.int64]

# Longer prompts go through the model in pieces of this many tokens: it is the largest M for which plans are selected.
MAX_ROWS = 512


class Linear(Protocol):
    """All matrices of one site. What it returns holds until the same site of any layer is called."""

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Multiply the [m, inputs] rows with every matrix of the site; return one [m, outputs] array for each."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One decoder layer: two norms and four sites."""

    attn_norm: Array
    attn_in: Linear  # q, k, v
    attn_out: Linear  # o
    ffn_norm: Array
    ffn_in: Linear  # gate, up
    ffn_out: Linear  # down


class Cache:
    """The keys and values of all tokens seen so far, for one sequence of at most `capacity` tokens."""

    def __init__(self, config: Config, layers: int, capacity: int) -> None:
        shape = (layers, config.kv_heads, capacity, config.head_dim)
        self.keys = np.empty(shape, np.float32)
        self.values = np.empty(shape, np.float32)
        self.capacity = capacity
        self.length = 0


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Scale every row to a root mean square of one, then every channel by its weight."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    normed: Array = x / np.sqrt(mean_square + np.float32(eps)) * weight
    return normed


def rotations(config: Config, start: int, count: int) -> Rotation:
    """Return e^(i·position·frequency) for some positions, as [count, 1, head_dim / 2]: one factor for all heads."""
    frequencies = config.rope_base ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angles = np.outer(np.arange(start, start + count), frequencies)
    turns: Rotation = np.exp(1j * angles).astype(np.complex64)
    return turns[:, None, :]


def rotate(x: Array, rotation: Rotation) -> Array:
    """Apply RoPE to [m, heads, head_dim]: in GGUF's Llamas channels 2i and 2i + 1 are one complex number."""
    rotated: Array = (x.view(np.complex64) * rotation).view(np.float32)
    return rotated


def softmax(x: Array) -> Array:
    """Exponentiate and normalise the last axis."""
    exponentials = np.exp(x - np.max(x, axis=-1, keepdims=True))
    weights: Array = exponentials / np.sum(exponentials, axis=-1, keepdims=True)
    return weights


def silu(x: Array) -> Array:
    """Return x·sigmoid(x). The sigmoid is written with tanh because exp(-x) overflows."""
    half = np.float32(0.5)
    activated: Array = x * (half + half * np.tanh(half * x))
    return activated


def attend(q: Array, keys: Array, values: Array) -> Array:
    """Causal attention of the last m positions, q [m, heads, head_dim], to all t of them, keys [kv_heads, t, head_dim].

    Each key/value head serves a group of consecutive query heads. The rows of a group are stacked, so that one batched
    matrix product does the work of all heads.
    """
    m, heads, head_dim = q.shape
    kv_heads, t, _ = keys.shape
    group = heads // kv_heads
    stacked = q.reshape(m, kv_heads, group, head_dim).transpose(1, 2, 0, 3).reshape(kv_heads, group * m, head_dim)
    scores = stacked @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(head_dim))
    future = np.arange(t) > np.arange(t - m, t)[:, None]
    scores.reshape(kv_heads, group, m, t)[:, :, future] = -np.inf
    mixed = softmax(scores) @ values
    return mixed.reshape(kv_heads, group, m, head_dim).transpose(2, 0, 1, 3).reshape(m, heads * head_dim)


class Model:
    """A decoder over some blocks. It keeps no state between calls: what a sequence has seen is in its Cache."""

    def __init__(self, weights: Weights, blocks: Sequence[Block]) -> None:
        self.weights = weights
        self.config = weights.config
        self.blocks = tuple(blocks)

    def cache(self, capacity: int) -> Cache:
        """Return an empty cache for a sequence of at most `capacity` tokens."""
        return Cache(self.config, len(self.blocks), capacity)

    def hidden(self, ids: Ids, cache: Cache) -> Array:
        """Run the next tokens of a sequence, and return their last hidden states, normed, one row per token."""
        pieces = [self._piece(ids[i : i + MAX_ROWS], cache) for i in range(0, len(ids), MAX_ROWS)]
        return rms_norm(np.concatenate(pieces), self.weights.output_norm, self.config.norm_eps)

    def logits(self, hidden: Array) -> Array:
        """Return one logit per token of the vocabulary. The output layer is the embedding itself, in float32."""
        logits: Array = hidden @ self.weights.embedding.T
        return logits

    def _piece(self, ids: Ids, cache: Cache) -> Array:
        if cache.length + len(ids) > cache.capacity:
            raise ValueError(f"expected at most {cache.capacity} tokens, got {cache.length + len(ids)}")
        x: Array = self.weights.embedding[np.asarray(ids)]
        rotation = rotations(self.config, cache.length, len(ids))
        for index, block in enumerate(self.blocks):
            x = x + self._attention(index, block, rms_norm(x, block.attn_norm, self.config.norm_eps), rotation, cache)
            gate, up = block.ffn_in(rms_norm(x, block.ffn_norm, self.config.norm_eps))
            (down,) = block.ffn_out(silu(gate) * up)
            x = x + down
        cache.length += len(ids)
        return x

    def _attention(self, index: int, block: Block, x: Array, rotation: Rotation, cache: Cache) -> Array:
        m, head_dim = len(x), self.config.head_dim
        q, k, v = (y.reshape(m, -1, head_dim) for y in block.attn_in(x))
        seen = slice(cache.length, cache.length + m)
        cache.keys[index, :, seen] = rotate(k, rotation).transpose(1, 0, 2)
        cache.values[index, :, seen] = v.transpose(1, 0, 2)
        keys, values = cache.keys[index, :, : seen.stop], cache.values[index, :, : seen.stop]
        (mixed,) = block.attn_out(attend(rotate(q, rotation), keys, values))
        return mixed


def greedy(model: Model, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
    """Yield the likeliest next token, `max_tokens` times. The prompt goes through in one go, then token after token."""
    cache = model.cache(len(prompt) + max_tokens)
    ids = list(prompt)
    for _ in range(max_tokens):
        token = int(np.argmax(model.logits(model.hidden(ids, cache)[-1:])))
        yield token
        ids = [token]
