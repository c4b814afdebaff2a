"""The emulator's benchmark runs every kind of schedule on a kernel whose answer it checks."""

import json

import pytest

from quantplan.bench import emulator


def test_the_result_file_has_a_row_for_each_kind_of_schedule(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(emulator, "ROWS", 3)
    assert emulator.main(["--rounds", "1", "--results", str(tmp_path / "new")]) == 0
    (path,) = (tmp_path / "new").iterdir()
    assert capsys.readouterr().out.strip() == str(path)
    data = json.loads(path.read_text())
    kinds = [(row["schedule"]["checked"], row["schedule"]["order"]) for row in data["rows"]]
    assert kinds == [(checked, order) for checked in (False, True) for order in ("ascending", "random")]
    for row in data["rows"]:
        assert row["threads_per_second"] == pytest.approx(3 * emulator.THREADS / row["ms"] * 1e3)
    assert data["machine"]["cpu_count"] >= 1
