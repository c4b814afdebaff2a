"""The cache of compiled kernels is where caches belong, private, never half written, and not trusted blindly."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from quantplan import cache

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners are POSIX's")


@pytest.fixture
def root(monkeypatch, tmp_path):
    """Return the cache's root, which does not exist yet."""
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    cache._temporary.cache_clear()


def mode(path):
    return path.stat().st_mode & 0o777


# ---- where it is


@pytest.mark.parametrize(
    "platform, variable, folder",
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
        ("darwin", None, "Library/Caches"),
        ("freebsd14", "XDG_CACHE_HOME", ".cache"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch, tmp_path, platform, variable, folder):
    monkeypatch.delenv("QUANTPLAN_CACHE_DIR", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert cache.cache_root() == tmp_path / folder / "quantplan"
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
        assert cache.cache_root() == tmp_path / "elsewhere" / "quantplan"


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_a_platforms_variable_counts_only_when_it_is_absolute(monkeypatch, tmp_path, value):
    """The cache must not follow the working directory."""
    monkeypatch.delenv("QUANTPLAN_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for platform, variable in (("linux", "XDG_CACHE_HOME"), ("win32", "LOCALAPPDATA")):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setenv(variable, value)
        assert cache.cache_root().is_relative_to(tmp_path)


def test_quantplan_cache_dir_names_the_folder_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTPLAN_CACHE_DIR", str(tmp_path))
    for platform in ("linux", "win32", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache.cache_root() == tmp_path


# ---- a folder of it


@posix
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o000])
def test_folders_are_private_whatever_the_umask(root, mask):
    before = os.umask(mask)
    try:
        place = cache.folder("kernels")
    finally:
        os.umask(before)
    assert place == root / "kernels"
    assert (mode(root), mode(place)) == (0o700, 0o700)


def test_a_folder_is_made_once_and_stays(root):
    cache.write(cache.folder("kernels") / "x", b"1")
    assert (cache.folder("kernels") / "x").read_bytes() == b"1"
    assert cache.folder("other") == root / "other"


def made_temporary(root, place):
    """Whether a folder is usable, empty and outside of the root, as one that replaces it must be."""
    return place.is_dir() and not list(place.iterdir()) and root not in place.parents


@posix
def test_a_symbolic_link_is_not_followed(root, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "elsewhere")
    assert made_temporary(root, cache.folder("kernels"))
    assert cache.why_untrusted(root) == f"{root} is a symbolic link"
    root.unlink()
    root.mkdir(mode=0o700)
    (root / "kernels").symlink_to(tmp_path / "elsewhere")
    assert made_temporary(root, cache.folder("kernels"))


@posix
@pytest.mark.parametrize("which", ["root", "place"])
@pytest.mark.parametrize("bit", [0o020, 0o002])
def test_a_folder_that_others_can_write_to_is_not_used(root, which, bit):
    place = cache.folder("kernels")
    guilty = root if which == "root" else place
    guilty.chmod(0o700 | bit)
    assert made_temporary(root, cache.folder("kernels"))
    assert cache.why_untrusted(guilty) == f"others can write to {guilty}"


@posix
def test_a_folder_that_others_can_read_is_used(root):
    cache.folder("kernels").chmod(0o755)
    assert cache.folder("kernels") == root / "kernels"


@posix
def test_somebody_elses_folder_is_not_used(root, monkeypatch):
    cache.folder("kernels")
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert cache.why_untrusted(root) == f"{root} belongs to somebody else"
    assert made_temporary(root, cache.folder("kernels"))


def test_a_folder_that_cannot_be_written_is_not_used(root, monkeypatch):
    """Faked: the superuser may write anywhere."""
    cache.folder("kernels")
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert cache.why_untrusted(root) == f"{root} cannot be written"
    assert made_temporary(root, cache.folder("kernels"))


def test_a_file_in_its_place_is_no_folder(root):
    root.write_text("")
    assert made_temporary(root, cache.folder("kernels"))


def test_without_a_home_the_cache_is_temporary(monkeypatch, root):
    def home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("QUANTPLAN_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert made_temporary(root, cache.folder("kernels"))


def test_the_temporary_folder_stays_the_same_and_says_why_once(root, caplog):
    root.write_text("")
    first = cache.folder("kernels")
    assert cache.folder("kernels") == first
    assert cache.folder("other") != first
    messages = [record.getMessage() for record in caplog.records if record.name == "quantplan.cache"]
    assert len(messages) == 2, "one for each folder"
    assert "not kept" in messages[0]
    assert str(root) in messages[0]


USES_A_TEMPORARY_FOLDER = """
import os
from quantplan import cache
place = cache.folder("kernels")
cache.write(place / "x", b"1")
if os.fork() == 0:
    raise SystemExit  # a child that ends in the ordinary way leaves its parent's files alone
os.wait()
print(place, (place / "x").exists())
"""


@posix
def test_the_temporary_folder_goes_away_with_its_process_and_not_with_a_child(root):
    root.write_text("")
    done = subprocess.run(
        [sys.executable, "-c", USES_A_TEMPORARY_FOLDER],
        env={**os.environ, "PYTHONPATH": str(Path(cache.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    place, there = done.stdout.split()
    assert there == "True"
    assert not Path(place).exists()


# ---- a file of it


@posix
def test_files_are_private(tmp_path):
    before = os.umask(0)
    try:
        cache.write(tmp_path / "x", b"1")
    finally:
        os.umask(before)
    assert mode(tmp_path / "x") == 0o600


def test_a_file_is_never_seen_half_written(tmp_path):
    path, seen, stop = tmp_path / "x", set(), threading.Event()
    contents = [bytes([i]) * 100_000 for i in range(2)]
    cache.write(path, contents[0])

    def read():
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(50):
        cache.write(path, contents[i % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    cache.write(tmp_path / "x", b"old")

    def fsync(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="no space"):
        cache.write(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_what_killed_writers_left_goes_away_once_it_is_old(root):
    """Young files may belong to a writer that is alive."""
    place = cache.folder("kernels")
    cache.write(place / "x", b"1")
    for name in (".x.old", ".x.young"):
        (place / name).write_bytes(b"half")
    long_ago = time.time() - 86_400
    os.utime(place / ".x.old", (long_ago, long_ago))
    cache._sweep.cache_clear()
    cache.folder("kernels")
    assert {path.name for path in place.iterdir()} == {"x", ".x.young"}
    (place / ".x.young").unlink()
    (place / ".y.old").write_bytes(b"half")
    os.utime(place / ".y.old", (long_ago, long_ago))
    cache.folder("kernels")
    assert (place / ".y.old").exists(), "a process looks once"
