"""Files of runs: written whole, found again, and taken for results only where a GPU measured them."""

import json

import pytest

from quantplan.bench import runs
from quantplan.bench.runs import Run
from tests.bench import synthetic


@pytest.fixture
def begun(tmp_path):
    return Run.begin(tmp_path, "cuda:0", smoke=False)


def put(folder, name, data):
    (folder / name).write_text(json.dumps(data), encoding="utf-8")


def test_a_run_holds_the_digest_of_every_familys_sources(begun):
    assert begun.data["sources"] == runs.sources()
    assert set(begun.data["kernels"].values()) == set(begun.data["sources"])
    assert begun.data["kernels"]["quantize.elementwise"] == "quantize.cu"
    assert runs.kernel_of("quantize.elementwise.bf16.s8.f32.tensor.symmetric") == "quantize.elementwise"


def test_files_are_named_after_the_device_and_never_overwritten(tmp_path, begun):
    begun.name("NVIDIA H200")
    again = Run.begin(tmp_path, "cuda:0", smoke=False)
    again.name("NVIDIA H200")
    date = begun.data["date"]
    assert [p.name for p in sorted(tmp_path.iterdir(), key=lambda p: len(p.name))] == [
        f"gpu-nvidia-h200-{date}.json",
        f"gpu-nvidia-h200-{date}-2.json",
    ]


@pytest.mark.parametrize("target, smoke", [("cuda:0", True), ("emulated:sm_90a", True), ("emulated:sm_90a", False)])
def test_what_is_no_result_is_not_named_like_one(tmp_path, target, smoke):
    run = Run.begin(tmp_path, target, smoke=smoke)
    run.name("some device")
    assert run.path.name.startswith("smoke-some-device-")
    assert runs.load(tmp_path) == []


def test_writing_replaces_the_whole_file(begun, tmp_path):
    begun.name("x")
    begun.data["points"]["p"] = 1
    begun.save()
    assert runs.read(begun.path)["points"] == {"p": 1}
    assert list(tmp_path.glob(".*")) == []


def test_ticks_write_at_most_once_a_second(begun):
    now = [0.0]
    begun.clock = lambda: now[0]
    begun.name("x")
    for number in range(5):
        begun.data["points"][str(number)] = 1
        now[0] += 0.4
        begun.tick()
    assert set(runs.read(begun.path)["points"]) == {"0", "1", "2"}


def test_results_come_oldest_first(tmp_path):
    real = synthetic.run()
    del real["synthetic"]
    for date, number in (("2031-02-03", ""), ("2031-02-03", "-2"), ("2031-02-03", "-10"), ("2030-12-31", "")):
        put(tmp_path, f"gpu-abacus-{date}{number}.json", {**real, "quantplan": f"{date}{number}"})
    assert [data["quantplan"] for data in runs.load(tmp_path)] == [
        "2030-12-31",
        "2031-02-03",
        "2031-02-03-2",
        "2031-02-03-10",
    ]


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"synthetic": True}, "is synthetic, and is no result"),
        ({"synthetic": False, "smoke": True}, "was not measured on a GPU"),
        ({"synthetic": False, "target": "emulated:sm_90a"}, "was not measured on a GPU"),
        ({"schema": 99}, "expected schema 1, got 99"),
    ],
)
def test_what_is_no_result_is_refused_among_results(tmp_path, changes, reason):
    put(tmp_path, "gpu-abacus-2031-02-03.json", synthetic.run(**changes))
    with pytest.raises(ValueError, match=reason):
        runs.load(tmp_path)


def test_a_run_goes_on_with_the_newest_of_the_same_kernels(tmp_path, begun):
    assert runs.latest(tmp_path, "cuda:0", smoke=False) is None
    begun.name("x")
    assert runs.latest(tmp_path, "cuda:0", smoke=False) == begun.path
    assert runs.latest(tmp_path, "cuda:0", smoke=True) is None
    assert runs.latest(tmp_path, "cuda:1", smoke=False) is None
    begun.data["sources"] = {**begun.data["sources"], "quantize.cu": "another"}
    begun.save()
    assert runs.latest(tmp_path, "cuda:0", smoke=False) is None


def test_a_run_never_goes_on_with_what_is_synthetic_or_something_else(tmp_path):
    put(tmp_path, "gpu-abacus-2031-02-03.json", synthetic.run())
    put(tmp_path, "list.json", [1])
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    assert runs.latest(tmp_path, "cuda:0", smoke=False) is None


def test_kernels_are_ranked_by_what_results_know_of_them():
    data, other = synthetic.run(), synthetic.run()
    ranks = runs.ranks([data])
    assert ranks["quantize.elementwise"] == ranks["dynamic_range_quantize.within_rows"] == 2
    assert {rank for kernel, rank in ranks.items() if "quantize" not in kernel} == {0}
    other["sources"] = {**data["sources"], "quantize.cu": "another digest"}
    assert runs.ranks([other])["quantize.elementwise"] == 1
    assert runs.ranks([data, other])["quantize.elementwise"] == 2
    assert runs.ranks([]) == dict.fromkeys(runs.kernels(), 0)
