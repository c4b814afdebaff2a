"""Files of results that are not of a GPU, as their tables' tests need them."""

MACHINE = {"cpu": "Abacus 9", "cpu_count": 2, "blas_threads": 1, "numpy": "2.4.6"}
RECIPES = {
    "date": "2031-02-03",
    "machine": MACHINE,
    "model": "Tiny-1M",
    "layers": 3,
    "rows": [
        {
            "recipe": "fp32",
            "perplexity": 20.5,
            "top1_agreement": 1.0,
            "weight_bytes": 540_000_000,
            "tokens_per_second": 12.34,
        },
        {
            "recipe": "w8a8-smoothquant",
            "perplexity": 21.256,
            "top1_agreement": 0.8751,
            "weight_bytes": 135_000_000,
            "tokens_per_second": 7,
        },
    ],
}
REFERENCE = {
    "date": "2031-02-03",
    "machine": MACHINE,
    "gemm": [{"m": 1, "n": 4096, "k": 576, "ms": 1.5, "f32_ms": 0.75, "ratio": 2.0}],
    "ops": [{"name": "FP8 cast", "m": 1024, "k": 1024, "ms": 8.123}],
}
SCALED_TENSORS = {
    "date": "2031-02-03",
    "what": "Tiny-1M, layer 0, q, 64 × 64, on cpu",
    "rows": [
        {
            "recipe": "MXFP8BlockScaling",
            "bits": 8.25,
            "error": 0.0265,
            "bound": 0.0588,
            "worst": 0.9999,
            "product_error": 0.02794,
        }
    ],
}
