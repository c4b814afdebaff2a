r"""Files that `repack` has written: what their metadata say, and how a linear is read from them.

PREFIX.weight_q, .weight_scale, .weight_zero_point, .perm, .bias    the operands of Int4MarlinGemm
__metadata__: {"quantplan": "{\"version\": 1, \"source\": …, \"linears\": {PREFIX: {\"k\": …, \"n\": …, …}}}"}
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from quantplan.errors import InvalidProblem
from quantplan.formats import _checks, _json
from quantplan.formats._config import OP
from quantplan.formats._layouts import check_marlin
from quantplan.formats.marlin import TILE_K, MarlinWeight
from quantplan.formats.padding import padded_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from quantplan.formats.safetensors import SafetensorsFile

KEY = "quantplan"
VERSION = 1
PARTS = ("weight_q", "weight_scale", "weight_zero_point", "perm")


def metadata(linears: Mapping[str, Mapping[str, int]], source: str) -> dict[str, str]:
    """Return the metadata of a file: each linear's k, n and group_size, and a digest of what it was made from."""
    return {KEY: json.dumps({"version": VERSION, "source": source, "linears": linears}, sort_keys=True)}


def linears(file: SafetensorsFile) -> dict[str, _json.Section]:
    """Return what a file says of each linear that was repacked into it; nothing of a file that is another's.

    Raises
    ------
    InvalidProblem
        Metadata of another version, or none that can be read.
    """
    if KEY not in file.metadata:
        return {}
    text = file.metadata[KEY].encode("utf-8", "replace")
    where = f"__metadata__.{KEY}"
    data = _json.Section(_json.parse(text, op=OP, field=where, file=file.path), op=OP, where=where, file=file.path)
    if data.integer("version") != VERSION:
        data.refuse("version", VERSION, "a file of another version of quantplan")
    found = data.section("linears")
    return {prefix: found.section(prefix) for prefix in found.data}


def read(tensors: Mapping[str, NDArray[Any]], said: _json.Section) -> MarlinWeight:
    """Return a linear as it was written, views of the mapped file.

    Raises
    ------
    InvalidProblem
        Tensors that are missing or do not fit what the metadata say.
    """
    k, n, group_size = (_integer(said, name) for name in ("k", "n", "group_size"))
    _checks.size(OP, "k", "K", k)
    _checks.size(OP, "n", "N", n)
    zeros, perm = tensors.get("weight_zero_point"), tensors.get("perm")
    found = MarlinWeight(
        weight_q=_checks.tensor(OP, "weight_q", tensors.get("weight_q"), _checks.WORDS),
        weight_scale=_checks.tensor(OP, "weight_scale", tensors.get("weight_scale"), _checks.SCALES),
        weight_zero_point=None if zeros is None else _checks.tensor(OP, "weight_zero_point", zeros, _checks.WORDS),
        perm=None if perm is None else _checks.tensor(OP, "perm", perm, _checks.WORDS, ndim=1),
        group_size=group_size,
        k=k,
        n=n,
    )
    expected = (padded_size(k) // TILE_K, 2 * padded_size(n))
    if found.weight_q.shape != expected:
        raise InvalidProblem(
            op=OP, field="weight_q", expected=f"shape {expected}, as k = {k} and n = {n} say", got=found.weight_q.shape
        )
    return check_marlin(found, {name: name for name in PARTS})


def _integer(said: _json.Section, name: str) -> int:
    found = said.integer(name)
    if found is None:
        said.refuse(name, "an integer")
    return found
