"""The reference benchmark measures what it says and writes it with the machine it was measured on."""

import json
import sys
import time

import pytest

from quantplan.bench import reference, tables


def test_interleaving_reports_the_median_of_each_function():
    calls = []
    slow, fast = reference.interleaved(
        lambda: (calls.append("slow"), time.sleep(0.02)), lambda: calls.append("fast"), rounds=3
    )
    assert calls == ["slow", "fast"] * 4, "one warm-up and three rounds, in turn"
    assert slow >= 20 > fast


def test_machine_names_what_times_depend_on():
    machine = reference.machine()
    assert machine["cpu"]
    assert machine["cpu_count"] >= 1
    assert machine["blas_threads"] >= 1
    assert json.loads(json.dumps(machine)) == machine


def test_missing_threadpoolctl_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(SystemExit, match=r"quantplan\[bench\]"):
        reference.machine()


def test_result_file_feeds_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "SHAPES", ((2, 8, 16), (3, 5, 7)))
    assert reference.main(["--rounds", "2", "--results", str(tmp_path / "new")]) == 0
    path = next((tmp_path / "new").glob("reference-*.json"))
    assert capsys.readouterr().out.strip() == str(path)
    data = json.loads(path.read_text())
    assert [(row["m"], row["n"], row["k"]) for row in data["gemm"]] == [(2, 8, 16), (3, 5, 7)]
    for row in data["gemm"]:
        assert row["ratio"] == row["ms"] / row["f32_ms"]
    for row in data["gemm"] + data["ops"]:
        assert row["ms"] > 0
        assert len(row["source_digest"]) == 64
    assert "W8A8 linear, 3 × 5 × 7" in tables.reference(data)
