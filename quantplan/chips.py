"""What GPUs can do, as far as cost models need it to compare kernels: one typical chip of each compute capability.

The figures are round ones from the vendors' whitepapers (A100, RTX 3090, RTX 4090, B200, RTX 5090), and for 9.0 what
kernels reached on an H200. They rank candidates on any machine alike, with no GPU at hand; they promise no speed.
"""

from __future__ import annotations

import attrs

_MEGA, _GIGA, _TERA = 1e6, 1e9, 1e12


@attrs.frozen(kw_only=True)
class Chip:
    """A GPU.

    Parameters
    ----------
    sms : int
        Streaming multiprocessors.
    clock : float
        Cycles per second under load.
    bandwidth, l2_bandwidth : float
        Bytes per second from memory, and from the L2 cache.
    sm_bytes : float
        Bytes that come to an SM in a cycle.
    shared_bytes : int
        Shared memory of an SM.
    int8_macs : int
        8-bit multiply-adds of mma.sync in a cycle of an SM.
    wgmma_macs : int
        The same of wgmma, where there is one.
    """

    sms: int
    clock: float
    bandwidth: float
    l2_bandwidth: float
    shared_bytes: int
    int8_macs: int
    wgmma_macs: int = 0
    sm_bytes: float = 48.0


_KB = 1024
_CHIPS = {
    (8, 0): Chip(
        sms=108, clock=1410 * _MEGA, bandwidth=1.9 * _TERA, l2_bandwidth=4 * _TERA, shared_bytes=164 * _KB,
        int8_macs=2048,
    ),
    (8, 6): Chip(
        sms=82, clock=1700 * _MEGA, bandwidth=936 * _GIGA, l2_bandwidth=2.5 * _TERA, shared_bytes=100 * _KB,
        int8_macs=1024,
    ),
    (8, 9): Chip(
        sms=128, clock=2520 * _MEGA, bandwidth=1008 * _GIGA, l2_bandwidth=5 * _TERA, shared_bytes=100 * _KB,
        int8_macs=1024,
    ),
    (9, 0): Chip(
        sms=132, clock=1700 * _MEGA, bandwidth=4.2 * _TERA, l2_bandwidth=12 * _TERA, shared_bytes=228 * _KB,
        int8_macs=1800, wgmma_macs=3400,
    ),
    (10, 0): Chip(
        sms=148, clock=1850 * _MEGA, bandwidth=8 * _TERA, l2_bandwidth=10 * _TERA, shared_bytes=228 * _KB,
        int8_macs=2048,
    ),
    (12, 0): Chip(
        sms=170, clock=2400 * _MEGA, bandwidth=1.79 * _TERA, l2_bandwidth=7 * _TERA, shared_bytes=100 * _KB,
        int8_macs=1024,
    ),
}  # fmt: skip


def chip(capability: tuple[int, int]) -> Chip:
    """Return the typical chip of a compute capability: that of the nearest older one where it is not known itself."""
    return _CHIPS[max((known for known in _CHIPS if known <= capability), default=min(_CHIPS))]
