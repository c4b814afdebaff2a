"""The host compiler is found, its refusals are told, and what it built is built once."""

import importlib.util
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

import quantplan as qp
from quantplan import cache, kernels
from quantplan.emulator import compiler
from quantplan.emulator.library import Library
from quantplan.errors import CompilerNotFound

TEXT = """#include <qp/ptx/launch.cuh>
struct P { int* out; };
__device__ void body(const P& p) { p.out[threadIdx.x] = __CUDA_ARCH__; }
QP_KERNEL(k, 32, P, body)
"""


def build(text=TEXT, *, arch=900, checked=False):
    return compiler.build(text, arch=arch, checked=checked)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Return a cache that holds the runtime, which takes seconds to build, and nothing else."""
    runtime = compiler._runtime(compiler.find_compiler())
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTPLAN_CACHE_DIR", str(root))
        cache.write(cache.folder("emulator") / runtime.name, runtime.read_bytes())
    return root


@pytest.fixture
def root(warm, monkeypatch):
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(warm))
    return warm


@pytest.fixture
def calls(monkeypatch):
    """Return the list of commands that run from here on."""
    seen, run = [], subprocess.run

    def recorded(command, **options):
        seen.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", recorded)
    return seen


def program(folder, name, script=""):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


# ---- the search


@pytest.fixture
def path(monkeypatch, tmp_path):
    """Return the only folder that programs are looked for in."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return tmp_path


def test_without_a_compiler_the_remedies_are_named(path):
    with pytest.raises(CompilerNotFound) as caught:
        compiler.find_compiler()
    assert (caught.value.op, caught.value.message) == ("emulator", "none of g++, clang++ and ziglang")
    assert "pip install ziglang" in caught.value.hint
    with pytest.raises(CompilerNotFound):
        build()


def test_gcc_comes_before_clang_before_zig(path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "ziglang" else None)
    assert compiler.find_compiler() == (sys.executable, "-m", "ziglang", "c++")
    clang = program(path, "clang++")
    assert compiler.find_compiler() == (str(clang),)
    gcc = program(path, "g++")
    assert compiler.find_compiler() == (str(gcc),)


def test_cxx_comes_first_with_its_arguments(path, monkeypatch):
    program(path, "g++")
    program(path, "ccache")
    monkeypatch.setenv("CXX", "ccache 'clang++' -stdlib=libc++")
    assert compiler.find_compiler() == ("ccache", "clang++", "-stdlib=libc++")
    monkeypatch.setenv("CXX", "gone")
    with pytest.raises(CompilerNotFound, match="CXX names gone"):
        compiler.find_compiler()


def test_only_linux_has_the_emulated_device(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(qp.Unsupported, match="runs on Linux, not on darwin"):
        build()


# ---- refusals


def test_a_source_that_does_not_compile_comes_with_options_and_log(root):
    text = TEXT.replace("p.out[", "p.missing[")
    before = sorted(root.rglob("*"))
    for _ in range(2):
        with pytest.raises(qp.KernelBuildError) as caught:
            build(text, checked=True)
        error = caught.value
        assert "missing" in error.log
        assert "kernel.cpp:3" in error.log
        assert "-D__CUDA_ARCH__=900" in error.options
        assert any(option.startswith("-fsanitize=thread") for option in error.options)
        assert error.op == "emulator"
    assert sorted(root.rglob("*")) == before, "nothing of it stays, nor does a lock"


def test_a_compiler_that_says_nothing_is_told_of(root, monkeypatch, tmp_path):
    silent = program(tmp_path, "silent", 'case "$*" in *--version*) echo silent 1.0;; *) exit 3;; esac')
    monkeypatch.setenv("CXX", str(silent))
    with pytest.raises(qp.KernelBuildError, match="exited with 3 and said nothing"):
        build()


def test_a_log_in_any_encoding_is_text(root, monkeypatch, tmp_path):
    odd = program(tmp_path, "odd", 'case "$*" in *--version*) echo odd 1.0;; *) printf "no\\377" >&2; exit 1;; esac')
    monkeypatch.setenv("CXX", str(odd))
    with pytest.raises(qp.KernelBuildError) as caught:
        build()
    assert caught.value.log == "no�"


# ---- the cache


def test_what_is_built_is_not_built_again(root, calls):
    first = build()
    calls.clear()
    assert build() == first
    assert calls == []


@pytest.mark.parametrize("change", [{"arch": 800}, {"checked": True}, {"text": f"{TEXT}// 2\n"}])
def test_whatever_goes_into_a_library_makes_it_another(root, change):
    other = build(**change)
    assert other != build()
    assert other.is_file()


def test_a_library_is_for_its_architecture(root, bench):
    for arch in (800, 900):
        out = np.zeros(32, np.int32)
        text = TEXT.partition("QP_KERNEL")[0].partition("\n")[2]
        bench.run(text, {"out": out}, outputs=("out",), arch=arch)
        assert set(out) == {arch}


def test_an_edit_rebuilds_what_includes_it_and_nothing_else(root, monkeypatch, tmp_path):
    folder = tmp_path / "kernels_cu"
    (folder / "include" / "qp").mkdir(parents=True)
    (folder / "README.md").write_text("sources")
    (folder / "include" / "qp" / "deep.cuh").write_text("// one\n")
    (folder / "a.cu").write_text("#include <qp/deep.cuh>\n")
    (folder / "b.cu").write_text("\n")
    monkeypatch.setattr(kernels, "_PACKAGE", tmp_path / "quantplan")

    def builds():
        compiler._sources.cache_clear()  # as in another process
        return [build(f"#include <{name}.cu>\n{TEXT}") for name in "ab"]

    before = builds()
    assert builds() == before
    (folder / "include" / "qp" / "deep.cuh").write_text("// two\n")
    after = builds()
    compiler._sources.cache_clear()
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)


def test_includes_are_of_the_form_that_is_followed():
    """`kernels.included` follows ``#include <…>``: quotes would make an edit go unnoticed."""
    for folder in (*compiler._folders(),):
        for file in folder.rglob("*"):
            if file.suffix in {".cu", ".cuh", ".h"}:
                assert '#include "' not in file.read_text(encoding="utf-8"), file


def test_files_are_private_and_locks_go_away(root):
    library = build(f"{TEXT}// private\n")
    assert stat.S_IMODE(library.stat().st_mode) == 0o600
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    assert {file.suffix for file in root.rglob("*") if file.is_file()} == {".so"}


def test_kernels_share_one_runtime_that_they_find_beside_themselves(root):
    assert len(list(root.rglob("runtime-*.so"))) == 1
    Library(build(), checked=False)
    Library(build(checked=True), checked=True)
    with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123 - no regular file
        loaded = {Path(line.split()[-1]) for line in maps if "runtime-" in line}
    (own,) = root.rglob("runtime-*.so")
    assert [path.name for path in loaded].count(own.name) == 1  # an equal one from another folder serves as well


def test_a_cache_that_cannot_be_used_costs_only_time(monkeypatch, tmp_path, warm):
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    temporary = cache.folder("emulator")
    for runtime in warm.rglob("runtime-*.so"):
        cache.write(temporary / runtime.name, runtime.read_bytes())
    try:
        assert build().parent == temporary
    finally:
        cache._temporary.cache_clear()
    assert list(tmp_path.iterdir()) == []


def test_threads_that_want_the_same_library_build_it_once(root, calls):
    text, made = f"{TEXT}// threads\n", []
    threads = [threading.Thread(target=lambda: made.append(build(text))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert len(calls) == 2, "one call compiles, one links"


PROCESS = "import sys; from tests.emulator.test_compiler import *; print(build(TEXT + '// processes'))"


def test_processes_that_want_the_same_library_all_get_it(root):
    folder = os.path.dirname(os.path.dirname(kernels.__file__))  # noqa: PTH120 - for an environment variable
    command = [sys.executable, "-c", PROCESS]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": folder}) for _ in range(3)
    ]
    made = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(made) == 1


def test_builds_are_logged_with_their_time(root, caplog):
    caplog.set_level(logging.INFO, "quantplan")
    library = build(f"{TEXT}// logged\n")
    build(f"{TEXT}// logged\n")
    (record,) = (record for record in caplog.records if record.name == "quantplan.emulator.compiler")
    assert record.levelno == logging.INFO
    assert str(library) in record.getMessage()
    assert record.getMessage().endswith(" s")


# ---- what comes out


def undefined_symbols(library):
    with library.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        return {symbol.name for symbol in table.iter_symbols() if symbol["st_shndx"] == "SHN_UNDEF"}


def test_checked_builds_call_the_hooks_and_unchecked_ones_do_not(root):
    assert "__tsan_write4" in undefined_symbols(build(checked=True))
    assert not any(name.startswith(("__tsan", "__ubsan")) for name in undefined_symbols(build()))


def test_the_runtime_has_every_hook_that_compilers_call(root):
    (runtime,) = root.rglob("runtime-*.so")
    with runtime.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        names = {symbol.name for symbol in table.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"}
    for size in (1, 2, 4, 8, 16):
        for access in ("read", "write", "unaligned_read", "unaligned_write"):
            assert f"__tsan_{access}{size}" in names
    assert {"__tsan_read_range", "__tsan_write_range", "__tsan_memcpy", "__tsan_memset", "__tsan_memmove"} <= names
    inner = {name for name in names if "emulated" in name and "emulated_launch" not in name}
    assert all("clock" not in name and "site_of" not in name for name in inner), "the runtime's own names are hidden"
