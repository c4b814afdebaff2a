"""A pretended GPU that runs kernels on the emulated device, for the host code that measures on a real one."""

import pytest

from tests import fake_cupy


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Install one GPU of Hopper's architecture, whose launches all take 3 µs."""
    return fake_cupy.install_emulated(monkeypatch, tmp_path, fake_cupy.EmulatedGpus((9, 0)))
