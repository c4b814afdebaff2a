"""What a page says of GPUs: nothing where nothing ran, and only what ran where something did."""

import re

from quantplan.bench import silicon
from quantplan.bench.page import markdown
from tests.bench import synthetic


def page(*results):
    return markdown(silicon.sections(results), "figures")


def test_without_results_the_page_says_so_and_has_no_figure():
    text = page()
    assert "No speed has been measured on a GPU yet" in text
    assert "| `fp8_gemm.mma-16x32` | `fp8_gemm.cu` | never |  |" in text
    assert not re.search(r"µs|TB/s|%", text)
    assert silicon.summary([]) == "No GPU has run quantplan yet: there are no figures."


def test_a_page_has_times_fractions_speedups_and_goals():
    text = page(synthetic.run())
    assert "| quantize s8 token | 8192 | 8192 | 52.0 µs ± 2% | 3.87 |  | 97% |" in text
    assert "- quantize fp8 token: quantplan had no such op" not in text, "what rows there were is not known"
    assert "| 8192, M = 8192 | 10.00 |" in text
    assert "| host, bound run, beyond the driver's call | ≤ 3.0 µs | 1.5 µs | 1 | met |" in text
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


def test_the_readme_has_the_newest_run_beside_the_fastest_peer_that_does_all_of_the_work():
    data = synthetic.run()
    data["points"]["quantized_linear int8 | 8192 × 8192 | 16"]["us"] |= synthetic.times(
        torch__f16=43.0, quantplan__other=1.0
    )
    data["points"]["quantized_linear int8 | 8192 × 8192 | 16"]["us"]["torch._int_mm"] = {"median": 30.0}
    text = silicon.summary([synthetic.run("2030-05-05"), data])
    assert "| quantized_linear int8, 8192 × 8192 | 16 | 20.0 µs | 84% |  | 2.15 × torch f16 |" in text
    assert "Measured 2031-02-03 on Abacus 9000, copy bandwidth 4.00 TB/s" in text
    assert "8192 | 8192 |" not in text, "only few M"


def test_the_readme_says_what_has_no_figure():
    text = silicon.summary([synthetic.run()])
    assert "Absent peers: vLLM int8 quantize." in text
    ops = text.partition("Not run on a GPU: ")[2]
    assert ops.endswith(".")
    assert {"`dequantize`", "`fp8_gemm`", "`repack_marlin`"} <= set(ops.rstrip(".").split(", "))
    assert "`quantize`" not in ops
    assert "`dynamic_range_quantize`" not in ops


def test_the_readme_says_whether_kernels_are_still_what_was_measured():
    data = synthetic.run()
    assert "have changed since" not in silicon.summary([data])
    data["sources"] = {**data["sources"], "quantize.cu": "another digest"}
    assert "Sources of kernels have changed since." in silicon.summary([data])


def test_what_its_operations_bound_has_them_a_second_and_no_fraction():
    data = synthetic.run()
    given = data["points"]["quantized_linear int8 | 8192 × 8192 | 16"]
    operations = 2 * 4096 * 8192 * 8192
    data["points"]["quantized_linear int8 | 8192 × 8192 | 4096"] = {**given, "operations": operations}
    rate = f"{operations / 20e-6 / 1e12:.0f}"
    assert f"| 4096 | 20.0 µs |  | {rate} | 2.20 × torch bf16 |" in silicon.summary([data])
    assert f" | 3.38 | {rate} |  |" in page(data)


def test_ops_without_kernels_and_ops_that_came_later_are_told():
    data = synthetic.run()
    data["machine"] = {**data["machine"], "rows": {"quantize s8 token": "", "fp8_gemm mx": "runs on cpu only"}}
    text = page(data)
    assert "When this ran there was no kernel for:\n\n- fp8_gemm mx: runs on cpu only\n- quantize fp8 token:" in text
    assert "- quantize s8 token:" not in text


def test_the_log_of_the_tests_is_summed_up():
    tests = {
        "passed": 3,
        "failed": {},
        "skipped": {"no  such\nthing": 1},
        "not run": {"time was over": 2},
        "files": {
            "tests/gpu/test_ptx.py": {"passed": 3, "skipped": 1, "s": 4.2},
            "tests/gpu/test_x.py": {"not run": 2, "s": 0},
        },
        "properties": {"tests/gpu/test_ptx.py::test_a": {"e4m3xe4m3 truncated": "100.00 % equal"}},
    }
    text = page(synthetic.run(tests=tests))
    assert "| `tests/gpu/test_ptx.py` | 3 | 0 | 1 | 0 | 4 |" in text
    assert "| all | 3 | 0 | 1 | 2 | 4 |" in text
    assert "Skipped:\n\n- 1 × no such thing" in text
    assert "Not run:\n\n- 2 × time was over" in text
    assert "| e4m3xe4m3 truncated | 100.00 % equal |" in text


def test_without_matplotlib_the_page_tells_how_to_get_plots(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'quantplan[demo]'" in page(synthetic.run())
