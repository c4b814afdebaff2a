"""How lanes share a segment: whatever the host chooses, the bits are the reference's."""

import pytest

import quantplan as qp
from quantplan.ops import _dynamic_kernels
from tests.kernels.twin import preload


def lanes(m, k, width=8, *, dense=True, **fields):
    desc = qp.DynamicRangeQuantizeDescriptor(m=m, k=k, input_element="bf16", **fields)
    shape = _dynamic_kernels.SegmentsProgram()._shape(desc, width, dense=dense)
    return shape.lanes, shape.kept, shape.abreast


def test_large_problems_keep_a_few_chunks_a_thread():
    assert lanes(4096, 4096) == (128, 4, 1)
    assert lanes(4096, 1024) == (32, 4, 1)
    assert lanes(4096, 5120) == (256, 3, 1)
    assert lanes(4096, 4096, scope="group:128") == (8, 2, 2)
    assert lanes(4096, 4096, scope="group:128", dense=False) == (8, 2, 1)


def test_neighbouring_lanes_read_whole_lines_and_write_whole_sectors():
    assert lanes(4096, 4096, scope="group:32") == (4, 1, 4)
    assert lanes(4096, 4096, scope="group:16") == (2, 1, 4)
    assert lanes(4096, 4096, width=1, scope="group:32") == (32, 1, 4)


def test_small_problems_spend_lanes():
    assert lanes(1, 512) == (64, 1, 1)
    assert lanes(1, 4096) == (256, 2, 1)
    assert lanes(200, 4096) == (256, 2, 1)
    assert lanes(300, 4096) == (128, 4, 1)
    assert lanes(0, 4096) == (256, 2, 1)
    assert lanes(1, 8192) == (256, 4, 1)
    assert lanes(16, 4096, scope="group:128") == (16, 1, 1)
    assert lanes(16, 4096, scope="group:32") == (4, 1, 1)


def test_long_rows_stay_in_registers_as_far_as_they_go():
    assert lanes(1, 65_536) == (1024, 8, 1)
    assert lanes(4096, 1 << 20) == (1024, 8, 1)
    assert lanes(4096, 0) == (1, 1, 1)


def test_long_rows_leave_an_sm_two_blocks():
    assert lanes(1, 28_672) == lanes(4096, 28_672) == (512, 7, 1)
    assert lanes(4096, 32_768) == (512, 8, 1)
    assert lanes(4096, 32_776) == (1024, 5, 1)


@pytest.fixture
def as_if_large(monkeypatch):
    """Let small problems run with the lanes of large ones."""
    monkeypatch.setattr(_dynamic_kernels, "_ENOUGH_THREADS", 1)
    qp.DynamicRangeQuantizePlan.forget()
    yield
    qp.DynamicRangeQuantizePlan.forget()


@pytest.mark.usefixtures("as_if_large")
@pytest.mark.parametrize("scope", ["token", "group:128", "group:64", "group:48", "group:32", "group:16"])
def test_every_share_gives_the_references_bits(twin, scope):
    fields = {"m": 5, "output_element": "fp8_e4m3", "scope": scope}
    descs = [
        qp.DynamicRangeQuantizeDescriptor(k=k, input_element=element, **fields)
        for k in (37, 128, 300, 1000)
        for element in ("bf16", "f32", "f64")
    ]
    preload(descs)
    for desc in descs:
        for layout in ("dense", "misaligned"):
            twin.check(desc, {"x": twin.awkward(5, desc.k, desc.input_element)}, layout=layout)
