"""The table says what the compiler said of each launch, and its file which sources that was."""

import json

import pytest

from quantplan.bench import resources


@pytest.fixture(scope="module")
def measured():
    """Compile two of the main problems."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "PROBLEMS", (resources.PROBLEMS[0], resources.PROBLEMS[5]))
        return resources.measure(1)


def test_the_table_has_a_line_per_launch(measured):
    lines = resources.table(measured).splitlines()
    token, *tensor = (line for line in lines if line.startswith("| ") and "`" in line)
    code = measured["rows"][0]["kernels"][0]["code"]
    start = "| `dynamic_range_quantize.within_rows.bf16.s8.f32.token.symmetric` | `quantize_segments` |"
    assert token.startswith(f"{start} {code['registers']} | 16 B | 0 |")
    assert token.endswith("| 1.00 |")
    assert [line.split("|")[2].strip() for line in tensor] == ["`ranges`", "`quantize_joined`"]
    assert [line.split("|")[-2].strip() for line in tensor] == ["1.67", ""]


def test_the_table_names_its_architecture_compiler_and_date(measured):
    last = resources.table(measured).splitlines()[-1]
    assert f"sm_90a, NVRTC {measured['nvrtc']}, compiled {measured['date']}." in last


def test_results_are_kept_as_data_with_the_digests_of_their_sources(tmp_path, measured, monkeypatch, capsys):
    monkeypatch.setattr(resources, "measure", lambda processes: measured)
    assert resources.main(["--results", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("resources-*.json")
    assert json.loads(path.read_text(encoding="utf-8")) == measured
    assert measured["sources"] == resources.digests()
    assert capsys.readouterr().out.strip() == str(path)
