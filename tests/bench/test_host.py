"""The host benchmark measures every kind of call, and says which goals are missed."""

import json
import time

import pytest

from quantplan.bench import host


@pytest.fixture
def quick(monkeypatch):
    """Take one call for a round, and give it the time that the test says."""
    times = {}
    monkeypatch.setattr(host, "microseconds", lambda call, *, calls, rounds: times.setdefault(call(), 1.0) or 1.0)
    return times


def test_the_time_of_a_call_is_the_median_over_rounds():
    assert 900 < host.microseconds(lambda: time.sleep(1e-3), calls=3, rounds=3) < 100_000


def test_every_case_is_measured_and_written(capsys, quick, tmp_path):
    assert host.main(["--rounds", "1", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for name in ("bound run", "validated run", "partial bind's run", "cached select", "ctypes call"):
        assert f"{name} " in out
    assert out.count(": met") == len(host.GOALS)
    (path,) = tmp_path.glob("host-*.json")
    written = json.loads(path.read_text())
    assert written["microseconds"].keys() >= host.GOALS.keys()


def test_a_missed_goal_is_said_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(host, "microseconds", lambda call, *, calls, rounds: 9.0)
    assert host.main([]) == 1
    out = capsys.readouterr().out
    assert "goal 3: missed by 6.0" in out
    assert "goal 8: missed by 1.0" in out
    assert "goal 100: met" in out
