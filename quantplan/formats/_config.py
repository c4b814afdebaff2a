"""What a checkpoint's configuration says about its linears, module by module: the scheme that each was quantized by.

    config.json            its quantization_config, of transformers, vLLM and compressed-tensors
    quantize_config.json   of AutoGPTQ and GPTQModel; quant_config.json of AutoAWQ

Nothing here looks at a tensor. Whatever would change the numbers and is not known here is refused by its name.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.errors import InvalidProblem
from quantplan.formats import _json
from quantplan.formats._patterns import matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

OP = "load_linear"
FILES = ("config.json", "quantize_config.json", "quant_config.json")

_HINT = "config={…} gives entries that the files lack, on the command line --config"
_GPTQ_VERSIONS = {"gptq": 1, "gptq_v2": 2}
_UNUSED = ("input_activations", "output_activations")


class Format(enum.Enum):
    """Where a linear's tensors come from, which tells their layout."""

    GPTQ = "gptq"
    AWQ = "awq"
    COMPRESSED_TENSORS = "compressed-tensors"
    MARLIN = "marlin"
    QUANTPLAN = "quantplan"


@attrs.frozen(kw_only=True)
class Scheme:
    """What is known of a linear before one looks at its tensors; None: the configuration does not say.

    Parameters
    ----------
    format : Format
    bits : int
    group_size : int, optional
    version : int, optional
        Of GPTQ's zero points: 1 or 2.
    symmetric : bool, optional
    act_order : bool, optional
    """

    format: Format
    bits: int = 4
    group_size: int | None = None
    version: int | None = None
    symmetric: bool | None = None
    act_order: bool | None = None


def read_config(folder: Path, given: Mapping[str, Any] | None = None) -> _json.Section:
    """Return the configuration of a folder's checkpoint; an empty one where there is none.

    Parameters
    ----------
    folder : pathlib.Path
    given : mapping, optional
        Entries that count more than the file's.

    Raises
    ------
    InvalidProblem
        A file that is no JSON, or has a key twice; entries that no JSON has.
    """
    found = _json.Section({}, op=OP, where="config", file=folder)
    for name in FILES:
        path = folder / name
        if path.is_file():
            whole = _json.Section(_json.read(path, op=OP, field="config"), op=OP, where="", file=path)
            found = _quantization(whole) if name == FILES[0] else whole
            if found.data:
                break
    return found if given is None else found.with_(_json.given(given, op=OP, field="config"))


def scheme(config: _json.Section, prefix: str, tensors: Sequence[Format]) -> Scheme:
    """Return how a linear was quantized.

    Parameters
    ----------
    config : Section
        Of `read_config`.
    prefix : str
        The module's name.
    tensors : sequence of Format
        Whose its tensors may be, the likeliest first.

    Raises
    ------
    InvalidProblem
        The configuration lacks something, contradicts the tensors, or says what is not known here.
    """
    declared = declared_format(config) or tensors[0]
    if declared not in tensors:
        got = " or ".join(kind.value for kind in tensors)
        where = f"in {config.file}"
        raise InvalidProblem(where, op=OP, field=prefix, expected=f"tensors of {declared.value}", got=f"those of {got}")
    return _SCHEMES[declared](config, prefix)


def declared_format(config: _json.Section) -> Format | None:
    """Return the format that the configuration states, if it states one."""
    method = config.text("quant_method", "method")
    if config.flag("is_marlin_format") or config.text("checkpoint_format", "format") == Format.MARLIN.value:
        return Format.MARLIN
    known = {str(kind.value): kind for kind in Format}
    if method is None:
        return Format.COMPRESSED_TENSORS if "config_groups" in config else None
    if method.lower() not in known:
        config.refuse("quant_method" if "quant_method" in config else "method", f"one of {', '.join(known)}")
    return known[method.lower()]


def _gptq(config: _json.Section, prefix: str) -> Scheme:
    config = _overridden(config, prefix)
    _refuse_unconverted(config, prefix)
    stated = config.text("checkpoint_format", "format")
    if stated is not None and stated not in _GPTQ_VERSIONS:
        config.refuse("checkpoint_format" if "checkpoint_format" in config else "format", "gptq, gptq_v2 or marlin")
    return Scheme(
        format=Format.GPTQ,
        bits=_needed(config, "bits"),
        group_size=_needed(config, "group_size"),
        version=None if stated is None else _GPTQ_VERSIONS[stated],
        symmetric=config.flag("sym"),
        act_order=config.flag("desc_act"),
    )


def _overridden(config: _json.Section, prefix: str) -> _json.Section:
    """Return the configuration of one module: GPTQModel's ``dynamic`` overrides entries by patterns of names."""
    dynamic = config.section("dynamic")
    for pattern in dynamic.data:
        if not matches(pattern.removeprefix("-:").removeprefix("+:"), prefix, dynamic, pattern):
            continue
        if pattern.startswith("-:"):
            _contradiction(dynamic.name(pattern), prefix)
        return config.with_(dynamic.section(pattern).data)
    return config


def _awq(config: _json.Section, prefix: str) -> Scheme:
    _refuse_unconverted(config, prefix)
    version = config.text("version", "format")
    if version is not None and version.lower() != "gemm":
        config.refuse("version" if "version" in config else "format", "gemm")
    zero_point = config.flag("zero_point")
    return Scheme(
        format=Format.AWQ,
        bits=_needed(config, "bits", "w_bit"),
        group_size=_needed(config, "group_size", "q_group_size"),
        symmetric=True if zero_point is False else None,
    )


def _marlin(config: _json.Section, prefix: str) -> Scheme:
    config = _overridden(config, prefix)
    _refuse_unconverted(config, prefix)
    if config.flag("desc_act"):
        config.refuse("desc_act", "false: Marlin's checkpoints have no act-order")
    if config.flag("sym") is False:
        config.refuse("sym", "true: Marlin's checkpoints have no zero points")
    bits = config.integer("bits")
    return Scheme(
        format=Format.MARLIN, bits=4 if bits is None else bits, group_size=config.integer("group_size"), symmetric=True
    )


def _compressed_tensors(config: _json.Section, prefix: str) -> Scheme:
    for name in config.texts("ignore"):
        if _names(name, prefix, config, "ignore"):
            _contradiction(config.name("ignore"), prefix)
    for key in ("sparsity_config", "transform_config"):
        extra = config.section(key)
        if extra.data and extra.text("format") != "dense":
            config.refuse(key, "none: a weight is not all that it changes")
    group = _group_of(config, prefix)
    stated = group.text("format") or config.text("format")
    if stated not in (None, "pack-quantized"):
        (group if "format" in group else config).refuse("format", "pack-quantized")
    for key in _UNUSED:
        if group.section(key).data:
            group.refuse(key, "none: activations are not quantized by a weight-only product")
    weights = group.section("weights")
    if weights.text("type") not in (None, "int"):
        weights.refuse("type", "int")
    strategy = weights.text("strategy")
    if strategy not in ("group", "channel"):
        weights.refuse("strategy", "group or channel")
    return Scheme(
        format=Format.COMPRESSED_TENSORS,
        bits=_needed(weights, "num_bits"),
        group_size=_needed(weights, "group_size") if strategy == "group" else -1,
        symmetric=weights.flag("symmetric"),
        act_order=_actorder(weights),
    )


def _actorder(weights: _json.Section) -> bool:
    """Whether rows are stored out of order. With "weight" they were put in order again when the file was written."""
    stated = weights.data.get("actorder")
    if isinstance(stated, str):
        stated = {"group": True, "dynamic": True, "weight": False, "static": False}.get(stated.lower(), stated)
    if stated is not None and not isinstance(stated, bool):
        weights.refuse("actorder", "group, weight or none")
    return bool(stated)


def _group_of(config: _json.Section, prefix: str) -> _json.Section:
    """Return the one of ``config_groups`` that a module belongs to: by name before pattern before class."""
    groups = config.section("config_groups")
    if not groups.data:
        config.refuse("config_groups", "groups of modules", _HINT)
    named: list[str] = []
    typed: list[str] = []
    for key in groups.data:
        targets = groups.section(key).texts("targets")
        if any(_names(target, prefix, groups.section(key), "targets") for target in targets):
            named.append(key)
        elif "Linear" in targets:
            typed.append(key)
    found = named or typed
    if len(found) != 1:
        got = f"{len(found)}: {', '.join(map(_json.shown, found))}" if found else "none"
        raise InvalidProblem(
            f"in {config.file}: {prefix}", op=OP, field=groups.where, expected="one group of the module", got=got
        )
    return groups.section(found[0])


def _names(target: str, prefix: str, config: _json.Section, key: str) -> bool:
    if target.startswith("re:"):
        return matches(target.removeprefix("re:"), prefix, config, key)
    return target == prefix


def _refuse_unconverted(config: _json.Section, prefix: str) -> None:
    """Refuse a module whose name, or a part of it, stands among those that stayed as they were."""
    for name in config.texts("modules_to_not_convert"):
        if name and f".{name}." in f".{prefix}.":
            _contradiction(config.name("modules_to_not_convert"), prefix)


def _contradiction(where: str, prefix: str) -> None:
    raise InvalidProblem(op=OP, field=prefix, expected=f"no quantized tensors, as {where} says", got="some")


def _needed(config: _json.Section, *keys: str) -> int:
    found = config.integer(*keys)
    if found is None:
        config.refuse(keys[0], "an integer", _HINT)
    return found


def _quantization(whole: _json.Section) -> _json.Section:
    """Return what config.json says about quantization; models of several parts have it in that of their text model."""
    for outer in (whole, whole.section("text_config")):
        for key in ("quantization_config", "compression_config"):
            if key in outer:
                return outer.section(key)
    return _json.Section({}, op=whole.op, where="quantization_config", file=whole.file)


_SCHEMES = {
    Format.GPTQ: _gptq,
    Format.AWQ: _awq,
    Format.MARLIN: _marlin,
    Format.COMPRESSED_TENSORS: _compressed_tensors,
}
