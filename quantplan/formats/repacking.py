"""Repacking: a checkpoint's linears in Marlin's layout, all else as it is, file by file.

    plan     every linear is checked and every file laid out: what is written is known before anything is
    write    one tensor after the other, into a file of another name, which gets its own when it is complete
    resume   a file that is there with the very header that was planned is complete, and is left alone

A header names what its file was made from and how, so another source, or other options, make another header.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.formats import _json, _repacked
from quantplan.formats._layouts import full_name
from quantplan.formats.checkpoint import INDEX, WHOLE, Checkpoint, usable_path
from quantplan.formats.int4 import Int4Frame
from quantplan.formats.marlin import TILE_K, cast, sorting_permutation
from quantplan.formats.padding import padded_size
from quantplan.formats.safetensors import PARTIAL, SafetensorsFile, TensorInfo, completed, header, layout, write

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from quantplan.formats.checkpoint import LinearInfo

_OP = "repack"
_PIECE = 64 << 20  # bytes of a tensor that are copied between two reports of progress
_WIDE = 8


@attrs.frozen(kw_only=True)
class Repacked:
    """What `repack` has done.

    Parameters
    ----------
    linears : int
        How many the checkpoint has: all of them are in Marlin's layout now.
    written, complete : tuple[pathlib.Path, ...]
        Files of tensors that were made, and those that an earlier run had made.
    """

    linears: int
    written: tuple[Path, ...]
    complete: tuple[Path, ...]


@attrs.frozen(kw_only=True, eq=False)
class _Shard:
    """A file to be written: what it copies before and behind its linears, and where everything lies."""

    path: Path
    wide: tuple[str, ...]
    linears: tuple[LinearInfo, ...]
    narrow: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    header: bytes


def repack(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    scale_element: ElementKind | str | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Repacked:
    """Write a checkpoint whose linears are the operands of Int4MarlinGemm, which `load_linear` then only maps.

    Biases and tensors of no linear are copied as they are. Beside the files of a folder there will be its index, and
    its config.json with another ``quantization_config``; tokenizers and the like are not copied. After an interruption
    the same call goes on with the first file that is not complete.

    Parameters
    ----------
    source, config : as for `Checkpoint`
    destination : str or path-like
        A .safetensors file if the source is one, otherwise a folder; it is made if need be.
    scale_element : ElementKind or str, optional
        f16, bf16 or f32: what scales are rounded to. None: as they are.
    progress : callable, optional
        Called with how many bytes are written, and how many there will be.

    Returns
    -------
    Repacked

    Raises
    ------
    InvalidProblem
        A linear that cannot be read or repacked, or a destination with anything in it but what an earlier run with the
        same source and options has written: nothing is written then. Or a file that cannot be written.
    """
    target = usable_path(_OP, "destination", destination)
    checkpoint = Checkpoint(source, config=config)
    single = checkpoint.single
    if not checkpoint.linears:
        raise InvalidProblem(f"in {checkpoint.path}", op=_OP, field="source", expected="quantized linears", got="none")
    _check_places(checkpoint.path if single else checkpoint.folder, target, single=single)
    shards = _plan(checkpoint, target, scale_element, single=single)
    texts = {} if single else _texts(checkpoint, target, shards)
    complete = _complete({shard.path: shard for shard in shards}, texts)
    if not single:
        _check_strangers(target, {*(shard.path.name for shard in shards), *(path.name for path in texts)})
    todo = [shard for shard in shards if shard.path not in complete]
    report = _counter(progress, sum(info.nbytes for shard in todo for info in shard.tensors.values()))
    try:
        (target.parent if single else target).mkdir(parents=True, exist_ok=True)
        for shard in todo:
            write(shard.path, shard.header, map(report, _data(checkpoint, shard, scale_element)))
        for path, text in texts.items():
            if path not in complete:
                with completed(path) as file:
                    file.write(text)
    except OSError as error:
        reason = f"{error.filename or target}: {error.strerror or error}"
        raise InvalidProblem(op=_OP, field="destination", expected="files that can be written", got=reason) from error
    return Repacked(
        linears=len(checkpoint.linears),
        written=tuple(shard.path for shard in todo),
        complete=tuple(shard.path for shard in shards if shard.path in complete),
    )


# ---- before anything is written


def _check_places(source: Path, target: Path, *, single: bool) -> None:
    """Refuse a destination of the other kind, and one that is, holds or lies in the source."""
    if single and (target.is_dir() or target.suffix != ".safetensors"):
        raise _occupied(target, "a .safetensors file, as the source is")
    if not single and target.exists() and not target.is_dir():
        raise _occupied(target, "a folder, as the source is")
    here, there = source.resolve(), target.resolve()
    if here == there or (not single and (here.is_relative_to(there) or there.is_relative_to(here))):
        raise _occupied(target, f"a place outside of {source}, and not around it")


def _plan(
    checkpoint: Checkpoint, target: Path, scale_element: ElementKind | str | None, *, single: bool
) -> list[_Shard]:
    """Check every linear, and lay out every file."""
    linears = [_planned(checkpoint, prefix, scale_element) for prefix in checkpoint.linears]
    digest = _digest(checkpoint, scale_element)
    homes = {linear.prefix: checkpoint.tensors[checkpoint.owned(linear.prefix)[0]] for linear in linears}
    owned = {name for prefix in checkpoint.linears for name in checkpoint.owned(prefix)}
    shards = []
    for file in checkpoint.files:
        here = tuple(linear for linear in linears if homes[linear.prefix] is file)
        copied = [name for name in file.tensors if name not in owned]
        copied.sort(key=lambda name: -file.tensors[name].alignment)
        wide = tuple(name for name in copied if file.tensors[name].alignment >= _WIDE)
        narrow = tuple(copied[len(wide) :])
        copies = {name: (name, file.tensors[name].dtype, file.tensors[name].shape) for name in copied}
        # Every tensor's bytes are a multiple of the alignment of those behind it, so all are aligned without gaps.
        tensors = layout(
            [
                *(copies[name] for name in wide),
                *(spec for linear in here for spec in _operands(linear)),
                *(spec for linear in here for spec in _permutation(linear)),
                *(copies[name] for name in narrow),
            ]
        )
        sizes = {
            info.prefix: {"k": info.k or 0, "n": info.n or 0, "group_size": info.group_size or -1} for info in here
        }
        metadata = file.metadata | _repacked.metadata(sizes, digest)
        path = target if single else target / file.path.name
        shards.append(
            _Shard(path=path, wide=wide, linears=here, narrow=narrow, tensors=tensors, header=header(tensors, metadata))
        )
    return shards


def _planned(checkpoint: Checkpoint, prefix: str, scale_element: ElementKind | str | None) -> LinearInfo:
    """Return what a linear will be; refuse what `to_marlin` would refuse when the files are half written."""
    known = checkpoint.examine(prefix)
    packed = not isinstance(known.found, Int4Frame)
    scales = known.found.scales if isinstance(known.found, Int4Frame) else known.found.weight_scale
    try:
        if isinstance(known.found, Int4Frame) and known.found.g_idx is not None:
            sorting_permutation(_OP, known.found.g_idx, known.found.group_size)
        scales = cast(_OP, "weight_scale" if packed else "scales", scales[:, :], scale_element)
    except InvalidProblem as error:
        if error.field != "scale_element":
            error.field = full_name(prefix, str(error.field))
        raise
    return known.info.replace(scale_element=ElementKind.of(scales.dtype).value)


def _operands(linear: LinearInfo) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Yield name, element and shape of what a linear becomes; `CheckpointLinear.to_marlin` makes it so."""
    rows, columns = padded_size(linear.k or 0), padded_size(linear.n or 0)
    group_size = linear.group_size or -1
    groups = 1 if group_size == -1 else -(-rows // group_size)
    word = np.dtype(np.int32)
    yield full_name(linear.prefix, "weight_q"), word, (rows // TILE_K, 2 * columns)
    yield full_name(linear.prefix, "weight_scale"), ElementKind.of(linear.scale_element).dtype, (groups, columns)
    if not linear.symmetric:
        yield full_name(linear.prefix, "weight_zero_point"), word, (groups, columns // 8)


def _permutation(linear: LinearInfo) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    if linear.act_order:
        yield full_name(linear.prefix, "perm"), np.dtype(np.int32), (linear.k or 0,)


def _digest(checkpoint: Checkpoint, scale_element: ElementKind | str | None) -> str:
    """Return what tells one source and its options from others, without reading all of it."""
    files = [
        (file.path.name, status.st_size, status.st_mtime_ns, hashlib.sha256(file.header).hexdigest())
        for file in checkpoint.files
        for status in [file.path.stat()]
    ]
    element = None if scale_element is None else ElementKind.of(scale_element).value
    known = [files, checkpoint.config.data, element]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def _texts(checkpoint: Checkpoint, target: Path, shards: Iterable[_Shard]) -> dict[Path, bytes]:
    """Return the index and the configuration of a folder, those that it has."""
    shards, texts = list(shards), {}
    if len(shards) > 1 or shards[0].path.name != WHOLE:
        placed = {name: shard.path.name for shard in shards for name in shard.tensors}
        size = sum(info.nbytes for shard in shards for info in shard.tensors.values())
        texts[target / INDEX] = _text({"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))})
    path = checkpoint.folder / "config.json"
    if path.is_file():
        whole = _json.read(path, op=_OP, field="config")
        whole.pop("compression_config", None)
        stated = {"quant_method": _repacked.KEY, "format": "marlin", "version": _repacked.VERSION}
        texts[target / path.name] = _text({**whole, "quantization_config": stated})
    return texts


def _text(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


def _complete(shards: Mapping[Path, _Shard], texts: Mapping[Path, bytes]) -> set[Path]:
    """Return the files that an earlier run has written; refuse others of their names."""
    complete = set()
    for path, shard in shards.items():
        if path.exists():
            if SafetensorsFile(path).header != shard.header:
                raise _occupied(path, "what an earlier run with this source and these options has written")
            complete.add(path)
    for path, text in texts.items():
        if path.exists():
            if not path.is_file() or path.read_bytes() != text:
                raise _occupied(path, "what an earlier run with this source and these options has written")
            complete.add(path)
    return complete


def _check_strangers(target: Path, planned: set[str]) -> None:
    """Refuse a folder with files that no run of this writes; unfinished ones of such a run may be there."""
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    for name in sorted(names - planned):
        if not (name.startswith(".") and name.endswith(PARTIAL)):
            raise _occupied(target / name, "a folder that is empty, or that an earlier run was writing")


def _occupied(path: Path, expected: str) -> InvalidProblem:
    got = str(path) if path.exists() else f"{path}, which does not exist"
    return InvalidProblem(op=_OP, field="destination", expected=expected, got=got)


# ---- writing


def _data(checkpoint: Checkpoint, shard: _Shard, scale_element: ElementKind | str | None) -> Iterator[NDArray[Any]]:
    """Yield the bytes of a file in the order of its layout. One linear at a time is unpacked."""
    for name in shard.wide:
        yield from _pieces(checkpoint, name)
    permutations = []
    for linear in shard.linears:
        packed = checkpoint.load_linear(linear.prefix).to_marlin(scale_element=scale_element)
        operands = packed.operands()
        for name, dtype, shape in _operands(linear):
            yield _as_planned(name, operands[name.rpartition(".")[2]], dtype, shape)
        permutations += [
            _as_planned(name, operands["perm"], dtype, shape) for name, dtype, shape in _permutation(linear)
        ]
    yield from permutations
    for name in shard.narrow:
        yield from _pieces(checkpoint, name)


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[np.uint8]]:
    octets = checkpoint.tensors[name].octets(name)
    for first in range(0, octets.size, _PIECE):
        yield octets[first : first + _PIECE]


def _as_planned(name: str, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array that is what the header says of it."""
    if (array.dtype, array.shape) != (dtype, shape):
        got = f"{array.dtype} {array.shape}: the source has changed meanwhile"
        raise InvalidProblem(op=_OP, field=name, expected=f"{dtype} {shape}", got=got)
    return array


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a function that reports how many bytes have passed through it, and hands them on."""
    done = 0

    def count(array: NDArray[Any]) -> NDArray[Any]:
        nonlocal done
        done += array.nbytes
        if progress is not None:
            progress(done, total)
        return array

    return count
