"""Stream: the CUDA stream behind what CuPy, torch and cuda.core call one."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from quantplan.errors import InvalidProblem


@attrs.frozen
class Stream:
    """A stream handle together with the device that it belongs to.

    Parameters
    ----------
    handle : int
        The ``CUstream`` as an integer.
    device : int
        Index of its device.
    owner : object
        Kept alive as long as the stream is in use.
    """

    handle: int
    device: int
    owner: object = attrs.field(default=None, eq=False, repr=False)

    @property
    def ptr(self) -> int:
        """The handle, under the name by which CuPy's launches ask for it."""
        return self.handle

    @classmethod
    def of(cls, obj: Any, device: int | None = None) -> Stream:  # noqa: ANN401 - any library's stream
        """Read torch's ``cuda_stream``, CuPy's ``ptr``, the ``__cuda_stream__`` protocol, or an integer handle.

        Parameters
        ----------
        obj : stream
            What the caller calls a stream.
        device : int, optional
            Device of a handle that does not know its own.

        Raises
        ------
        InvalidProblem
            It is no stream, or its device is unknown. None is refused: there is no implicit default stream.
        """
        if isinstance(obj, Stream):
            return obj
        handle = _handle(obj)
        if handle is None:
            expected = "a stream of CuPy, torch or cuda.core, or an integer handle"
            hint = "there is no implicit default stream" if obj is None else None
            raise InvalidProblem(field="stream", expected=expected, got=repr(obj), hint=hint)
        own = _device(obj)
        index = device if own is None else own
        if index is None:
            hint = "pass quantplan.Stream(handle, device)"
            raise InvalidProblem(field="stream", expected="a stream that knows its device", got=repr(obj), hint=hint)
        return cls(handle, index, obj)


def _handle(obj: Any) -> int | None:  # noqa: ANN401 - any library's stream
    if isinstance(obj, (int, np.integer)) and not isinstance(obj, bool):
        return int(obj)
    for name in ("cuda_stream", "ptr"):
        if isinstance(value := getattr(obj, name, None), int):
            return value
    protocol = getattr(obj, "__cuda_stream__", None)
    if protocol is None:
        return None
    return int((protocol() if callable(protocol) else protocol)[1])


def _device(obj: Any) -> int | None:  # noqa: ANN401 - any library's stream
    for name in ("device_id", "device_index"):
        if isinstance(value := getattr(obj, name, None), int):
            return value if value >= 0 else None  # CuPy says -1 for a stream that it did not make
    device = getattr(obj, "device", None)
    for name in ("index", "device_id", "id"):
        if isinstance(value := getattr(device, name, None), int):
            return value
    return None
