"""The digest of the CUDA sources tells versions apart and does not depend on where they are installed."""

import pytest

from quantplan import kernels


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Pretend that the package lies in a folder of ours, with two sources beside it."""
    monkeypatch.setattr(kernels, "_PACKAGE", tmp_path / "quantplan")
    folder = tmp_path / "kernels_cu"
    (folder / "include").mkdir(parents=True)
    (folder / "README.md").write_text("sources")
    (folder / "a.cu").write_bytes(b"one")
    (folder / "include" / "b.cuh").write_bytes(b"two")
    return folder


def digest(root):
    return kernels.source_digest([root / "a.cu", root / "include" / "b.cuh"])


def test_the_packages_own_folder_comes_first(root):
    assert kernels.source_root() == root
    inside = root.parent / "quantplan" / "kernels_cu"
    inside.mkdir(parents=True)
    assert kernels.source_root() == root, "an empty folder is no source folder"
    (inside / "README.md").write_text("sources")
    assert kernels.source_root() == inside


def test_missing_folder_is_an_error_that_names_both_places(root):
    (root / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match="CUDA sources are missing") as caught:
        kernels.source_root()
    assert str(root) in str(caught.value)
    assert str(root.parent / "quantplan" / "kernels_cu") in str(caught.value)


def test_digest_ignores_order(root):
    paths = [root / "a.cu", root / "include" / "b.cuh"]
    assert kernels.source_digest(paths) == kernels.source_digest(iter(reversed(paths)))
    assert len(kernels.source_digest(paths)) == 64


def test_digest_follows_the_sources_when_they_move(root, monkeypatch, tmp_path):
    before = digest(root)
    moved = tmp_path / "elsewhere" / "kernels_cu"
    moved.parent.mkdir()
    root.rename(moved)
    monkeypatch.setattr(kernels, "_PACKAGE", moved.parent / "quantplan")
    assert digest(moved) == before


def test_digest_changes_with_content(root):
    before = digest(root)
    (root / "include" / "b.cuh").write_bytes(b"twO")
    assert digest(root) != before


def test_digest_changes_with_names(root):
    before = digest(root)
    (root / "a.cu").rename(root / "c.cu")
    assert kernels.source_digest([root / "c.cu", root / "include" / "b.cuh"]) != before


def test_digest_changes_when_bytes_move_between_files(root):
    before = digest(root)
    (root / "a.cu").write_bytes(b"onet")
    (root / "include" / "b.cuh").write_bytes(b"wo")
    assert digest(root) != before
