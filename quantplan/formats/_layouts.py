"""Which tensors make up a linear in each kind of checkpoint, and how they are read: the codes last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.errors import InvalidProblem
from quantplan.formats import _checks
from quantplan.formats._config import OP, Format, Scheme
from quantplan.formats._words import PER_WORD
from quantplan.formats.awq import frame_of_awq, from_awq
from quantplan.formats.compressed_tensors import frame_of_compressed_tensors, from_compressed_tensors
from quantplan.formats.gptq import frame_of_gptq, from_gptq
from quantplan.formats.int4 import SYMMETRIC_ZERO, Int4Frame, Int4Weight
from quantplan.formats.marlin import TILE_K, TILE_N, MarlinWeight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[Any]]

TENSORS = {
    Format.GPTQ: ("qweight", "qzeros", "scales", "g_idx"),
    Format.AWQ: ("qweight", "qzeros", "scales"),
    Format.COMPRESSED_TENSORS: (
        *("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"),
    ),
    Format.MARLIN: ("B", "s", "workspace"),
    Format.QUANTPLAN: ("weight_q", "weight_scale", "weight_zero_point", "perm"),
}
"""Names behind a module's; the first one holds the codes. Marlin's workspace is scratch, and its content nobody's."""

BIAS = "bias"

_ZEROS = {Format.GPTQ: "qzeros", Format.AWQ: "qzeros", Format.COMPRESSED_TENSORS: "weight_zero_point"}
_ORDER = {Format.GPTQ: "g_idx", Format.COMPRESSED_TENSORS: "weight_g_idx"}
_REQUIRED = {Format.GPTQ: 3, Format.AWQ: 3, Format.COMPRESSED_TENSORS: 2}  # of the names above

_SIGNS = {
    "qweight": Format.GPTQ,
    "qzeros": Format.GPTQ,
    "g_idx": Format.GPTQ,
    "weight_packed": Format.COMPRESSED_TENSORS,
    "weight_g_idx": Format.COMPRESSED_TENSORS,
    "weight_shape": Format.COMPRESSED_TENSORS,
    "weight_q": Format.QUANTPLAN,
}
"""Names that are found in nothing but quantized linears, so that one whose codes are missing is noticed too."""

_VERSION_HINT = 'config={"checkpoint_format": "gptq"} says version 1, which stores zero points less one; "gptq_v2" 2'
_SAME_ZEROS = {0x77777777: 1, -0x77777778: 2}  # eight zero points of 8, as each version stores them


def full_name(prefix: str, suffix: str) -> str:
    """Return the name of a module's tensor."""
    return f"{prefix}.{suffix}" if prefix else suffix


def find(names: Iterable[str], declared: Format | None) -> dict[str, set[Format]]:
    """Return the modules that have tensors of quantized linears, and whose those are; AWQ's look like GPTQ's.

    Parameters
    ----------
    names : iterable of str
        Of tensors.
    declared : Format, optional
        What the configuration says. ``B`` and ``s`` are short names that mean something in Marlin's checkpoints only.
    """
    found: dict[str, set[Format]] = {}
    known = set(names)
    for name in known:
        prefix, _, suffix = name.rpartition(".")
        if suffix in _SIGNS:
            found.setdefault(prefix, set()).add(_SIGNS[suffix])
        elif suffix in ("B", "s"):
            other = full_name(prefix, "s" if suffix == "B" else "B")
            if declared is Format.MARLIN or (declared is None and other in known):
                found.setdefault(prefix, set()).add(Format.MARLIN)
    return dict(sorted(found.items()))


def candidates(tensors: Tensors) -> tuple[Format, Format]:
    """Return GPTQ and AWQ, the likelier first: a word of GPTQ's holds eight rows, one of AWQ's eight columns."""
    qweight, scales = tensors.get("qweight"), tensors.get("scales")
    if qweight is None or scales is None or "g_idx" in tensors or qweight.ndim != 2 or scales.ndim != 2:  # noqa: PLR2004
        return Format.GPTQ, Format.AWQ
    if PER_WORD * qweight.shape[1] == scales.shape[1]:
        return Format.AWQ, Format.GPTQ
    return Format.GPTQ, Format.AWQ


def frame(tensors: Tensors, scheme: Scheme) -> Int4Frame | MarlinWeight:
    """Check a linear's tensors, and return all that can be known of it without unpacking its codes.

    Raises
    ------
    InvalidProblem
        A tensor that is missing, does not fit the others, or contradicts the scheme; the error's field is its name.
    """
    if scheme.format is Format.MARLIN:
        return _marlin(tensors, scheme)
    found = _FRAMES[scheme.format](**_arguments(tensors, scheme))
    _check_against(scheme, tensors, found)
    return found


def weight(tensors: Tensors, scheme: Scheme) -> Int4Weight:
    """Read a linear of which `frame` has returned all but the codes."""
    found: Int4Weight = _WEIGHTS[scheme.format](**_arguments(tensors, scheme))
    return found


def description(scheme: Scheme, tensors: Tensors) -> str:
    """Return the format in a few words."""
    if scheme.format is not Format.GPTQ:
        return str(scheme.format.value)
    version = _version(tensors.get("qzeros"), scheme)
    return f"gptq v{version}"


def _arguments(tensors: Tensors, scheme: Scheme) -> dict[str, Any]:
    names = TENSORS[scheme.format]
    arguments: dict[str, Any] = dict.fromkeys(names[: _REQUIRED[scheme.format]])
    arguments |= {name: tensors[name] for name in names if name in tensors}
    arguments |= {"group_size": scheme.group_size, "bits": scheme.bits}
    if scheme.format is Format.GPTQ:
        arguments["version"] = _version(tensors.get("qzeros"), scheme)
    return arguments


def _version(qzeros: NDArray[Any] | None, scheme: Scheme) -> int:
    """Return how zero points are stored. Where nothing says it, a symmetric weight's own zero points do."""
    if scheme.version is not None:
        return scheme.version
    words = _checks.tensor(OP, "qzeros", qzeros, _checks.WORDS)
    if scheme.symmetric and words.size and (words == words.flat[0]).all() and int(words.flat[0]) in _SAME_ZEROS:
        return _SAME_ZEROS[int(words.flat[0])]
    raise InvalidProblem(op=OP, field="checkpoint_format", expected="gptq or gptq_v2", got="none", hint=_VERSION_HINT)


def _check_against(scheme: Scheme, tensors: Tensors, found: Int4Frame) -> None:
    """Refuse zero points and orders of rows that the configuration denies, or has and the tensors lack."""
    zeros, order = _ZEROS[scheme.format], _ORDER.get(scheme.format, "")
    for name, stated in ((zeros, scheme.symmetric is False), (order, scheme.act_order is True)):
        if stated and name not in tensors:
            raise InvalidProblem(op=OP, field=name, expected="the tensor that the configuration asks for", got="none")
    if scheme.symmetric and found.zeros is not None:
        where = np.argwhere(found.zeros != SYMMETRIC_ZERO)[0]
        got = f"{found.zeros[tuple(where)]} at {tuple(int(i) for i in where)}"
        raise InvalidProblem(op=OP, field=zeros, expected="8 everywhere, as of a symmetric weight", got=got)
    if scheme.act_order is False and found.g_idx is not None:
        raise InvalidProblem(op=OP, field=order, expected="rows in order, as without act-order", got="another order")


def _marlin(tensors: Tensors, scheme: Scheme) -> MarlinWeight:
    """Read ``B`` and ``s`` as they are: words and scales of Marlin's first packer, without zero points."""
    _checks.four_bits(OP, scheme.bits)
    words = _checks.tensor(OP, "B", tensors.get("B"), _checks.WORDS)
    scales = _checks.tensor(OP, "s", tensors.get("s"), _checks.SCALES)
    _checks.multiple(OP, "B", "2 N", words.shape[1], 2 * TILE_N)
    k, n = TILE_K * words.shape[0], words.shape[1] // 2
    group_size = scheme.group_size
    if group_size is None:  # all groups are of one size
        rows = max(1, len(scales))
        group_size = -1 if rows == 1 else -(-k // rows)
    return check_marlin(
        MarlinWeight(weight_q=words, weight_scale=scales, group_size=group_size, k=k, n=n),
        {"weight_q": "B", "weight_scale": "s"},
    )


def check_marlin(found: MarlinWeight, names: Mapping[str, str]) -> MarlinWeight:
    """Return a packed weight whose parts fit each other; its codes are not looked at, for all of them are good.

    Parameters
    ----------
    found : MarlinWeight
        Element types and numbers of axes are right.
    names : mapping of str to str
        What errors call its parts.
    """
    rows, columns = TILE_K * found.weight_q.shape[0], found.weight_q.shape[1] // 2
    field = names["weight_q"]
    _checks.size(OP, field, "K", rows)
    _checks.size(OP, field, "N", columns)
    _checks.multiple(OP, field, "2 N", found.weight_q.shape[1], 2 * TILE_N)
    groups = _checks.groups(OP, rows, found.group_size)
    _checks.shape(OP, names["weight_scale"], found.weight_scale, (groups, columns), "(groups, N)")
    _checks.finite(OP, names["weight_scale"], found.weight_scale)
    if found.weight_zero_point is not None:
        shape = (groups, columns // PER_WORD)
        _checks.shape(OP, names["weight_zero_point"], found.weight_zero_point, shape, "(groups, N / 8)")
    if found.perm is not None:
        perm = _checks.group_index(OP, names["perm"], found.perm, found.k, found.k)
        if np.bincount(perm, minlength=found.k).max(initial=0) > 1:
            raise InvalidProblem(op=OP, field=names["perm"], expected="each column once", got="repeated columns")
    return found


_FRAMES: dict[Format, Callable[..., Int4Frame]] = {
    Format.GPTQ: frame_of_gptq,
    Format.AWQ: frame_of_awq,
    Format.COMPRESSED_TENSORS: frame_of_compressed_tensors,
}
_WEIGHTS: dict[Format, Callable[..., Int4Weight]] = {
    Format.GPTQ: from_gptq,
    Format.AWQ: from_awq,
    Format.COMPRESSED_TENSORS: from_compressed_tensors,
}
