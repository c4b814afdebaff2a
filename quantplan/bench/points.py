"""Points: what was measured at one problem, and what that makes of the GPU's roofs and of the peers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from quantplan.bench.problems import ROWS

if TYPE_CHECKING:
    from quantplan.bench.runs import Data

OURS = "quantplan"
COPY = "copy"
_RATES = {row.name: row.rate for row in ROWS}


@attrs.frozen
class Roofs:
    """What a GPU was seen to do: no bound of the hardware, for a kernel may be faster than what was measured.

    Parameters
    ----------
    bandwidth : float, optional
        Bytes a second that a copy reads and writes.
    rates : dict[str, float]
        Multiplications and additions a second that a large product of torch's takes, by element.
    """

    bandwidth: float | None
    rates: dict[str, float]

    @classmethod
    def of(cls, data: Data) -> Roofs:
        """Read a run's; of two ways to measure one, the better counts."""
        found = {name: roof["value"] for name, roof in data["roofs"].items() if "value" in roof}
        copies = [value for name, value in found.items() if name.startswith(COPY)]
        rates = {name: value for name, value in found.items() if not name.startswith(COPY)}
        return cls(max(copies, default=None), rates)


@attrs.frozen
class Measured:
    """One problem of one op, with times.

    Parameters
    ----------
    row, shape, m
        The problem, as `problems.Point` names it.
    sku : str
        What ran.
    nbytes, operations : int
        What it has to move and to compute.
    us : dict[str, float]
        Median microseconds of quantplan and of each peer.
    spread : float
        Distance of our quartiles, as a part of our median.
    roofs : Roofs
        Of the run.
    """

    row: str
    shape: str
    m: int
    sku: str
    nbytes: int
    operations: int
    us: dict[str, float]
    spread: float
    roofs: Roofs

    @property
    def peers(self) -> list[str]:
        """What it was timed beside, of others' making."""
        return [name for name in self.us if not name.startswith(OURS)]

    @property
    def others(self) -> list[str]:
        """What it was timed beside of our own: variants that were not selected."""
        return [name for name in self.us if name.startswith(f"{OURS} ")]

    @property
    def ours(self) -> float:
        """Our microseconds."""
        return self.us[OURS]

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.ours * 1e6

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second, as a part of what a copy moves."""
        top = self.roofs.bandwidth
        return None if top is None else self.nbytes / self.ours * 1e6 / top

    @property
    def floor(self) -> float | None:
        """Microseconds that a copy takes to move its bytes; None where it may be bound by its operations.

        It is where they take longer at the rate that was measured, or where that was not.
        """
        element, bandwidth = _RATES.get(self.row), self.roofs.bandwidth
        if bandwidth is None or (element is not None and element not in self.roofs.rates):
            return None
        moving = self.nbytes / bandwidth * 1e6
        computing = self.operations / self.roofs.rates[element] * 1e6 if element is not None else 0.0
        return moving if moving >= computing else None

    @property
    def fraction(self) -> float | None:
        """The floor, as a part of our time: 1 is as fast as a copy."""
        return None if self.floor is None else self.floor / self.ours

    def speedup(self, peer: str) -> float | None:
        """How many times as fast as a peer we are."""
        return self.us[peer] / self.ours if peer in self.us else None


def measured(data: Data) -> list[Measured]:
    """Return a run's points that have times, in the order of the ops, of their shapes and of M."""
    roofs = Roofs.of(data)
    found = []
    for key, answer in data["points"].items():
        if "us" in answer:
            row, shape, m = key.split(" | ")
            ours = answer["us"][OURS]
            medians = {name: sample["median"] for name, sample in answer["us"].items()}
            spread = (ours["high"] - ours["low"]) / ours["median"]
            what = answer["sku"], answer["bytes"], answer["operations"]
            found.append(Measured(row, shape, int(m), *what, medians, spread, roofs))
    order = {(row.name, shape.label): (i, j) for i, row in enumerate(ROWS) for j, shape in enumerate(row.shapes)}
    last = (len(ROWS), 0)
    return sorted(found, key=lambda point: (order.get((point.row, point.shape), last), point.m))
