"""RepackMarlin: the 4-bit codes of GPTQ's and AWQ's words, in Marlin's. Codes are moved, and none is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.errors import InvalidProblem
from quantplan.formats._words import INTERLEAVED, unpack_words
from quantplan.formats.int4 import SYMMETRIC_ZERO
from quantplan.formats.marlin import pack_weight
from quantplan.types import ErrorBound, LayoutSku

if TYPE_CHECKING:
    from numpy.typing import NDArray


@attrs.frozen(repr=False)
class RepackErrorBound(ErrorBound):
    """No error at all: words are permuted bits."""

    @property
    def formula(self) -> str:
        """The bound as one line of text."""
        return "0: codes are moved"

    def bound(self, desc: Any, args: Any) -> NDArray[np.float64]:  # noqa: ANN401, ARG002 - ErrorBound's signature
        """Return zeros of the output's shape."""
        return np.zeros(args.weight_q.shape)


def repack_marlin(
    qweight: NDArray[np.int32], weight_q: NDArray[np.int32], perm: NDArray[np.int32] | None, *, source: LayoutSku
) -> None:
    """Write Marlin's words.

    Parameters
    ----------
    qweight : ndarray of int32, shape (K / 8, N) of GPTQ, or (K, N / 8) of AWQ
    weight_q : ndarray of int32, shape (K′ / 16, 2 N′)
        Written. What lies behind K and N gets code 8.
    perm : ndarray of int32, shape (K,), optional
        Which row of the source each row is; None: in order.
    source : LayoutSku
        GPTQ or AWQ.

    Raises
    ------
    InvalidProblem
        An index of ``perm`` outside [0, K).
    """
    codes = unpack_words(qweight, 0) if source is LayoutSku.GPTQ else unpack_words(qweight, 1, INTERLEAVED)
    k, n = codes.shape
    if perm is not None:
        if perm.size and not 0 <= int(perm.min()) <= int(perm.max()) < k:
            got = f"{int(perm.min())} to {int(perm.max())}"
            raise InvalidProblem(op="RepackMarlin", field="perm", expected=f"indices in [0, {k})", got=got)
        codes = codes[perm]
    padded = np.full((16 * weight_q.shape[0], weight_q.shape[1] // 2), SYMMETRIC_ZERO, np.uint8)
    padded[:k, :n] = codes
    weight_q[...] = pack_weight(padded)
