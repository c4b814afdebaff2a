"""Runs: the files that hold what one GPU day found, written as it goes.

``gpu-DEVICE-DATE.json`` is a result. What did not run on a GPU, or only a smoke of it, is called ``smoke-…`` and is
none, and neither is what says that it is synthetic.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

import attrs

import quantplan
from quantplan.kernels import family_digest
from quantplan.ops import PLANS
from quantplan.programs import KernelVariant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

SCHEMA = 1
"""Version of the files; others are refused."""
_EVERY_S = 1.0
"""Seconds between two writes, at least: a run that is killed loses no more."""

Data = dict[str, Any]


def sources() -> dict[str, str]:
    """Return the digest of each kernel family's sources."""
    return {source: family_digest(source) for source in sorted(set(kernels().values()))}


def kernels() -> dict[str, str]:
    """Return the family's source of each variant that has kernels, as ``op.variant``."""
    return {
        f"{name}.{variant.name}": variant.program.source
        for name, kind in PLANS.items()
        for variant in kind.variants
        if isinstance(variant, KernelVariant)
    }


def kernel_of(sku: str) -> str:
    """Return the ``op.variant`` that a SKU's name begins with."""
    return ".".join(sku.split(".")[:2])


def tried(data: Data) -> set[str]:
    """Return what ran of the kernels: those whose promises or results were looked at, or whose time was taken."""
    answers = [answer for part in ("guarantees", "exercises", "points") for answer in data[part].values()]
    skus = [sku for answer in answers for sku in answer.get("skus", ())] + [a["sku"] for a in answers if "us" in a]
    skus += [plan["sku"] for answer in answers for plan in answer.get("plans", ())]
    return {kernel_of(sku) for sku in skus}


def ranks(results: Iterable[Data]) -> dict[str, int]:
    """Return for each kernel: 0 where none of some runs has run it, 1 where its sources have changed since, else 2."""
    now, found = sources(), dict.fromkeys(kernels(), 0)
    for data in results:
        for kernel in tried(data) & found.keys():
            source = kernels()[kernel]
            found[kernel] = max(found[kernel], 1 + (data["sources"].get(source) == now[source]))
    return found


@attrs.define
class Run:
    """One result file.

    Parameters
    ----------
    path : pathlib.Path
        Where it is.
    data : dict
        What it holds.
    clock : callable
        Tells the time in seconds.
    """

    path: Path
    data: Data
    clock: Callable[[], float] = time.monotonic
    _written: float = attrs.field(default=float("-inf"), init=False)

    @classmethod
    def begin(cls, out: Path, target: str, *, smoke: bool) -> Run:
        """Begin a new file, under a name that no other has."""
        date = dt.datetime.now(tz=dt.UTC).date().isoformat()
        data = {
            "schema": SCHEMA,
            "date": date,
            "target": target,
            "smoke": smoke,
            "quantplan": quantplan.__version__,
            "sources": sources(),
            "kernels": kernels(),
            **{part: {} for part in ("stages", "machine", "roofs", "tests", "guarantees", "exercises")},
            **{part: {} for part in ("sanitizers", "host", "points")},
        }
        out.mkdir(parents=True, exist_ok=True)
        return cls(out / f".begun-{os.getpid()}-{date}.json", data)

    def name(self, device: str) -> None:
        """Give the file its name, once the device has told its own."""
        kind = "gpu" if self.counts else "smoke"
        stem = f"{kind}-{slug(device)}-{self.data['date']}"
        number, path = 1, self.path.with_name(f"{stem}.json")
        while path.exists():
            number += 1
            path = self.path.with_name(f"{stem}-{number}.json")
        self.path.unlink(missing_ok=True)
        self.path = path
        self.save()

    @property
    def counts(self) -> bool:
        """Whether what it finds is a result."""
        return counts(self.data)

    def tick(self) -> None:
        """Write, unless that was just done."""
        if self.clock() - self._written >= _EVERY_S:
            self.save()

    def save(self) -> None:
        """Write all of it, or nothing."""
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(json.dumps(self.data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(self.path)
        self._written = self.clock()


def slug(device: str) -> str:
    """Return a device's name as files are called after it."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def counts(data: Data) -> bool:
    """Whether a file's figures were measured on a GPU."""
    return data["target"].startswith("cuda") and not data["smoke"] and not data.get("synthetic")


def read(path: Path) -> Data:
    """Read a file.

    Raises
    ------
    ValueError
        It is of another schema.
    """
    data: Data = json.loads(path.read_text(encoding="utf-8"))
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{path.name}: expected schema {SCHEMA}, got {data.get('schema')}")
    return data


def load(results: Path) -> list[Data]:
    """Return the results in a folder, oldest first.

    Raises
    ------
    ValueError
        One is of another schema, or not measured on a GPU: under this name it would be taken for a result.
    """
    found = []
    for path in sorted(results.glob("gpu-*.json"), key=_age):
        data = read(path)
        if not counts(data):
            why = "is synthetic" if data.get("synthetic") else "was not measured on a GPU"
            raise ValueError(f"{path.name} {why}, and is no result")
        found.append(data)
    return found


def latest(out: Path, target: str, *, smoke: bool) -> Path | None:
    """Return the newest file of a folder that a run of the same kernels on the same target can go on with."""
    for path in sorted(out.glob("*.json"), key=_age, reverse=True):
        try:
            data = read(path)
        except (ValueError, AttributeError):
            continue
        same = (data.get("target"), data.get("smoke"), data.get("sources")) == (target, smoke, sources())
        if same and not data.get("synthetic"):
            return path
    return None


def _age(path: Path) -> tuple[str, int, str]:
    """Sort by date, then by number, then by device."""
    match = re.fullmatch(r"(.*)-(\d{4}-\d\d-\d\d)(?:-(\d+))?", path.stem)
    return (match[2], int(match[3] or 1), match[1]) if match else ("", 0, path.stem)
