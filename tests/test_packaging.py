"""The CUDA sources, the typing marker and the license travel with every kind of installation."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHIPPED = ("quantplan", "kernels_cu", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile")
REPORT = """
import pathlib, sys
import quantplan
from quantplan import kernels
print(pathlib.Path(quantplan.__file__).resolve().parent)
print(kernels.source_root())
print(quantplan.__version__)
print(kernels.source_digest(kernels.source_root().rglob("*.*")))
"""


def report(*, path=None):
    """Run REPORT in a fresh interpreter, away from the checkout: package folder, source root, version, digest."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", REPORT], cwd=path or "/", env=env, capture_output=True, text=True, check=True
    )
    package, root, version, digest = done.stdout.splitlines()
    return Path(package), Path(root), version, digest


def pip(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Copy what the distributions are built from, so that building leaves nothing behind in the real checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), ".", cwd=checkout)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(folder)],
        cwd=checkout,
        capture_output=True,
        check=True,
    )
    (built,) = folder.glob("*.tar.gz")
    return built


def kernel_sources():
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels_cu").rglob("*") if path.is_file()}


def modules():
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "quantplan").rglob("*.py")}


def test_wheel_holds_modules_kernels_typing_marker_and_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert names >= modules()
    assert names >= {f"quantplan/{name}" for name in kernel_sources()}
    assert "quantplan/py.typed" in names
    assert any(re.fullmatch(r"quantplan-[^/]+\.dist-info/licenses/LICENSE", name) for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"quantplan"}, "the wheel installs one package"


def test_wheel_metadata_names_version_python_and_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(info).decode()
        scripts = archive.read(info.replace("METADATA", "entry_points.txt")).decode()
    assert f"Version: {report(path=ROOT)[2]}\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    assert "quantplan = quantplan.cli:main" in scripts
    core = {
        re.match(r"[\w.-]+", line).group().lower().replace("-", "_")
        for line in re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
        if "extra ==" not in line
    }
    assert core == {"numpy", "attrs", "ml_dtypes"}


def test_sdist_holds_modules_kernels_and_license(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= modules() | kernel_sources() | {"quantplan/py.typed", "LICENSE", "README.md", "pyproject.toml"}


def test_installed_wheel_finds_its_own_sources(wheel, tmp_path):
    pip("install", "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel), cwd=tmp_path)
    package, root, version, digest = report(path=tmp_path)
    assert package == tmp_path / "quantplan"
    assert root == package / "kernels_cu"
    assert (version, digest) == report(path=ROOT)[2:], "the wheel's sources are those of the checkout"


def test_editable_install_finds_the_checkouts_sources(checkout, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    scripts = venv / ("Scripts" if os.name == "nt" else "bin")
    (site,) = (path for path in venv.rglob("site-packages") if path.is_dir())
    # Dependencies and the build backend come from the environment that runs the tests.
    (site / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    pip(
        "--python",
        str(scripts / "python"),
        "install",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--ignore-installed",
        "--editable",
        str(checkout),
        cwd=tmp_path,
    )
    done = subprocess.run(
        [str(scripts / "python"), "-c", REPORT], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    package, root = (Path(line) for line in done.stdout.splitlines()[:2])
    assert package == checkout / "quantplan"
    assert root == checkout / "kernels_cu"


def test_checkout_finds_the_sibling_folder():
    package, root, _, _ = report(path=ROOT)
    assert package == ROOT / "quantplan"
    assert root == ROOT / "kernels_cu"


def test_incomplete_installation_says_where_it_looked(tmp_path):
    shutil.copytree(ROOT / "quantplan", tmp_path / "quantplan", ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        report(path=tmp_path)
    message = caught.value.stderr.splitlines()[-1]
    assert message.startswith("FileNotFoundError: quantplan's CUDA sources are missing")
    assert str(tmp_path / "kernels_cu") in message
    assert str(tmp_path / "quantplan" / "kernels_cu") in message


def test_every_extra_of_the_readme_exists():
    extras = PROJECT["project"]["optional-dependencies"]
    named = re.findall(r"quantplan\[([\w,]+)\]", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert named
    assert {extra for group in named for extra in group.split(",")} <= set(extras)


@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "inspect"])
def test_cuda_extras_install_nothing_where_nvidia_publishes_nothing(extra):
    requirements = [Requirement(text) for text in PROJECT["project"]["optional-dependencies"][extra]]
    assert requirements
    supported = [("linux", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64")]
    unsupported = [("darwin", "arm64"), ("darwin", "x86_64"), ("win32", "ARM64"), ("linux", "ppc64le")]
    for requirement in requirements:
        for platform, machine in supported + unsupported:
            applies = requirement.marker.evaluate({"sys_platform": platform, "platform_machine": machine})
            assert applies == ((platform, machine) in supported), f"{requirement.name} on {platform} {machine}"
