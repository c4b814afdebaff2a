"""Weight formats: the layouts of quantized checkpoints, in and out, in plain NumPy.

Every 4-bit format is read into one form in memory, `Int4Weight`, and written from it; `marlin` then makes the words
that kernels load. FP8 checkpoints become an `Fp8Weight`. docs/formats.md draws each layout.

    weight = formats.gptq.from_gptq(qweight, qzeros, scales, g_idx, version=1, group_size=128)
    packed = formats.marlin.to_marlin(formats.padding.pad_to_supported(weight))

Nothing here changes its inputs. Tensors come from files that somebody else wrote: each one is checked before memory of
its size is allocated, and what does not fit is refused with an `InvalidProblem` that names the tensor.
"""

from quantplan.formats import awq, compressed_tensors, fp8, gptq, int4, marlin, padding

__all__ = ["awq", "compressed_tensors", "fp8", "gptq", "int4", "marlin", "padding"]
