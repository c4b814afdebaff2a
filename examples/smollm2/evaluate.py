"""What a recipe costs and what it saves, measured: perplexity, agreement with float32, bytes, tokens per second.

Speeds are medians, over tokens or windows, so that a busy moment of the machine does not count.
"""

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .model import Model, greedy
from .text import Tokens

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Score:
    """The measurements of one recipe."""

    recipe: str
    perplexity: float  # on the held-out windows: the lower, the better
    top1_agreement: float  # the fraction of their positions where the likeliest next token is that of fp32
    weight_bytes: int  # of the linear layers with their scales, without the embedding
    tokens_per_second: float  # one after the other, of an answer
    prompt_tokens_per_second: float  # all at once, of the held-out windows
    answer: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a model made of the held-out windows."""

    perplexity: float
    likeliest: Tokens
    tokens_per_second: float


def read(model: Model, windows: Iterable[Tokens]) -> Reading:
    """Let a model predict every token of every window but the first, given the true ones before it."""
    surprise: list[Floats] = []
    likeliest: list[Tokens] = []
    seconds: list[float] = []
    for window in windows:
        started = time.perf_counter()
        logits = model.logits(model.hidden(window[:-1], model.cache(len(window))))
        seconds.append((time.perf_counter() - started) / len(logits))
        surprise.append(-log_softmax(logits.astype(np.float64))[np.arange(len(window) - 1), window[1:]])
        likeliest.append(np.argmax(logits, axis=-1))
    tokens = np.concatenate(likeliest)
    perplexity = math.exp(np.mean(np.concatenate(surprise)))
    return Reading(perplexity=perplexity, likeliest=tokens, tokens_per_second=1 / statistics.median(seconds))


def decode(model: Model, prompt: Sequence[int], tokens: int) -> tuple[list[int], float]:
    """Return greedy ids after a prompt, and how many come per second, not counting the wait for the first."""
    ids: list[int] = []
    times: list[float] = []
    for token in greedy(model, prompt, tokens):
        ids.append(token)
        times.append(time.perf_counter())
    return ids, 1 / statistics.median(after - before for before, after in pairwise(times))


def log_softmax(logits: Floats) -> Floats:
    """Return the logarithm of the softmax along the last axis."""
    shifted = logits - np.max(logits, axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result
