"""Checkpoints for tests: written by the library safetensors where they are sound, byte by byte where they are not."""

import json
import struct

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from quantplan.formats import awq, compressed_tensors, gptq, marlin
from tests.formats.weights import random_weight

PREFIX = "model.layers.0.mlp.down_proj"

GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": True,
    "sym": False,
    "checkpoint_format": "gptq",
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32, "actorder": None}
GROUP = {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None, "output_activations": None}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": GROUP},
    "ignore": ["lm_head"],
}
MARLIN = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin", "sym": True}


def with_weights(**changes):
    """Return a configuration of compressed-tensors whose weights' scheme has other entries."""
    return COMPRESSED | {"config_groups": {"group_0": GROUP | {"weights": WEIGHTS | changes}}}


def to_ist_marlin(weight):
    """Return the tensors of Marlin's first packer."""
    packed = marlin.to_marlin(weight)
    return {"B": packed.weight_q, "s": packed.weight_scale, "workspace": np.zeros(16, np.int32)}


def gptq_case(rng, version, **kind):
    weight = random_weight(rng, 136, 40, 32, **kind)
    stated = {"checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    stated |= {"sym": weight.symmetric, "desc_act": weight.g_idx is not None}
    return weight, gptq.to_gptq(weight, version=version), GPTQ | stated


def awq_case(rng):
    weight = random_weight(rng, 132, 40, 32, symmetric=False)
    return weight, awq.to_awq(weight), AWQ


def compressed_case(rng, *, group_size=32, symmetric=False, act_order=False):
    weight = random_weight(rng, 133, 37, group_size, symmetric=symmetric, act_order=act_order, dtype=ml_dtypes.bfloat16)
    stated = {"symmetric": symmetric, "actorder": "group" if act_order else None}
    stated |= {"strategy": "channel", "group_size": None} if group_size == -1 else {}
    return weight, compressed_tensors.to_compressed_tensors(weight), with_weights(**stated)


def marlin_case(rng, group_size):
    weight = random_weight(rng, 144, 128, group_size)
    return weight, to_ist_marlin(weight), MARLIN | {"group_size": group_size}


CASES = {
    "gptq v1, act-order": lambda rng: gptq_case(rng, 1, symmetric=False, act_order=True),
    "gptq v1, symmetric": lambda rng: gptq_case(rng, 1),
    "gptq v2": lambda rng: gptq_case(rng, 2, symmetric=False),
    "awq": awq_case,
    "compressed-tensors": compressed_case,
    "compressed-tensors, channels": lambda rng: compressed_case(rng, group_size=-1, symmetric=True),
    "compressed-tensors, act-order": lambda rng: compressed_case(rng, act_order=True),
    "marlin": lambda rng: marlin_case(rng, 48),
    "marlin, one group": lambda rng: marlin_case(rng, -1),
}
"""Weight, its tensors and the configuration, of every kind of checkpoint."""


def named(tensors, prefix=PREFIX):
    return {f"{prefix}.{name}": np.ascontiguousarray(array) for name, array in tensors.items()}


def write_config(folder, config, name="config.json"):
    content = {"model_type": "llama", "quantization_config": config} if name == "config.json" else config
    (folder / name).write_text(json.dumps(content))


def write_checkpoint(folder, tensors, config, file="model.safetensors"):
    """Write a file of tensors and the configuration beside it; return the file's path."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    if config is not None:
        write_config(folder, config)
    return folder / file


def write_shards(folder, shards, config):
    """Write a sharded checkpoint, and its index; return the folder."""
    folder.mkdir(exist_ok=True)
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, tensors in zip(files, shards, strict=True):
        save_file(tensors, folder / file)
    placed = {name: file for file, tensors in zip(files, shards, strict=True) for name in tensors}
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_config(folder, config)
    return folder


def raw(path, header, data=b"", length=None):
    """Write a file byte by byte: a header that may be anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
