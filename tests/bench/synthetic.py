"""A run that nobody made: figures for tests of reports, marked as such. It must never be shown as a result."""

from quantplan.bench import runs

DEVICE = {"name": "Abacus 9000", "arch": "sm_90a", "sms": 7, "l2_bytes": 65536, "driver_version": "580.1"}
SKUS = (
    "dynamic_range_quantize.within_rows.bf16.s8.f32.token.symmetric",
    "quantize.elementwise.bf16.s8.f32.tensor.symmetric",
)


def times(**medians):
    """Return samples as a run keeps them."""
    return {n.replace("__", " "): {"median": t, "low": t * 0.99, "high": t * 1.02, "n": 25} for n, t in medians.items()}


def run(date="2031-02-03", **changes):
    """Return a whole run's data."""
    data = {
        "schema": runs.SCHEMA,
        "synthetic": True,
        "date": date,
        "target": "cuda:0",
        "smoke": False,
        "quantplan": "0.0.0",
        "sources": runs.sources(),
        "kernels": runs.kernels(),
        "stages": {
            **{
                stage: {"status": "done", "allotted_s": 9.0, "spent_s": 4.0}
                for stage in ("machine", "tests", "guarantees", "sanitizers")
            },
            "benchmarks": {"status": "cut", "allotted_s": 9.0, "spent_s": 9.0, "reason": "its share was over"},
        },
        "machine": {"device": DEVICE, "software": {"numpy": "2.4"}, "peers": {"torch": "2.11"}, "rows": {}},
        "roofs": {
            "copy": {"value": 4e12, "unit": "bytes/s", "means": "cudaMemcpyAsync"},
            "bf16": {"value": 8e14, "unit": "op/s", "means": "torch"},
            "int8": {"value": 1.6e15, "unit": "op/s", "means": "torch"},
            "fp8": {"absent": "torch is not installed"},
        },
        "tests": {"passed": 90, "failed": {}, "skipped": {"torch is not installed": 1}},
        "guarantees": {
            "some": {"plans": [{"sku": sku, "cases": 40, "mismatches": 0} for sku in SKUS], "problems": []},
        },
        "exercises": {"quantize s8 token | 8192 | 16": {"skus": [SKUS[0]], "wrong": {}}},
        "sanitizers": {
            "memcheck": {
                "exit_code": 0,
                "found": False,
                "ran": ["quantize s8 static", "quantize s8 token"],
                "wrong": {},
                "complete": True,
                "first_lines": [],
            }
        },
        "host": {"launch": {"us": times(run=7.5, bound__run=3.5, cuLaunchKernel__alone=2.0), "compile_s": 0.4}},
        "points": {
            "quantize s8 token | 8192 | 8192": {
                "sku": SKUS[0],
                "bytes": 201_359_360,
                "operations": 0,
                "sets": 4,
                "us": times(quantplan=52.0, torch__eager__int8=520.0),
                "absent": {"vLLM int8 quantize": "vLLM is not installed"},
            },
            "quantize s8 token | 8192 | 16": {
                "sku": SKUS[0],
                "bytes": 393_280,
                "operations": 0,
                "sets": 4,
                "us": times(quantplan=2.6),
                "absent": {},
            },
            "quantized_linear int8 | 8192 × 8192 | 16": {
                "sku": "quantized_linear.some.s8.bf16.identity",
                "bytes": 67_534_912,
                "operations": 2 * 16 * 8192 * 8192,
                "sets": 4,
                "us": times(quantplan=20.0, torch__bf16=44.0),
                "absent": {},
            },
            "quantized_linear int8 | 8192 × 8192 | 4096": {"unsupported": "no variant runs this"},
        },
    }
    return {**data, **changes}
