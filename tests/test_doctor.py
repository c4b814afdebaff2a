"""doctor: every finding, and a remedy for each that is missing."""

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

import pytest

import quantplan as qp
from tests import fake_cuda
from tests.fake_cuda import CUresult


def finding(name):
    found = [row for row in qp.doctor() if row.name == name]
    assert len(found) == 1, name
    return found[0]


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def without_cuda(monkeypatch):
    """Pretend that cuda-python is not installed."""
    monkeypatch.setitem(sys.modules, "cuda", None)


@pytest.fixture
def cuda_python(monkeypatch):
    """Pretend that cuda-python is installed; its parts are the test's to change."""
    machine = fake_cuda.Machine([(9, 0), (8, 9)], libraries=("cuda", "nvrtc"))
    fake_cuda.install(monkeypatch, machine)
    return machine


def test_what_is_missing_has_a_remedy_and_what_is_there_a_detail(own_cache, without_cuda):
    rows = qp.doctor()
    assert [row.name for row in rows if row.found and not row.detail] == []
    assert [row.name for row in rows if not row.found and not (row.remedy and row.needed_for)] == []
    assert [row.name for row in rows if row.found and row.remedy] == []
    assert len({row.name for row in rows}) == len(rows)


def test_everything_of_interest_is_looked_for(own_cache, without_cuda):
    names = {row.name for row in qp.doctor()}
    assert names >= {"python", "quantplan", "numpy", "ml_dtypes", "attrs", "CUDA driver", "GPUs", "NVRTC"}
    assert names >= {"host C++ compiler", "cache folder", "cuda-core"}


def test_nothing_is_changed(monkeypatch, tmp_path):
    root = tmp_path / "cache"
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(root))
    qp.doctor()
    assert list(tmp_path.iterdir()) == []


# ---- versions


def test_versions_are_those_installed(own_cache):
    assert finding("quantplan").detail == qp.__version__
    assert finding("numpy").detail == importlib.metadata.version("numpy")
    assert finding("python").detail.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


def test_a_missing_package_comes_with_the_command_that_installs_it(own_cache, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    row = finding("numpy")
    assert (row.found, row.needed_for, row.remedy) == (False, "everything", "pip install numpy")
    row = finding("cuda-core")
    assert (row.found, row.needed_for) == (False, "running on a GPU")
    assert row.remedy == "pip install 'quantplan[cuda13]'", "zsh globs unquoted brackets"


def test_one_cuda_package_is_enough(own_cache, monkeypatch):
    """CuPy for CUDA 12 beside CuPy for CUDA 13 breaks both: nobody is told to install the second one."""
    installed = {"cupy-cuda13x": "14.2.0"}

    def version(name):
        if name in installed or not name.startswith("cupy"):
            return installed.get(name, "1.0")
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    rows = [row for row in qp.doctor() if "cupy" in row.name.lower()]
    assert any(row.found for row in rows)
    assert not any("cuda12" in row.remedy for row in rows)


# ---- CUDA


def test_without_cuda_python_driver_gpus_and_nvrtc_are_missing(own_cache, without_cuda):
    assert finding("CUDA driver").detail == "cuda-python is not installed"
    assert "quantplan[cuda13]" in finding("CUDA driver").remedy
    assert (finding("GPUs").found, finding("GPUs").detail) == (False, "0")
    assert not finding("NVRTC").found
    assert "quantplan[cuda13]" in finding("NVRTC").remedy


def test_with_everything_they_are_found(own_cache, cuda_python):
    assert (finding("CUDA driver").found, finding("CUDA driver").remedy) == (True, "")
    assert (finding("GPUs").found, finding("GPUs").detail, finding("GPUs").remedy) == (True, "2", "")
    row = finding("NVRTC")
    assert (row.found, row.detail, row.remedy) == (True, "/usr/lib/libnvrtc.so", "")


def test_cuda_python_without_a_driver(own_cache, cuda_python):
    cuda_python.libraries = ()
    row = finding("CUDA driver")
    assert (row.found, row.detail) == (False, "no CUDA driver on this machine")
    assert "install the NVIDIA driver" in row.remedy
    assert finding("NVRTC").detail == '"nvrtc" is an NVIDIA library', "details are one line"


def test_a_driver_without_a_gpu(own_cache, cuda_python):
    cuda_python.capabilities = []
    assert finding("CUDA driver").found
    assert (finding("GPUs").found, finding("GPUs").detail) == (False, "0")


def test_a_driver_that_does_not_start_is_a_finding(own_cache, cuda_python, monkeypatch):
    """A library of another version than the kernel's module loads, and fails at its first call."""
    monkeypatch.setattr(sys.modules["cuda.bindings.driver"], "cuInit", lambda _: (CUresult.CUDA_ERROR_NOT_INITIALIZED,))
    row = finding("GPUs")
    assert not row.found
    assert "CUDA_ERROR_NOT_INITIALIZED" in row.detail
    assert qp.devices() == [qp.Target.parse("cpu")]


def test_without_nvrtc_kernels_may_come_from_elsewhere(own_cache, without_cuda):
    row = finding("NVRTC")
    assert "quantplan[cuda13]" in row.remedy
    assert "QUANTPLAN_CUBIN_PATH" in row.remedy


# ---- precompiled cubins


def precompiled(monkeypatch, *places):
    monkeypatch.setenv("QUANTPLAN_CUBIN_PATH", os.pathsep.join(map(str, places)))
    return [row for row in qp.doctor() if row.name.startswith("precompiled cubins")]


def test_folders_of_precompiled_cubins(own_cache, monkeypatch, tmp_path):
    folder = tmp_path / "cubins-of-another-machine"
    folder.mkdir()
    for name in ("a.cubin", "a.cubin.sha256", "b.cubin", "b.cubin.sha256"):
        (folder / name).write_text("")
    assert precompiled(monkeypatch) == []
    there, missing = precompiled(monkeypatch, folder, "", tmp_path / "missing")
    assert (there.found, there.detail, there.remedy) == (True, f"2 in {folder}", "")
    assert (missing.found, missing.detail) == (False, f"{tmp_path / 'missing'} does not exist")
    assert missing.remedy == "make the folder, or take it out of QUANTPLAN_CUBIN_PATH"
    assert missing.needed_for == "running without NVRTC"


def test_a_folder_without_cubins_and_a_cubin_without_its_digest(own_cache, monkeypatch, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    (row,) = precompiled(monkeypatch, folder)
    assert (row.found, row.detail) == (False, f"0 in {folder}")
    assert "quantplan warmup" in row.remedy
    (folder / "a.cubin").write_text("")
    (row,) = precompiled(monkeypatch, folder)
    assert (row.found, row.detail) == (False, f"a.cubin in {folder} has no digest")
    assert "quantplan warmup" in row.remedy


# ---- compiler


def program(folder, name):
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def without_zig(monkeypatch):
    """Pretend that the ziglang wheel is not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_the_compiler_is_the_first_on_the_path(own_cache, monkeypatch, tmp_path, without_zig):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    row = finding("host C++ compiler")
    assert (row.found, row.detail) == (False, "none of g++, clang++ and ziglang")
    assert row.remedy == "install g++ or clang++, pip install ziglang, or set CXX"
    clang = program(tmp_path, "clang++")
    assert finding("host C++ compiler").detail == str(clang)
    gcc = program(tmp_path, "g++")
    row = finding("host C++ compiler")
    assert (row.found, row.detail, row.remedy) == (True, str(gcc), "")


def test_the_ziglang_wheel_is_a_compiler(own_cache, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "ziglang" else None)
    row = finding("host C++ compiler")
    assert (row.found, row.detail) == (True, f"{sys.executable} -m ziglang c++")


def test_cxx_names_the_compiler(own_cache, monkeypatch, tmp_path, without_zig):
    own = program(tmp_path, "my-c++")
    monkeypatch.setenv("CXX", str(own))
    assert finding("host C++ compiler").detail == str(own)
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not finding("host C++ compiler").found, "empty is unset"
    monkeypatch.setenv("CXX", "no-such-compiler")
    row = finding("host C++ compiler")
    assert (row.found, row.remedy) == (False, "unset CXX, or correct it")
    assert "no-such-compiler" in row.detail


def test_cxx_may_carry_arguments(own_cache, monkeypatch, tmp_path):
    """``CXX="ccache g++"`` and ``CXX="clang++ -stdlib=libc++"`` are common."""
    own = program(tmp_path, "my-c++")
    monkeypatch.setenv("CXX", f"{own} -std=c++20")
    assert finding("host C++ compiler").found


# ---- cache


def test_a_folder_that_exists_and_one_that_will(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(tmp_path))
    row = finding("cache folder")
    assert (row.found, row.detail, row.remedy) == (True, f"{tmp_path} (exists)", "")
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(tmp_path / "a" / "b"))
    row = finding("cache folder")
    assert (row.found, row.detail) == (True, f"{tmp_path / 'a' / 'b'} (made when first needed)")


def test_a_relative_folder_is_found_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", "a/b")
    assert finding("cache folder").found


def test_a_file_is_no_folder(monkeypatch, tmp_path):
    path = tmp_path / "cache"
    path.write_text("")
    for root in (path, path / "below"):
        monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(root))
        row = finding("cache folder")
        assert not row.found
        assert "QUANTPLAN_CACHE_DIR" in row.remedy


def test_a_folder_that_others_can_write_to_is_not_used(own_cache):
    """What lies in the cache is run: see tests/test_cache.py."""
    own_cache.chmod(0o777)
    row = finding("cache folder")
    assert (row.found, "others can write" in row.detail) == (False, True)
    assert "QUANTPLAN_CACHE_DIR" in row.remedy


@pytest.mark.parametrize("name", ["cubins", "loaded", "emulator"])
def test_every_folder_of_the_cache_must_be_trusted(own_cache, name):
    (own_cache / name).mkdir()
    assert finding("cache folder").found
    (own_cache / name).chmod(0o777)
    row = finding("cache folder")
    assert (row.found, f"others can write to {own_cache / name}" in row.detail) == (False, True)


def test_a_cache_behind_a_symbolic_link_is_not_used(own_cache, tmp_path):
    (own_cache / "elsewhere").mkdir()
    (own_cache / "cubins").symlink_to(own_cache / "elsewhere")
    row = finding("cache folder")
    assert (row.found, "is a symbolic link" in row.detail) == (False, True)


def test_a_folder_that_cannot_be_written(own_cache, monkeypatch):
    """Faked: the superuser may write anywhere."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    row = finding("cache folder")
    assert not row.found
    assert "QUANTPLAN_CACHE_DIR" in row.remedy


def test_a_folder_that_cannot_even_be_looked_into_is_a_finding(own_cache, monkeypatch):
    """Faked: ``Path.exists`` raises PermissionError below a folder without search permission."""

    def exists(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", exists)
    row = finding("cache folder")
    assert not row.found
    assert "QUANTPLAN_CACHE_DIR" in row.remedy


def test_a_drive_that_is_not_there_is_a_finding(own_cache, monkeypatch):
    """Faked: on Windows no parent of a path on a missing drive exists."""
    monkeypatch.setattr(Path, "exists", lambda path, **options: False)
    row = finding("cache folder")
    assert not row.found
    assert "QUANTPLAN_CACHE_DIR" in row.remedy
