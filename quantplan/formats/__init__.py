"""Weight formats: the layouts of quantized checkpoints, in and out, in plain NumPy.

Every 4-bit format is read into one form in memory, `Int4Weight`, and written from it; `marlin` then makes the words
that kernels load. FP8 checkpoints become an `Fp8Weight`. docs/formats.md draws each layout.

    weight = formats.gptq.from_gptq(qweight, qzeros, scales, g_idx, version=1, group_size=128)
    packed = formats.marlin.to_marlin(formats.padding.pad_to_supported(weight))

Files are read by `load_linear`, or `Checkpoint` for many linears of one, and converted by `repack`:

    packed = formats.load_linear("model.safetensors", "model.layers.0.mlp.down_proj").to_marlin(scale_element="f16")

Nothing here changes its inputs. Tensors come from files that somebody else wrote: each one is checked before memory of
its size is allocated, and what does not fit is refused with an `InvalidProblem` that names the tensor.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from quantplan.formats import awq, compressed_tensors, fp8, gptq, int4, marlin, padding

if TYPE_CHECKING:
    from quantplan.formats.checkpoint import Checkpoint, CheckpointLinear, LinearInfo, load_linear
    from quantplan.formats.repacking import Repacked, repack

_LATER = {
    **dict.fromkeys(("Checkpoint", "CheckpointLinear", "LinearInfo", "load_linear"), "checkpoint"),
    **dict.fromkeys(("Repacked", "repack"), "repacking"),
}

__all__ = [
    "Checkpoint",
    "CheckpointLinear",
    "LinearInfo",
    "Repacked",
    "awq",
    "compressed_tensors",
    "fp8",
    "gptq",
    "int4",
    "load_linear",
    "marlin",
    "padding",
    "repack",
]


def __getattr__(name: str) -> object:
    """Import what reads files when it is asked for: most programs never do."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
