"""An address in a library becomes a line of the source."""

import ctypes
import re
import sys

import pytest

from quantplan.emulator import compiler, places
from quantplan.emulator.library import Library

TEXT = """#include <qp/ptx/launch.cuh>
struct P { const int* in; int* out; };

__device__ void first(const P& p) { p.out[0] = p.in[0]; }

__device__ void second(const P& p) {
  p.out[1] = p.in[0];
}
QP_KERNEL(k_first, 32, P, first)
QP_KERNEL(k_second, 32, P, second)
"""


@pytest.fixture(scope="module", params=[True, False], ids=["checked", "unchecked"])
def library(request):
    return Library(compiler.build(TEXT, arch=900, checked=request.param), checked=request.param)


def offset(library, name):
    """Return where a function begins in its library."""
    address = ctypes.cast(library._kernels[name], ctypes.c_void_p).value
    with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123 - no regular file
        begin = min(int(line.split("-")[0], 16) for line in maps if str(library.path) in line)
    return address - begin


@pytest.mark.parametrize("name", ["k_first", "k_second"])
def test_the_line_of_an_address(library, name):
    found = places.line_of(library.path, offset(library, name))
    number = TEXT.splitlines().index(f"QP_KERNEL({name}, 32, P, {name[2:]})") + 1
    # the entry's own line, or that of the body where it is inlined
    body = 4 if name == "k_first" else 6
    assert re.fullmatch(rf"kernel\.cpp:({number}|{body}|{body + 1})", found), found


def test_an_address_outside_of_the_code_stays_an_address(library):
    assert places.line_of(library.path, 1) == f"{library.path.name}+0x1"
    assert places.line_of(library.path, 1 << 40) == f"{library.path.name}+{1 << 40:#x}"


def test_a_library_without_line_tables(library, tmp_path):
    empty = tmp_path / "empty.so"
    compiler._call((*compiler.find_compiler(), "-shared", "-x", "c++", "/dev/null", "-o", str(empty)))
    assert places.line_of(empty, 0x10) == "empty.so+0x10"


def test_without_pyelftools_the_address_comes_with_a_remedy(library, monkeypatch):
    places._lines.cache_clear()
    monkeypatch.setitem(sys.modules, "elftools.elf.elffile", None)
    try:
        found = places.line_of(library.path, 0x1234)
    finally:
        places._lines.cache_clear()
    assert found == f"{library.path.name}+0x1234 (pip install pyelftools to see the line)"
