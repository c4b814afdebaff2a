"""Where the CUDA sources are, and a digest that tells one version of them from another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PACKAGE = Path(__file__).resolve().parent
_FOLDER = "kernels_cu"
_MARKER = "README.md"  # tells the folder of sources from a namesake


def source_root() -> Path:
    """Return the folder of the CUDA sources.

    A wheel carries it inside the package; a checkout, and an editable install of one, has it beside the package.

    Returns
    -------
    pathlib.Path
        The absolute path of ``kernels_cu``.

    Raises
    ------
    FileNotFoundError
        If neither place has it: the installation is incomplete.
    """
    candidates = (_PACKAGE / _FOLDER, _PACKAGE.parent / _FOLDER)
    for folder in candidates:
        if (folder / _MARKER).is_file():
            return folder
    looked = " nor ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(
        f"quantplan's CUDA sources are missing: neither {looked} holds {_MARKER} (reinstall quantplan, or run it "
        f"from a complete checkout)"
    )


def source_digest(paths: Iterable[Path]) -> str:
    """Digest CUDA sources by name and content, whatever their order and wherever they are installed.

    Parameters
    ----------
    paths : iterable of pathlib.Path
        Files under ``source_root()``.

    Returns
    -------
    str
        The SHA-256 in hexadecimal. Renaming a file changes it as editing one does.
    """
    root = source_root().resolve()
    digest = hashlib.sha256()
    for name, path in sorted((path.resolve().relative_to(root).as_posix(), path) for path in paths):
        content = path.read_bytes()
        # Lengths first, so that no two sets of files share one stream of bytes.
        digest.update(f"{len(name.encode())} {len(content)} ".encode())
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()
