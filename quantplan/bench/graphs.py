"""Time on a GPU: launches captured in a graph, over operands that rotate, with the host well ahead of the GPU."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quantplan.bench.memory import GpuMemory

    Call = Callable[[], object]
    Capture = Callable[[Sequence[Call]], Call]

FEWEST_SETS, MOST_SETS = 4, 512
_LONG = 500.0
"""Microseconds that one replay should take: the start of a graph is nothing beside them."""
_MOST_CYCLES = 64


def sets(nbytes: int, l2: int, free: int) -> int:
    """Return how many sets of operands to rotate: at least 4, and together twice the L2 cache, which then holds none.

    Parameters
    ----------
    nbytes : int
        Of one set.
    l2, free : int
        Bytes of the cache, and of memory that may be taken.

    Raises
    ------
    MemoryError
        Not even the fewest fit.
    """
    wanted = min(MOST_SETS, max(FEWEST_SETS, math.ceil(2 * l2 / max(1, nbytes))))
    if FEWEST_SETS * nbytes > free:
        raise MemoryError(f"{FEWEST_SETS} sets of {nbytes} bytes, and {free} bytes are free")
    return min(wanted, max(FEWEST_SETS, free // max(1, nbytes)))


def timer(memory: GpuMemory, calls: Sequence[Call], capture: Capture) -> Callable[[], float]:
    """Return what tells the microseconds of one call, from a replay of as many rounds as make a good while.

    Parameters
    ----------
    memory : GpuMemory
        Whose stream it is.
    calls : sequence of callables
        One launch for each set of operands.
    capture : callable
        Returns the replay of some launches.
    """
    replay = capture(calls)
    once = memory.elapsed(replay)  # the first replay uploads the graph
    once = min(once, memory.elapsed(replay))
    cycles = min(_MOST_CYCLES, max(1, math.ceil(_LONG / max(once, 1e-3))))
    if cycles > 1:
        replay = capture([*calls] * cycles)
    # While one replay runs, the host enqueues the next and its events; long ones need no such start.
    ahead = replay if once < _LONG else None
    count = cycles * len(calls)

    def time() -> float:
        return memory.elapsed(replay, ahead) / count

    return time


class TorchGraphs:
    """Captures torch's launches on the stream of our own, so that both are timed by the same events."""

    def __init__(self, torch: Any, memory: GpuMemory) -> None:  # noqa: ANN401 - a module
        self.torch, self.device = torch, f"cuda:{memory.target.index}"
        self.stream = torch.cuda.ExternalStream(memory.stream.ptr, device=self.device)

    def prepare(self, peer: Callable[[Any], list[Call]], bench: Any) -> list[Call]:  # noqa: ANN401 - a `peers.Bench`
        """Return a peer's calls, whose operands were made on the stream."""
        with self.torch.cuda.stream(self.stream):
            return peer(bench)

    def capture(self, calls: Sequence[Call]) -> Call:
        """Capture calls; the result replays them."""
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.stream(self.stream):
            calls[0]()  # whatever is made ready at the first call is no part of a graph
            self.stream.synchronize()
            graph.capture_begin()
            try:
                for call in calls:
                    call()
            finally:
                graph.capture_end()

        def replay() -> None:
            with self.torch.cuda.stream(self.stream):
                graph.replay()

        return replay

    def release(self) -> None:
        """Give memory back that no tensor holds."""
        gc.collect()
        self.torch.cuda.empty_cache()
