"""Peers say why they are absent, and make one call for each set of operands."""

import pytest

from quantplan.bench.peers import PEERS, AbsentError, Bench, versions
from tests.bench.fake_torch import Torch


class Gpus:
    now = 0.0


@pytest.fixture
def bench():
    torch = Torch(Gpus())
    torch.current = "a stream"
    return Bench(torch, "cuda:0", 32, 64, 128, 3)


@pytest.mark.parametrize(
    "name, us",
    [
        ("torch f16", 20.0),
        ("torch bf16", 20.0),
        ("torch._int_mm", 8.0),
        ("torch._int_mm, scaled", 8.0),
        ("torch._scaled_mm", 9.0),
        ("torch._scaled_mm rows", 9.0),
    ],
)
def test_a_peer_makes_a_call_for_each_set(bench, name, us):
    calls = PEERS[name].prepare(bench)
    assert len(calls) == 3
    for call in calls:
        call()
    assert bench.torch.gpus.now == 3 * us


@pytest.mark.parametrize(
    "name, reason",
    [
        ("vLLM CUTLASS int8", "vLLM is not installed"),
        ("vLLM Marlin", "vLLM is not installed"),
        ("vLLM fp8 quantize", "vLLM is not installed"),
        ("DeepGEMM", "DeepGEMM is not installed"),
        ("humming W4A16", "humming is not installed"),
    ],
)
def test_a_library_that_is_missing_is_said_to_be(bench, monkeypatch, name, reason):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(AbsentError, match=reason):
        PEERS[name].prepare(bench)


def test_a_limit_of_torch_is_told_before_it_refuses(bench):
    small = Bench(bench.torch, "cuda:0", 16, 64, 128, 3)
    with pytest.raises(AbsentError, match="more than 16 rows"):
        PEERS["torch._int_mm"].prepare(small)


def test_every_package_has_a_version_or_is_absent():
    found = versions()
    assert set(found) == {peer.package for peer in PEERS.values()}
    assert all(found.values())
