"""The machine is described by what CUDA and nvidia-smi say of it, and nothing is made up where they are missing."""

import subprocess
from types import SimpleNamespace

import quantplan as qp
from quantplan.bench import machine

PROPERTIES = {"name": b"Abacus 9000", "multiProcessorCount": 7, "totalGlobalMem": 2**35, "l2CacheSize": 2**16}
TARGET = qp.Target(kind="cuda", capability=(9, 0))
SAID = "580.1, 345 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 700.00 W, 33, Enabled, Disabled\n"


def test_a_gpu_has_name_sizes_and_clocks(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"bin/{name}")
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **options: SimpleNamespace(stdout=SAID))
    found = machine.describe(TARGET, PROPERTIES)
    device = found["device"]
    assert (device["name"], device["arch"], device["sms"], device["l2_bytes"]) == ("Abacus 9000", "sm_90a", 7, 65536)
    assert (device["driver_version"], device["clocks.sm"], device["clocks.max.sm"]) == ("580.1", "345 MHz", "1980 MHz")
    assert found["software"]["numpy"]
    assert "torch" in found["peers"]


def test_without_nvidia_smi_there_are_no_clocks(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert machine.clocks(0) == {}


def test_an_nvidia_smi_that_fails_says_nothing(monkeypatch):
    def fails(*args, **options):
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(machine.subprocess, "run", fails)
    assert machine.clocks(0) == {}


def test_the_emulated_device_is_called_that():
    found = machine.describe(qp.Target.parse("emulated:sm_90a"), {})
    assert found["device"] == {"name": "emulated:sm_90a", "arch": "sm_90a"}
