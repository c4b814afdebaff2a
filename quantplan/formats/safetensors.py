"""Safetensors files: read by mapping them into memory, and written one tensor after the other.

    8 bytes   length of the header, little-endian
    header    JSON: {"NAME": {"dtype": "F16", "shape": [4, 2], "data_offsets": [0, 16]}, "__metadata__": {…}}
    data      the tensors' bytes, little-endian, without gaps

A header is not believed: all that it says is held against the file's size before anything is made of it. The library of
that name is not used for it. It takes the last of two tensors of one name without a word, maps no FP8 to NumPy, and
writes all tensors at once, which is more memory than a machine may have. Tests hold both to each other.

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs
import ml_dtypes
import numpy as np

from quantplan.errors import InvalidProblem
from quantplan.formats import _json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

MAX_HEADER = 32 << 20
"""Bytes of JSON: room for more than 200,000 tensors. What Python makes of it may take some twenty times as much."""

PARTIAL = ".partial"
"""Ending of a file that is being written."""

_OP = "safetensors"
_PREFIX = 8
_MAX_AXES = 32
_MAX_NAME = 1024
_ALIGNMENT = 64  # of the data's first byte, so that arrays in a mapped file are aligned
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool),
    **{f"{sign}{8 * size}": np.dtype(f"<{sign.lower()}{size}") for sign in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "C64": np.dtype("<c8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
_BITS = {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@attrs.frozen(kw_only=True)
class TensorInfo:
    """What a header says about a tensor.

    Parameters
    ----------
    dtype : str
        The format's name of the element.
    shape : tuple[int, ...]
    start, stop : int
        Where its bytes lie, counted from the first byte of data.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.stop - self.start

    @property
    def alignment(self) -> int:
        """Bytes that the address of an element is a multiple of; 1 where elements share bytes."""
        return max(1, _BITS[self.dtype] // 8)


class SafetensorsFile:
    """A file whose header was checked; its tensors are views of the mapped file and cannot be written.

    The file must not be cut short while arrays of it are in use: the system ends a process that reads beyond its end.

    Parameters
    ----------
    path : str or path-like

    Attributes
    ----------
    path : pathlib.Path
    header : bytes
        As it stands in the file.
    tensors : dict[str, TensorInfo]
        In the order of their bytes.
    metadata : dict[str, str]

    Raises
    ------
    InvalidProblem
        It cannot be read or is no such file, or the header says what cannot be; the error's field is the tensor.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._data, self.header = self._open()
        entries = _json.parse(self.header, op=_OP, field="header", file=self.path)
        self.metadata = self._metadata(entries.pop(_METADATA, {}))
        found = {name: self._tensor(name, entry) for name, entry in entries.items()}
        self.tensors = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)))
        self._check_coverage()

    def __repr__(self) -> str:
        """Show where it is and how much is in it."""
        return f"SafetensorsFile({str(self.path)!r}, {len(self.tensors)} tensors)"

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor, not copied; elements of less than a byte cannot be shown."""
        info = self.tensors[name]
        if info.dtype not in DTYPES:
            raise self._invalid(name, f"one of {', '.join(DTYPES)}", info.dtype)
        return self.octets(name).view(DTYPES[info.dtype]).reshape(info.shape)

    def octets(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes, not copied."""
        info = self.tensors[name]
        return self._data[info.start : info.stop]

    def _invalid(self, field: str, expected: object, got: object) -> InvalidProblem:
        return InvalidProblem(f"in {self.path}", op=_OP, field=field, expected=expected, got=got)

    def _open(self) -> tuple[NDArray[np.uint8], bytes]:
        """Map the file; return its data and its header."""
        try:
            if not self.path.is_file():
                raise self._invalid("path", "a file", "a folder" if self.path.is_dir() else "none")
            size = self.path.stat().st_size
            if size < _PREFIX:
                raise self._invalid("header", f"at least {_PREFIX} bytes", f"a file of {size}")
            content = np.asarray(np.memmap(self.path, np.uint8, "r"))
        except OSError as error:
            raise self._invalid("path", "a file that can be read", error.strerror or error) from error
        length = int.from_bytes(content[:_PREFIX].tobytes(), "little")
        limit = min(MAX_HEADER, content.size - _PREFIX)
        if not 2 <= length <= limit:  # noqa: PLR2004 - {}
            raise self._invalid("header", f"from 2 to {limit} bytes", f"{length} bytes")
        stop = _PREFIX + length
        return content[stop:], content[_PREFIX:stop].tobytes()

    def _metadata(self, entry: object) -> dict[str, str]:
        if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
            raise self._invalid(_METADATA, "an object of strings", _json.shown(entry))
        for text in itertools.chain.from_iterable(entry.items()):
            try:
                text.encode()
            except UnicodeEncodeError:  # JSON can escape half a character, and no file can hold it
                raise self._invalid(_METADATA, "strings of whole characters", _json.shown(text)) from None
        return entry

    def _tensor(self, name: str, entry: object) -> TensorInfo:
        """Return what a header's entry says if the file can hold it."""
        if not 1 <= len(name) <= _MAX_NAME or not name.isprintable():
            raise self._invalid(_json.shown(name), f"a name of 1 to {_MAX_NAME} printable characters", "another")
        if not isinstance(entry, dict) or entry.keys() != _FIELDS:
            raise self._invalid(name, "dtype, shape and data_offsets", _json.shown(entry))
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise self._invalid(name, f"dtype one of {', '.join(_BITS)}", _json.shown(dtype))
        if not _sizes(shape) or len(shape) > _MAX_AXES:
            raise self._invalid(name, f"shape of at most {_MAX_AXES} integers ≥ 0", _json.shown(shape))
        if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004 - start and stop
            raise self._invalid(name, "data_offsets that are start and stop", _json.shown(offsets))
        start, stop = offsets
        if stop > self._data.size:
            raise self._invalid(name, f"data within the file's {self._data.size} bytes of it", f"{start} to {stop}")
        # Python's integers do not wrap. An axis of 0 must not hide others that no array can have.
        if math.prod(max(size, 1) for size in shape) * _BITS[dtype] > 8 * max(self._data.size, np.iinfo(np.int32).max):
            raise self._invalid(name, f"shape within the file's {self._data.size} bytes of data", _json.shown(shape))
        if math.prod(shape) * _BITS[dtype] != 8 * (stop - start):
            expected = f"{stop - start} bytes, as data_offsets say"
            raise self._invalid(name, expected, f"{_json.shown(shape)} of {dtype}")
        return TensorInfo(dtype=dtype, shape=tuple(shape), start=start, stop=stop)

    def _check_coverage(self) -> None:
        """Refuse tensors that share bytes, and bytes of no tensor: something would hide in them."""
        end = 0
        for name, info in self.tensors.items():
            if info.start != end:
                raise self._invalid(name, f"data from byte {end}, where the one before ends", info.start)
            end = info.stop
        if end != self._data.size:
            raise self._invalid("header", f"tensors of {self._data.size} bytes, as the file has", end)


def layout(tensors: Iterable[tuple[str, np.dtype[Any] | str, tuple[int, ...]]]) -> dict[str, TensorInfo]:
    """Return where tensors lie that are written one after the other.

    Parameters
    ----------
    tensors : iterable of (name, dtype, shape)
        Element types are NumPy's, or names of the format.
    """
    placed: dict[str, TensorInfo] = {}
    start = 0
    for name, element, shape in tensors:
        dtype = element if isinstance(element, str) else _NAMES[element]
        if name in placed or name == _METADATA:
            raise InvalidProblem(op=_OP, field=name, expected="each tensor once", got="the name twice")
        stop = start + math.prod(shape) * _BITS[dtype] // 8
        placed[name] = TensorInfo(dtype=dtype, shape=shape, start=start, stop=stop)
        start = stop
    return placed


def header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file, padded with spaces so that the data are aligned."""
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    for name, info in tensors.items():
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [info.start, info.stop]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-(_PREFIX + len(text)) % _ALIGNMENT)


def write(path: Path, head: bytes, data: Iterable[NDArray[Any]]) -> None:
    """Write a file that appears under its name only when it is complete.

    Parameters
    ----------
    path : pathlib.Path
    head : bytes
        Of `header`.
    data : iterable of ndarray
        The tensors in the header's order, whole or in pieces; each one is asked for when those before are written.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    with completed(path) as file:
        file.write(len(head).to_bytes(_PREFIX, "little"))
        file.write(head)
        for array in data:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def completed(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name when all is written, and vanishes if that fails.

    What writers of it have left that were killed is removed.
    """
    for stale in leftovers(path):
        stale.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def leftovers(path: Path) -> list[Path]:
    """Return the unfinished files of writers that were killed."""
    beginning = f".{path.name}."
    return [p for p in path.parent.iterdir() if p.name.startswith(beginning) and p.name.endswith(PARTIAL)]


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
