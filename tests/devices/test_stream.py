"""Streams of any library are taken with their device, and none is made up."""

from types import SimpleNamespace

import pytest

import quantplan as qp


class Cupy:
    """CuPy's Stream: a pointer and a device id, which is -1 for a stream that CuPy did not make."""

    def __init__(self, ptr, device_id):
        self.ptr, self.device_id = ptr, device_id


class NewCupy(Cupy):
    """CuPy since 14 also speaks the protocol."""

    def __cuda_stream__(self):
        return (0, self.ptr)


class Torch:
    """torch.cuda.Stream: a handle, a device index and a torch.device."""

    def __init__(self, cuda_stream, index):
        self.cuda_stream, self.device_index = cuda_stream, index
        self.device = SimpleNamespace(type="cuda", index=index)


class OldTorch:
    """A stream whose device alone knows the index."""

    def __init__(self, cuda_stream, index):
        self.cuda_stream, self.device = cuda_stream, SimpleNamespace(type="cuda", index=index)


class Core:
    """cuda.core's Stream: the protocol, and a Device."""

    def __init__(self, handle, device_id):
        self.handle, self.device = handle, SimpleNamespace(device_id=device_id)

    def __cuda_stream__(self):
        return (0, self.handle)


class ProtocolAttribute:
    """The protocol as an attribute, as cuda.core first had it."""

    def __init__(self, handle, device_id):
        self.__cuda_stream__ = (0, handle)
        self.device = SimpleNamespace(id=device_id)


KINDS = [Cupy, NewCupy, Torch, OldTorch, Core, ProtocolAttribute]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("handle, device", [(0x7F00, 0), (0x7F00, 3), (0, 1), (2**63 + 5, 0)])
def test_streams_that_know_their_device(kind, handle, device):
    stream = kind(handle, device)
    found = qp.Stream.of(stream)
    assert (found.handle, found.device) == (handle, device)
    assert found.owner is stream


@pytest.mark.parametrize("kind", KINDS)
def test_a_streams_own_device_counts(kind):
    """A stream of another device keeps it, so that the plan can refuse it."""
    assert qp.Stream.of(kind(0x7F00, 2), device=0).device == 2


@pytest.mark.parametrize(
    "stream",
    [
        Cupy(0x7F00, -1),
        NewCupy(0x7F00, -1),
        SimpleNamespace(ptr=0x7F00),
        SimpleNamespace(cuda_stream=0x7F00),
        SimpleNamespace(cuda_stream=0x7F00, device=SimpleNamespace(type="cuda", index=None)),
        SimpleNamespace(__cuda_stream__=lambda: (0, 0x7F00)),
        0x7F00,
    ],
)
def test_streams_that_do_not_know_their_device_take_the_plans(stream):
    found = qp.Stream.of(stream, device=1)
    assert (found.handle, found.device) == (0x7F00, 1)
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.Stream.of(stream)
    assert caught.value.field == "stream"
    assert caught.value.expected == "a stream that knows its device"
    assert caught.value.hint == "pass quantplan.Stream(handle, device)"


def test_a_stream_of_ours_is_taken_as_it_is():
    stream = qp.Stream(0x7F00, 1)
    assert qp.Stream.of(stream) is stream
    assert qp.Stream.of(stream, device=0) is stream


def test_none_is_no_default_stream():
    with pytest.raises(
        qp.InvalidProblem, match=r"stream: expected a stream of .*\(there is no implicit default stream\)"
    ):
        qp.Stream.of(None, device=0)


@pytest.mark.parametrize("thing", [True, False, 1.0, "cuda:0", object(), [], SimpleNamespace(ptr="0x7f00"), Cupy])
def test_what_is_no_stream_is_refused(thing):
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.Stream.of(thing, device=0)
    assert caught.value.field == "stream"
    assert caught.value.got == repr(thing)
    assert caught.value.hint is None


def test_streams_compare_by_handle_and_device():
    assert qp.Stream.of(Cupy(5, 0)) == qp.Stream.of(Torch(5, 0)) == qp.Stream(5, 0)
    assert hash(qp.Stream(5, 0)) == hash(qp.Stream.of(Core(5, 0)))
    assert qp.Stream(5, 0) != qp.Stream(5, 1)
    assert repr(qp.Stream.of(Cupy(5, 0))) == "Stream(handle=5, device=0)"
