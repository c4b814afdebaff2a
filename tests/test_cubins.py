"""Cubins come from memory, a precompiled folder, the cache or NVRTC, in this order; none is stale or damaged."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

import quantplan as qp
from quantplan import cache, cubins, kernels
from quantplan.kernels import KernelSpec, ParamStruct

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners are POSIX's")
ARCH = "sm_90a"
SOURCE = """
#define QP_KERNEL(name, threads, Params, ...) extern "C" __global__ void name(Params p) { __VA_ARGS__(p); }
namespace qp {
struct P { long long n; };
template <int> __device__ void body(const P& p) {}
}
"""


def spec(number=1):
    return KernelSpec(source="tiny.cu", body=f"body<{number}>", threads=32, params=ParamStruct("P", (("n", "q"),)))


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Start with no cubin anywhere, and a cache of one's own."""
    monkeypatch.setattr(cubins, "_memory", {})
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(cubins.PATH_VARIABLE, raising=False)
    cubins._warn.cache_clear()
    kernels.nvrtc_version.cache_clear()
    yield
    remembered = (cache._temporary, cubins._warn, kernels.family_digest, kernels.family_sources, kernels.nvrtc_version)
    for function in remembered:
        function.cache_clear()


@pytest.fixture
def root(monkeypatch, tmp_path):
    """Put a family of our own in place of all, which tests may edit."""
    folder = tmp_path / "kernels_cu"
    (folder / "include").mkdir(parents=True)
    (folder / "tiny.cu").write_text("#include <own.cuh>\n" + SOURCE)
    (folder / "include" / "own.cuh").write_text("// nothing yet\n")
    monkeypatch.setattr(kernels, "source_root", lambda: folder)
    kernels.family_digest.cache_clear()
    kernels.family_sources.cache_clear()
    return folder


@pytest.fixture
def compiled(root, monkeypatch):
    """Count compilations; a cubin is a text that says what it holds."""
    wanted = []

    def compile_cubin(specs, arch):
        (one,) = specs
        wanted.append((one.name, arch))
        return b"cubin of " + kernels.source_text(specs).encode() + arch.encode()

    monkeypatch.setattr(cubins, "compile_cubin", compile_cubin)
    monkeypatch.setattr(cubins, "nvrtc_version", lambda: "13.0")
    return wanted


def key(**changes):
    kernels.family_digest.cache_clear()
    kernels.family_sources.cache_clear()
    return cubins.key_of(attrs.evolve(spec(), **changes), ARCH)


def messages(caplog, level):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


# ---- keys


def test_a_key_changes_with_everything_that_makes_a_cubin(root, monkeypatch):
    keys = [key(), key(body="body<2>"), key(threads=64), cubins.key_of(spec(), "sm_80")]
    keys.append(key(params=ParamStruct("Q", (("n", "q"),))))
    (root / "tiny.cu").write_text("#include <own.cuh>\n" + SOURCE + "// edited\n")
    keys.append(key())
    (root / "include" / "own.cuh").write_text("#include <deep.cuh>\n")
    (root / "include" / "deep.cuh").write_text("")
    keys.append(key())
    (root / "include" / "deep.cuh").write_text("// edited\n")
    keys.append(key())
    monkeypatch.setattr(cubins, "compile_options", lambda: (*kernels.compile_options(), "--ftz=true"))
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_a_key_stays_when_nothing_of_it_changes(root):
    before = key()
    (root / "unrelated.cu").write_text("")
    (root / "include" / "unrelated.cuh").write_text("")
    assert key() == before


def test_file_names_are_readable_unique_and_short(root):
    name = cubins.file_name(spec(), key())
    assert name.startswith("qp_body_1-")
    assert name.endswith(".cubin")
    long = attrs.evolve(spec(), body=f"body<{'1' * 500}>")
    assert len(cubins.file_name(long, key())) < 128


def test_the_options_of_the_key_are_those_that_nvrtc_gets(monkeypatch, root):
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'quantplan[cuda13]'")
    given = []

    class Program:
        def __init__(self, text, language, options):
            given.extend(option.decode() for option in options.as_bytes("nvrtc"))
            raise NotImplementedError

    monkeypatch.setattr(core, "Program", Program)
    with pytest.raises(NotImplementedError):
        kernels.compile_text("", ARCH)
    own = set(kernels.compile_options())
    assert own <= set(given)
    rest = {option.partition("=")[0] for option in set(given) - own}
    assert rest <= {"-arch", "--gpu-architecture", "--include-path"}, "every other option belongs into the key"


# ---- where they come from


def test_memory_comes_first_then_the_path_then_the_cache(compiled, monkeypatch, tmp_path):
    pytest.importorskip("cuda.core", reason="the cache is cuda-core's")
    first = cubins.cubin(spec(), ARCH)
    assert compiled == [("qp_body_1", ARCH)]
    assert cubins.cubin(spec(), ARCH) is first
    cubins._memory.clear()
    assert cubins.cubin(spec(), ARCH) == first, "from the cache"
    assert len(compiled) == 1
    folder = tmp_path / "precompiled"
    folder.mkdir()
    path = folder / cubins.file_name(spec(), cubins.key_of(spec(), ARCH))
    path.write_bytes(b"other")
    path.with_name(f"{path.name}.sha256").write_text(cubins.sha256(b"other"))
    monkeypatch.setenv(cubins.PATH_VARIABLE, os.pathsep.join(["", str(tmp_path / "missing"), str(folder)]))
    assert cubins.cubin(spec(), ARCH) == first, "from memory"
    cubins._memory.clear()
    assert cubins.cubin(spec(), ARCH) == b"other", "from the path"
    assert len(compiled) == 1


def test_another_version_of_nvrtc_compiles_anew(compiled, monkeypatch):
    pytest.importorskip("cuda.core", reason="the cache is cuda-core's")
    for version, compilations in (("13.0", 1), ("13.1", 2), ("13.0", 2), ("14.0", 3), ("13.1", 3)):
        monkeypatch.setattr(cubins, "nvrtc_version", lambda version=version: version)
        cubins._memory.clear()
        assert cubins.cubin(spec(), ARCH)
        assert len(compiled) == compilations, version


def test_each_architecture_and_kernel_has_its_own(compiled):
    found = {cubins.cubin(spec(number), arch) for number in (1, 2) for arch in (ARCH, "sm_80")}
    assert len(found) == len(compiled) == 4


def test_a_compilation_is_logged_with_its_time(compiled, caplog):
    with caplog.at_level(logging.INFO, "quantplan"):
        cubins.cubin(spec(), ARCH)
        cubins.cubin(spec(), ARCH)
        cubins._memory.clear()
    (said,) = messages(caplog, logging.INFO)
    assert said.startswith(f"compiled qp_body_1 for {ARCH} in ")
    assert said.endswith(" ms")


def test_threads_that_want_the_same_kernel_compile_it_once(root, monkeypatch):
    calls = []

    def compile_cubin(specs, arch):
        calls.append(threading.get_ident())
        time.sleep(0.05)
        return b"slow"

    monkeypatch.setattr(cubins, "compile_cubin", compile_cubin)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cubins.cubin(spec(), ARCH), range(8)))
    assert len(calls) == 1
    assert all(content is found[0] for content in found)


def test_a_failure_is_not_remembered(root, monkeypatch):
    def fail(specs, arch):
        raise qp.KernelBuildError("no", options=(), log="")

    monkeypatch.setattr(cubins, "compile_cubin", fail)
    with pytest.raises(qp.KernelBuildError):
        cubins.cubin(spec(), ARCH)
    monkeypatch.setattr(cubins, "compile_cubin", lambda specs, arch: b"yes")
    assert cubins.cubin(spec(), ARCH) == b"yes"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")
def test_a_child_does_not_wait_for_a_thread_that_only_its_parent_has(root, monkeypatch):
    """The parent forks while a thread of its compiles."""
    monkeypatch.setattr(cubins, "compile_cubin", lambda specs, arch: b"compiled")
    with cubins._one_compiler:
        child = os.fork()
        if not child:
            os._exit(cubins.cubin(spec(), ARCH) != b"compiled")
    limit = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child waits for ever")
        time.sleep(0.01)


# ---- precompiled cubins


@pytest.fixture
def saved(compiled, monkeypatch, tmp_path):
    """Save a kernel's cubin for another machine, and become that machine."""
    folder = tmp_path / "precompiled"
    folder.mkdir()
    path = cubins.save(spec(), ARCH, folder)
    content = cubins.cubin(spec(), ARCH)
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv(cubins.PATH_VARIABLE, str(folder))
    cubins._memory.clear()
    compiled.clear()
    return path, content


def test_what_is_saved_is_found(saved, compiled):
    path, content = saved
    assert path.read_bytes() == content
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.sha256"}
    assert cubins.cubin(spec(), ARCH) == content
    assert compiled == []


@pytest.mark.parametrize("damage", ["cubin", "short cubin", "digest", "digest beyond ASCII", "empty digest"])
def test_a_damaged_precompiled_cubin_is_an_error(saved, damage):
    path, content = saved
    digest = path.with_name(f"{path.name}.sha256")
    match damage:
        case "cubin":
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "short cubin":
            path.write_bytes(content[:-1])
        case "digest":
            digest.write_text("0" * 64)
        case "digest beyond ASCII":
            digest.write_bytes(b"\xff" * 64)
        case "empty digest":
            digest.write_bytes(b"")
    with pytest.raises(qp.KernelBuildError, match="is not what its digest says") as caught:
        cubins.cubin(spec(), ARCH)
    assert caught.value.field == "qp_body_1"
    assert str(path) in str(caught.value)
    assert "quantplan warmup" in caught.value.hint
    assert cubins.PATH_VARIABLE in caught.value.hint


@pytest.mark.parametrize("version", ["12.9", None])
def test_a_precompiled_cubin_is_used_whatever_nvrtc_there_is(saved, compiled, monkeypatch, version):
    def nvrtc_version():
        assert version, "nobody asks a machine without NVRTC for it"
        return version

    monkeypatch.setattr(cubins, "nvrtc_version", nvrtc_version)
    assert cubins.cubin(spec(), ARCH) == saved[1]
    assert compiled == []


def test_a_precompiled_cubin_of_an_older_source_is_not_used(saved, compiled, root):
    (root / "tiny.cu").write_text(SOURCE)
    kernels.family_digest.cache_clear()
    kernels.family_sources.cache_clear()
    cubins.cubin(spec(), ARCH)
    assert len(compiled) == 1


WITHOUT_COMPILER = """
import sys
for name in ("cuda", "cupy"):
    sys.modules[name] = None
import quantplan as qp
from quantplan import cubins
from quantplan.plan import plan_type
desc = qp.QuantizeDescriptor(m=4, k=8)
(spec, *_) = qp.QuantizePlan.variants[0].kernels(desc)
print(len(cubins.cubin(spec, "sm_90a")))
try:
    cubins.cubin(spec, "sm_80")
except qp.CompilerNotFound as error:
    print(error)
"""


def test_a_machine_without_cuda_python_runs_what_was_compiled_elsewhere(tmp_path):
    pytest.importorskip("cuda.core", reason="somewhere it must be compiled")
    (one, *_) = qp.QuantizePlan.variants[0].kernels(qp.QuantizeDescriptor(m=4, k=8))
    path = cubins.save(one, ARCH, tmp_path)
    environment = {**os.environ, cubins.PATH_VARIABLE: str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], env=environment, capture_output=True, text=True, check=True
    )
    size, error = done.stdout.splitlines()
    assert int(size) == path.stat().st_size > 1000
    assert error.startswith("compile: cuda-core is not installed (pip install 'quantplan[cuda13]', or point ")
    assert done.stderr == ""


# ---- compilers that are missing


@pytest.fixture
def _no_cuda_core(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("cuda.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cuda", None)


@pytest.mark.usefixtures("_no_cuda_core")
def test_without_cuda_core(root):
    with pytest.raises(qp.CompilerNotFound, match="cuda-core is not installed") as caught:
        cubins.cubin(spec(), ARCH)
    assert "quantplan[cuda13]" in caught.value.hint
    assert "QUANTPLAN_CUBIN_PATH" in caught.value.hint


@pytest.mark.usefixtures("_no_cuda_core")
def test_without_cuda_core_nothing_is_cached_and_nothing_breaks(compiled, tmp_path):
    assert cubins.cubin(spec(), ARCH).startswith(b"cubin of ")
    assert not (tmp_path / "cache").exists()


def test_without_nvrtc(root, monkeypatch):
    core = pytest.importorskip("cuda.core", reason="without it there is another error")

    class DynamicLibNotFoundError(RuntimeError):
        pass

    def missing(*args):
        raise DynamicLibNotFoundError("nvrtc")

    monkeypatch.setattr(core, "Program", missing)
    with pytest.raises(qp.CompilerNotFound, match="NVRTC is not installed") as caught:
        cubins.cubin(spec(), ARCH)
    assert "quantplan[cuda13]" in caught.value.hint


def test_the_version_of_nvrtc_is_asked_for_once(monkeypatch):
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="quantplan[cuda13] is not installed")
    asked = []

    def version():
        asked.append(None)
        return nvrtc.nvrtcResult.NVRTC_SUCCESS, 13, 7

    monkeypatch.setattr(nvrtc, "nvrtcVersion", version)
    assert kernels.nvrtc_version() == kernels.nvrtc_version() == "13.7"
    assert len(asked) == 1


@pytest.mark.usefixtures("_no_cuda_core")
def test_without_cuda_core_nvrtc_has_no_version():
    with pytest.raises(qp.CompilerNotFound, match="cuda-core is not installed"):
        kernels.nvrtc_version()


def test_without_nvrtc_it_has_no_version(monkeypatch):
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="quantplan[cuda13] is not installed")

    class DynamicLibNotFoundError(RuntimeError):
        pass

    def missing():
        raise DynamicLibNotFoundError("nvrtc")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", missing)
    with pytest.raises(qp.CompilerNotFound, match="NVRTC is not installed"):
        kernels.nvrtc_version()


def test_a_source_that_nvrtc_refuses(root):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'quantplan[cuda13]'")
    (root / "tiny.cu").write_text(SOURCE.replace("{}", "{ return nonsense; }"))
    with pytest.raises(qp.KernelBuildError, match="nonsense") as caught:
        cubins.cubin(spec(), ARCH)
    assert "--fmad=false" in caught.value.options
    assert f"--gpu-architecture={ARCH}" in caught.value.options


def test_nvrtc_makes_cubins_that_differ_by_architecture(root):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'quantplan[cuda13]'")
    found = {arch: cubins.cubin(spec(), arch) for arch in ("sm_80", ARCH)}
    assert all(content.startswith(b"\x7fELF") and b"qp_body_1" in content for content in found.values())
    assert len(set(found.values())) == 2


# ---- the cache


@pytest.fixture
def entries(tmp_path):
    """Return the cache's files: a cubin and its digest for each kernel."""
    pytest.importorskip("cuda.core", reason="the cache is cuda-core's")
    return lambda: [path for path in (tmp_path / "cache" / "cubins" / "entries").rglob("*") if path.is_file()]


@pytest.mark.parametrize("which", ["cubin", "digest", "both"])
def test_a_changed_entry_is_compiled_anew(compiled, entries, caplog, which):
    right = cubins.cubin(spec(), ARCH)
    for path in entries():
        content = path.read_bytes()
        if which in ("both", "cubin" if content == right else "digest"):
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    cubins._memory.clear()
    assert cubins.cubin(spec(), ARCH) == right
    assert len(compiled) == 2
    assert messages(caplog, logging.WARNING) == [
        "a cached cubin of qp_body_1 is not what its digest says: it is compiled anew"
    ]
    cubins._memory.clear()
    assert cubins.cubin(spec(), ARCH) == right
    assert len(compiled) == 2, "the entry is mended"


def test_half_an_entry_is_none(compiled, entries, caplog):
    """A process that was killed between two writes."""
    right = cubins.cubin(spec(), ARCH)
    next(path for path in entries() if path.read_bytes() == right).unlink()
    cubins._memory.clear()
    assert cubins.cubin(spec(), ARCH) == right
    assert len(compiled) == 2
    assert messages(caplog, logging.WARNING) == []


def kept_elsewhere(compiled, caplog):
    """Compile several kernels, twice as another process would; the cache is not used, and one warning says why."""
    for number in range(4):
        assert cubins.cubin(spec(number), ARCH)
    assert len(compiled) == 4
    (said,) = messages(caplog, logging.WARNING)
    return said


def test_a_cache_that_cannot_be_written(compiled, caplog, monkeypatch):
    """Faked: the superuser may write anywhere."""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert "cannot be written" in kept_elsewhere(compiled, caplog)


@posix
def test_a_cache_behind_a_symbolic_link(compiled, caplog, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link" in kept_elsewhere(compiled, caplog)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@posix
def test_a_cache_of_somebody_else(compiled, caplog, monkeypatch):
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert "belongs to somebody else" in kept_elsewhere(compiled, caplog)


def test_no_folder_at_all(compiled, caplog, monkeypatch):
    pytest.importorskip("cuda.core", reason="the cache is cuda-core's")

    def nowhere(*args, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache, "_make", lambda path: "it cannot be written")
    monkeypatch.setattr(cache.tempfile, "mkdtemp", nowhere)
    assert kept_elsewhere(compiled, caplog) == "the cache of cubins cannot be opened: Read-only file system"


def test_a_full_disk_costs_time_and_no_result(compiled, caplog, monkeypatch):
    utils = pytest.importorskip("cuda.core.utils", reason="the cache is cuda-core's")

    def full(store, key, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(utils.FileStreamProgramCache, "__setitem__", full)
    assert kept_elsewhere(compiled, caplog) == "the cache of cubins cannot be written to: No space left on device"


def test_an_entry_that_cannot_be_read(compiled, entries, caplog):
    cubins.cubin(spec(), ARCH)
    for path in entries():
        path.unlink()
        path.mkdir()
    cubins._memory.clear()
    assert cubins.cubin(spec(), ARCH)
    assert len(compiled) == 2
    assert "the cache of cubins cannot be read: Is a directory" in messages(caplog, logging.WARNING)
