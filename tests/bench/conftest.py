"""A pretended GPU that runs kernels on the emulated device, for the host code that measures on a real one; and days."""

import pytest

from quantplan.bench.runs import Run
from tests import fake_cupy
from tests.bench.days import MACHINE, Day, Worker


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Install one GPU of Hopper's architecture, whose launches all take 3 µs."""
    return fake_cupy.install_emulated(monkeypatch, tmp_path, fake_cupy.EmulatedGpus((9, 0)))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that makes a day whose workers answer what a function says."""

    def make(answer, *, smoke=False, target="cuda:0", **options):
        run = Run.begin(tmp_path / "out", target, smoke=smoke)
        run.data["machine"] = {"device": MACHINE["device"], "rows": {}}
        day = Day(run, target, tmp_path / "log", smoke, said.append, **options)
        worker = Worker(answer)
        monkeypatch.setattr(Day, "worker", lambda self, *prefix: worker)
        monkeypatch.setattr(Day, "workers", lambda self: [worker])
        day.asked = worker.asked
        return day

    said = []
    make.said = said
    return make
