import json
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from quantplan.errors import InvalidProblem
from quantplan.formats import safetensors
from quantplan.formats.safetensors import SafetensorsFile
from tests.formats.files import entry, raw

ROOT = Path(__file__).resolve().parents[2]
U8 = entry("U8", [2], 0, 2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def write(path, tensors, metadata=None):
    placed = safetensors.layout([(name, array.dtype, array.shape) for name, array in tensors.items()])
    safetensors.write(path, safetensors.header(placed, metadata or {}), tensors.values())


def arrays(dtypes):
    return {f"of {dtype}": np.arange(24).astype(dtype).reshape(2, 3, 4) for dtype in sorted(dtypes, key=str)} | {
        "empty": np.zeros((0, 7), np.int8),
        "scalar": np.array(5, np.int16),
    }


LIBRARYS = [np.dtype(d) for d in ("f8", "f4", "f2", "i8", "u8", "i4", "u4", "i2", "u2", "i1", "u1", "?", "c8")]


def test_what_the_library_writes_is_read_without_a_copy(path):
    tensors = arrays([*LIBRARYS, np.dtype(ml_dtypes.bfloat16)])
    save_file(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        read = file.array(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes() == file.octets(name).tobytes()
        assert type(read) is np.ndarray
        assert not read.flags.writeable
    assert np.shares_memory(file.array("of float32"), file.array("of float32"))


def test_the_library_reads_what_is_written(path):
    tensors = arrays(LIBRARYS)
    write(path, tensors, {"a": "b", "é": "ü\n"})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()
    with safe_open(path, "np") as file:
        assert file.metadata() == {"a": "b", "é": "ü\n"}


@pytest.mark.parametrize("name", [name for name in safetensors.DTYPES if name.startswith(("F8", "BF"))])
def test_elements_of_ml_dtypes_go_both_ways(path, name):
    array = np.arange(8, dtype=np.float32).astype(safetensors.DTYPES[name])
    write(path, {"x": array})
    file = SafetensorsFile(path)
    assert file.tensors["x"].dtype == name
    assert file.array("x").dtype == array.dtype
    assert file.array("x").tobytes() == array.tobytes()


def test_elements_below_a_byte_are_bytes_only(path):
    raw(path, {"x": entry("F4", [2, 3], 0, 3), "y": entry("F6_E2M3", [4], 3, 6)}, b"abcdef")
    file = SafetensorsFile(path)
    assert file.octets("x").tobytes() == b"abc"
    with pytest.raises(InvalidProblem, match=r"x: .*got F4"):
        file.array("x")


def test_tensors_that_are_not_aligned_are_read(path):
    data = b"a" + np.array([1.5, 2.5], np.float32).tobytes()
    raw(path, {"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}, data)
    assert SafetensorsFile(path).array("b").tolist() == [1.5, 2.5]


def test_data_begin_where_arrays_are_aligned(path):
    for length in range(40):
        write(path, {"x" * (length + 1): np.zeros(4, np.float64)})
        assert SafetensorsFile(path).array("x" * (length + 1)).ctypes.data % 64 == 0


def test_two_tensors_of_one_name_are_not_laid_out():
    with pytest.raises(InvalidProblem, match="x: expected each tensor once"):
        safetensors.layout([("x", "U8", (1,)), ("x", "U8", (2,))])


# ---- hostile headers. Each is refused, and the error names the tensor.

HOSTILE = {
    "two of a name": (b'{"a":%b,"a":%b}' % ((json.dumps(U8).encode(),) * 2), b"ab", "a", "each key once"),
    "two of a name, other sizes": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":%b}' % json.dumps(U8).encode(),
        *(b"ab", "a", "each key once"),
    ),
    "a field twice": (b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"a", "dtype", "once"),
    "metadata twice": (b'{"__metadata__":{"k":"1","k":"2"}}', b"", "k", "each key once"),
    "two metadata": (b'{"__metadata__":{},"__metadata__":{}}', b"", "__metadata__", "each key once"),
    "metadata of numbers": ({"__metadata__": {"k": 1}}, b"", "__metadata__", "an object of strings"),
    "half a character in metadata": (b'{"__metadata__":{"k":"\\udfff"}}', b"", "__metadata__", "whole characters"),
    "half a character as a key": (b'{"__metadata__":{"\\ud800":""}}', b"", "__metadata__", "whole characters"),
    "overlap": ({"a": U8, "b": entry("U8", [2], 1, 3)}, b"abc", "b", "from byte 2"),
    "the same bytes": ({"a": U8, "b": U8}, b"ab", "b", "from byte 2"),
    "a gap": ({"a": U8, "b": entry("U8", [2], 3, 5)}, b"abcde", "b", "from byte 2"),
    "bytes of no tensor": ({"a": U8}, b"abc", "header", "tensors of 3 bytes"),
    "beyond the file": ({"a": entry("U8", [20], 0, 20)}, b"abc", "a", "within the file's 3 bytes"),
    "backwards": ({"a": entry("U8", [0], 2, 1)}, b"ab", "a", "start and stop"),
    "offsets of three": ({"a": U8 | {"data_offsets": [0, 1, 2]}}, b"ab", "a", "start and stop"),
    "another size": ({"a": entry("U8", [3], 0, 2)}, b"ab", "a", "2 bytes, as data_offsets say"),
    "product of 2**64": ({"a": entry("U8", [2**32, 2**32], 0, 0)}, b"", "a", "shape within the file"),
    "product of 2**64 + 2": ({"a": entry("U8", [(2**64 + 2) // 2, 2], 0, 2)}, b"ab", "a", "shape within the file"),
    "product behind an axis of 0": ({"a": entry("U8", [0, 2**62, 2**62], 0, 0)}, b"", "a", "shape within the file"),
    "negative": ({"a": entry("U8", [-1, -2], 0, 2)}, b"ab", "a", "integers ≥ 0"),
    "a fraction": ({"a": entry("U8", [2.0], 0, 2)}, b"ab", "a", "integers ≥ 0"),
    "true": ({"a": entry("U8", [True, 2], 0, 2)}, b"ab", "a", "integers ≥ 0"),
    "axes": ({"a": entry("U8", [1] * 33, 0, 1)}, b"a", "a", "at most 32"),
    "another element": ({"a": entry("U9", [1], 0, 1)}, b"a", "a", "dtype one of"),
    "element of no name": ({"a": entry(["U8"], [1], 0, 1)}, b"a", "a", "dtype one of"),
    "half a byte": ({"a": entry("F4", [3], 0, 1)}, b"a", "a", "1 bytes, as data_offsets say"),
    "a field more": ({"a": U8 | {"strides": [1]}}, b"ab", "a", "dtype, shape and data_offsets"),
    "a field less": ({"a": {"dtype": "U8", "shape": [2]}}, b"ab", "a", "dtype, shape and data_offsets"),
    "no entry": ({"a": [1]}, b"ab", "a", "dtype, shape and data_offsets"),
    "escapes": ({"\x1b[2J": U8}, b"ab", r"'\x1b[2J'", "printable"),
    "half a character": (b'{"\\ud800":%b}' % json.dumps(U8).encode(), b"ab", r"'\ud800'", "printable"),
    "no name": ({"": U8}, b"ab", "''", "printable"),
    "a list": ([], b"", "header", "a JSON object"),
    "not JSON": (b"{x}", b"", "header", "expected JSON"),
    "not a number": (b'{"a":NaN}', b"", "header", "expected JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "header", "expected JSON"),
    "nested": (b'{"a":' + b"[" * 100_000, b"", "header", "a few levels"),
    "digits": (b'{"a":' + b"9" * 5000 + b"}", b"", "header", "expected JSON"),
}


@pytest.mark.parametrize("header, data, field, words", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_refused_by_name(path, header, data, field, words):
    """Duplicate keys, shapes and offsets that the file does not have."""
    with pytest.raises(InvalidProblem, match=words) as caught:
        SafetensorsFile(raw(path, header, data))
    assert (caught.value.op, caught.value.field) == ("safetensors", field)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("length", [0, 1, 3, 2**20, 200_000_000, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(path, length):
    with pytest.raises(InvalidProblem, match=f"header: .*got {length} bytes"):
        SafetensorsFile(raw(path, b"{}", length=length))


def test_a_header_beyond_the_limit_is_refused(path, monkeypatch):
    """What Python makes of JSON is far larger than the JSON."""
    monkeypatch.setattr(safetensors, "MAX_HEADER", 1000)
    with pytest.raises(InvalidProblem, match="from 2 to 1000 bytes, got 1024 bytes"):
        SafetensorsFile(raw(path, b"{" + b" " * 1022 + b"}"))


def test_a_bomb_allocates_nothing(path):
    """2**60 bytes are claimed by a file of a few hundred."""
    raw(path, {f"t{i}": entry("F64", [2**57], 0, 2**60) for i in range(10)})
    tracemalloc.start()
    try:
        with pytest.raises(InvalidProblem, match="t0"):
            SafetensorsFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"1234567", b"12345678"])
def test_what_is_too_short_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(InvalidProblem, match="header"):
        SafetensorsFile(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InvalidProblem, match=r"path: .*got none"):
        SafetensorsFile(tmp_path / "missing.safetensors")
    with pytest.raises(InvalidProblem, match=r"path: .*got a folder"):
        SafetensorsFile(tmp_path)


SOUND = {
    "__metadata__": {"format": "pt"},
    "a": entry("F16", [2, 2], 0, 8),
    "b": entry("I32", [1], 8, 12),
}


@given(st.data())
@example(None)
def test_damaged_files_are_read_or_refused(tmp_path_factory, data):
    """Whatever is wrong with a file, it is an error of ours, or tensors that lie within it."""
    path = tmp_path_factory.mktemp("fuzz", numbered=True) / "x.safetensors"
    content = bytearray(raw(path, SOUND, b"0123456789ab").read_bytes())
    if data is not None:
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, len(content) - 1))
            content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3)) or b'"'
    path.write_bytes(bytes(content))
    try:
        file = SafetensorsFile(path)
    except InvalidProblem:
        return
    for name, info in file.tensors.items():
        assert file.octets(name).size == info.nbytes
        if info.dtype in safetensors.DTYPES:
            assert file.array(name).shape == info.shape


# ---- writing


def test_a_file_that_fails_leaves_nothing_behind(path):
    placed = safetensors.layout([("x", "U8", (1,))])

    def data():
        yield np.zeros(1, np.uint8)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        safetensors.write(path, safetensors.header(placed, {}), data())
    assert list(path.parent.iterdir()) == []


KILLED = """
import os, sys, numpy as np
from pathlib import Path
from quantplan.formats import safetensors
placed = safetensors.layout([("x", "U8", (2,))])
def data():
    yield np.zeros(1, np.uint8)
    os._exit(9)
safetensors.write(Path(sys.argv[1]), safetensors.header(placed, {}), data())
"""


def test_a_writer_that_is_killed_leaves_no_file_of_that_name_and_the_next_one_tidies_up(path):
    """A half-written file never has the final name."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 9
    (left,) = path.parent.iterdir()
    assert left.name.startswith(".model.safetensors.")
    assert safetensors.leftovers(path) == [left]
    write(path, {"x": np.zeros(2, np.uint8)})
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_file_gets_the_permissions_of_any_other(path):
    write(path, {"x": np.zeros(2, np.uint8)})
    other = path.with_name("other")
    other.write_bytes(b"")
    assert path.stat().st_mode == other.stat().st_mode


def test_the_length_of_the_header_comes_first(path):
    write(path, {"x": np.zeros(2, np.uint8)})
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert content[8 : 8 + length] == SafetensorsFile(path).header
    assert json.loads(content[8 : 8 + length]) == {"x": U8}
