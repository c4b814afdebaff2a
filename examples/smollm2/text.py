"""English text that every Python has: the language reference that ``help()`` shows, in ``pydoc_data.topics``."""

from collections.abc import Iterator
from pydoc_data.topics import topics

import numpy as np
import numpy.typing as npt

from .tokenizer import ChatTokenizer

Tokens = npt.NDArray[np.int64]


def calibration_text() -> str:
    """Return the part of the reference that recipes may look at."""
    return "\n\n".join(_paragraphs(0))


def held_out_text() -> str:
    """Return the part that they are judged on: other topics, and no paragraph of the first part."""
    return "\n\n".join(_paragraphs(1))


def windows(tokenizer: ChatTokenizer, text: str, count: int, length: int) -> Tokens:
    """Cut `count` pieces of `length` tokens out of a text, evenly spread over it.

    Each begins with the token that begins a chat. The model parks attention on the first token it sees, where some
    activations are far larger than anywhere else; a calibration without that token would not know how large.
    """
    ids = np.asarray(tokenizer.encode(text))
    starts = ((np.arange(count) + 0.5) * (len(ids) - length) / count).astype(int)
    return np.stack([np.concatenate([[tokenizer.bos], ids[start : start + length - 1]]) for start in starts])


def _paragraphs(part: int) -> Iterator[str]:
    """Yield every second topic's paragraphs, each where it first occurs: topics repeat one another's sections."""
    seen: set[str] = set()
    for index, name in enumerate(sorted(topics)):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                if index % 2 == part:
                    yield paragraph
