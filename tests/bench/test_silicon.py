"""What a page says of GPUs: nothing where nothing ran, and only what ran where something did."""

import re

import pytest

from quantplan.bench import silicon
from quantplan.bench.page import markdown
from tests.bench import synthetic

KERNEL = "dynamic_range_quantize.within_rows"


def status(results, kernel=KERNEL):
    return next(v for v in silicon.validations(results) if v.kernel == kernel)


def page(*results):
    return markdown(silicon.sections(results), "figures")


def test_without_results_the_page_says_so_and_has_no_figure():
    text = page()
    assert "No speed has been measured on a GPU yet" in text
    assert {v.status for v in silicon.validations([])} == {"never"}
    assert not re.search(r"µs|TB/s|%", text)
    assert silicon.summary([]) == "No GPU has run quantplan yet: there are no figures."


def test_a_kernel_that_kept_its_guarantees_is_validated():
    found = status([synthetic.run()])
    assert (found.status, found.detail) == ("yes", "1 SKUs, 40 cases; Abacus 9000, 2031-02-03")
    assert status([synthetic.run()], "dequantize.elementwise").status == "never"


def test_a_kernel_whose_sources_have_changed_is_not():
    data = synthetic.run()
    data["sources"] = {**data["sources"], "dynamic_range_quantize.cu": "another digest"}
    assert status([data]).status == "source changed since"
    assert status([data], "quantize.elementwise").status == "yes", "its sources are the same"


def test_of_several_runs_the_newest_of_the_same_sources_counts():
    old, changed = synthetic.run("2031-01-01"), synthetic.run("2031-02-02")
    changed["sources"] = {**changed["sources"], "dynamic_range_quantize.cu": "another digest"}
    assert status([old, changed]).detail.endswith("2031-01-01")
    newer = synthetic.run("2031-03-03")
    assert status([old, changed, newer]).detail.endswith("2031-03-03")


@pytest.mark.parametrize(
    "changes",
    [
        {"guarantees": {"some": {"plans": [], "problems": [f"{KERNEL}.bf16.s8: breaks its guarantee, e.g. x"]}}},
        {"tests": {"passed": 3, "failed": {"tests/gpu/test_ptx.py::test_mma": "differ"}, "skipped": {}}},
        {"exercises": {"row | shape | 16": {"skus": [], "wrong": {f"{KERNEL}.bf16.s8 q": 3}}}},
        {"sanitizers": {"racecheck": {"exit_code": 86, "found": True, "wrong": {}, "first_lines": ["race"]}}},
    ],
)
def test_whatever_failed_it_is_not_validated(changes):
    data = synthetic.run(**changes)
    assert status([data]).status == "no"
    assert "Abacus 9000" in status([data]).detail


def test_another_kernels_fault_is_not_held_against_it():
    problem = "quantize.elementwise.bf16.s8: breaks its guarantee"
    data = synthetic.run()
    data["guarantees"]["other"] = {"plans": [], "problems": [problem]}
    assert status([data]).status == "yes"
    assert status([data], "quantize.elementwise").status == "no"


def test_a_page_has_times_fractions_speedups_and_goals():
    text = page(synthetic.run())
    assert "| quantize s8 token | 8192 | 8192 | 52.0 µs ± 2% | 3.87 |  | 97% |" in text
    assert "| 8192, M = 8192 | 10.00 |" in text
    assert "| host, bound run | ≤ 3.0 µs | 3.5 µs | 1 | missed |" in text
    assert "| W4A16, M = 32 | ≥ 2.70 × torch f16 |  |  | not measured |" in text
    assert "- vLLM int8 quantize: vLLM is not installed" in text
    assert "![What each op reaches of the roofs of Abacus 9000](figures/roofline-abacus-9000.svg)" in text
    assert "| benchmarks | cut | 9 |" in text


def test_beside_the_peers_stand_all_rows_of_the_first_shape_and_few_of_the_others():
    data = synthetic.run()
    point = data["points"]["quantize s8 token | 8192 | 8192"]
    for m in (2, 16):
        data["points"] |= {f"quantize s8 token | {shape} | {m}": point for shape in ("8192", "Llama-3 8B")}
    text = page(data)
    assert "| 8192, M = 2 | 10.00 |" in text
    assert "| Llama-3 8B, M = 16 | 10.00 |" in text
    assert "Llama-3 8B, M = 2 " not in text


def test_warm_clocks_stand_on_the_page():
    data = synthetic.run()
    data["machine"] = {**data["machine"], "clocks after benchmarks": {"clocks.sm": "1980 MHz", "temperature.gpu": "50"}}
    assert "After the benchmarks: clocks.sm 1980 MHz." in page(data)


def test_a_synthetic_run_is_marked_wherever_it_is_shown():
    assert "synthetic: nobody measured this" in page(synthetic.run())


def test_failures_stand_on_the_page():
    text = page(synthetic.run(roofs={"copy": {"error": "hung"}}))
    assert "**What failed:**\n\n- roofs: copy: hung" in text


def test_each_gpu_has_its_newest_run_shown():
    other = synthetic.run("2031-01-01")
    other["machine"] = {**other["machine"], "device": {**synthetic.DEVICE, "name": "Older 1"}}
    text = page(synthetic.run("2030-05-05"), other, synthetic.run())
    assert "Measured on Abacus 9000 (2031-02-03), Older 1 (2031-01-01)." in text
    assert "2030-05-05" not in text


def test_the_readme_has_the_newest_run_beside_the_fastest_peer():
    data = synthetic.run()
    data["points"]["quantized_linear int8 | 8192 × 8192 | 16"]["us"] |= synthetic.times(
        torch__f16=43.0, quantplan__other=1.0
    )
    text = silicon.summary([synthetic.run("2030-05-05"), data])
    assert "| quantized_linear int8, 8192 × 8192 | 16 | 20.0 µs | 84% | 2.15 × torch f16 |" in text
    assert "Measured 2031-02-03 on Abacus 9000, copy bandwidth 4.00 TB/s" in text
    assert "8192 | 8192 |" not in text, "only few M"


def test_without_matplotlib_the_page_tells_how_to_get_plots(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'quantplan[demo]'" in page(synthetic.run())
