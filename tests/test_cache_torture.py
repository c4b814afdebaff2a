"""Processes that fight for one cache, are killed, and find its bits flipped never load another cubin.

Round after round, processes compile and load the same kernels from one cache. Some are killed at a random moment and
replaced, and in between bits of entries are flipped. Whoever comes through has the reference's bytes.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantplan import cubins
from quantplan.kernels import KernelSpec, ParamStruct

pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'quantplan[cuda13]'")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed as POSIX kills them")

ROOT = Path(__file__).parents[1]
SOURCE = """
#define QP_KERNEL(name, threads, Params, ...) extern "C" __global__ void name(Params p) { __VA_ARGS__(p); }
namespace qp {
struct P { int* out; };
template <int n> __device__ void body(const P& p) { for (int i = 0; i < n; ++i) p.out[i * n] += n; }
}
"""
# What each process does: it also asks for the file that CuPy would load, which is a second cache.
COMPILES = """
import logging, sys
from pathlib import Path
from quantplan import cubins, kernels
from quantplan.devices import gpu
folder, count = Path(sys.argv[1]), int(sys.argv[2])
kernels.source_root = lambda: folder
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s", level=logging.WARNING)
print("ready", flush=True)
for number in range(count):
    spec = kernels.KernelSpec(source="tiny.cu", body=f"body<{number + 1}>", threads=32,
                              params=kernels.ParamStruct("P", (("out", "P"),)))
    content = cubins.cubin(spec, "sm_90a")
    print("cubin", number, cubins.sha256(content), cubins.sha256(gpu._file_of(content).read_bytes()), flush=True)
print("done", flush=True)
"""


class Fight:
    """A cache, the processes that want it, and what they have seen of it."""

    def __init__(self, tmp_path, monkeypatch, kernels):
        self.cache, self.sources, self.kernels = tmp_path / "cache", tmp_path / "kernels_cu", kernels
        self.random, self.killed, self.warnings, self.outputs = random.Random(0), 0, 0, tmp_path / "outputs"
        self.outputs.mkdir()
        (self.sources / "include").mkdir(parents=True)
        (self.sources / "tiny.cu").write_text(SOURCE)
        monkeypatch.setattr("quantplan.kernels.source_root", lambda: self.sources)
        params = ParamStruct("P", (("out", "P"),))
        specs = [KernelSpec(source="tiny.cu", body=f"body<{n + 1}>", threads=32, params=params) for n in range(kernels)]
        self.reference = [cubins.sha256(cubins.compile_cubin([spec], "sm_90a")) for spec in specs]

    def start(self):
        environment = {**os.environ, "QUANTPLAN_CACHE_DIR": str(self.cache), "PYTHONPATH": str(ROOT)}
        environment.pop(cubins.PATH_VARIABLE, None)
        output = (self.outputs / f"{len(list(self.outputs.iterdir()))}.txt").open("w")
        command = [sys.executable, "-c", COMPILES, str(self.sources), str(self.kernels)]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        output.close()
        return process

    def round(self, processes, kills, seconds):
        """Run processes at once; kill some of them within some seconds, and start others in their place."""
        alive = [self.start() for _ in range(processes)]
        for _ in range(kills):
            time.sleep(self.random.uniform(0, seconds / kills))
            victim = self.random.randrange(len(alive))
            if alive[victim].poll() is None:
                alive[victim].send_signal(signal.SIGKILL)
                alive[victim].wait()
                self.killed += 1
                alive[victim] = self.start()
        for process in alive:
            assert process.wait(timeout=300) == 0, self._said()
        self._judge()

    def _said(self):
        return "\n".join(path.read_text()[-2000:] for path in self.outputs.iterdir())

    def _judge(self):
        finished = 0
        for path in self.outputs.iterdir():
            for line in path.read_text().splitlines():
                match line.split():
                    case ["cubin", number, *found] if len(found) == 2 and len(found[1]) == 64:  # not cut off by a kill
                        assert found == [self.reference[int(number)]] * 2, f"kernel {number} in {path.name}"
                    case ["WARNING", *_]:
                        assert "is not what its digest says: it is compiled anew" in line
                        self.warnings += 1
                    case ["done"]:
                        finished += 1
            path.write_text("")
        assert finished, "nobody came through"

    def files(self):
        return [path for path in self.cache.rglob("*") if path.is_file()]

    def flip_bits(self, share):
        """Flip a bit of a share of all entries, of digests as of cubins, in place."""
        for path in self.files():
            content = bytearray(path.read_bytes())
            if content and self.random.random() < share:
                content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
                path.write_bytes(content)

    def temporary(self):
        """Return what writers have left: files of no entry."""
        return [p for p in self.files() if p.name.startswith(".") or p.parent.name == "tmp"]

    def check_the_end(self):
        """Hold the cache to it: nothing but entries, one file left by each kill at most, and those go away."""
        left = self.temporary()
        assert len(left) <= self.killed
        entries = [path for path in self.files() if path not in left]
        assert len(entries) == 3 * self.kernels, "a cubin with its digest, and the file that CuPy loads"
        long_ago = time.time() - 86_400
        for path in left:
            os.utime(path, (long_ago, long_ago))
        process = self.start()
        assert process.wait(timeout=120) == 0
        self._judge()
        assert self.temporary() == []
        digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.cache / "loaded").iterdir()}
        assert digests == set(self.reference)


def test_a_few_processes_fight_for_a_cache(tmp_path, monkeypatch):
    fight = Fight(tmp_path, monkeypatch, kernels=2)
    fight.round(processes=3, kills=1, seconds=1)
    fight.flip_bits(share=1)
    fight.round(processes=2, kills=0, seconds=0)
    assert fight.warnings
    fight.check_the_end()


@pytest.mark.slow
def test_many_processes_fight_for_a_cache(tmp_path, monkeypatch):
    fight = Fight(tmp_path, monkeypatch, kernels=16)
    for number in range(3):
        fight.round(processes=16, kills=24, seconds=12 if number == 0 else 6)
        fight.flip_bits(share=0.4)
    fight.round(processes=16, kills=0, seconds=0)
    assert fight.killed > 20
    assert fight.warnings
    fight.check_the_end()
