"""What every kernel begins with, read by g++ once: the tests build hundreds of small kernels."""

from pathlib import Path
from tempfile import TemporaryDirectory

from quantplan import cache
from quantplan.emulator import compiler

ARCHS = (800, 900)  # kernels for another one read the headers themselves


def precompile(folder, *, checked=(True,)):
    """Make a folder that spares g++ reading the same headers for each kernel; another compiler finds nothing in it."""
    made = Path(folder, f"{compiler.PRELUDE}.gch")  # a folder: g++ takes from it what fits
    made.mkdir(parents=True)
    command = compiler.find_compiler()
    if "clang" in compiler._identity(command)[-1]:
        return
    header = compiler.HERE / "include" / compiler.PRELUDE
    includes = [f"-I{place}" for place in compiler._folders()]
    for check in checked:
        options = (*compiler._CHECKED, *compiler._INSTRUMENTATION["gcc"]) if check else compiler._UNCHECKED
        for arch in ARCHS:
            what = (f"-D__CUDA_ARCH__={arch}", "-x", "c++-header", str(header), "-o", str(made / f"{arch}-{check}"))
            compiler._call((*command, *options, *includes, *what))


def cached():
    """Return such a folder for all kernels, which the processes of a run share."""
    options = (*compiler._CHECKED, *compiler._UNCHECKED)
    key = compiler._digest(*compiler._identity(compiler.find_compiler()), *options, compiler._sources(""))
    place = cache.folder("emulator") / f"headers-{key}"
    if not place.exists():
        with compiler._locked(place):
            if not place.exists():  # nor made by another process meanwhile
                with TemporaryDirectory(dir=place.parent) as scratch:
                    fresh = Path(scratch, "headers")
                    precompile(fresh, checked=(True, False))
                    fresh.rename(place)
    return place
