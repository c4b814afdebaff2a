import numpy as np
import pytest

from quantplan.elements import ElementKind
from quantplan.verify.tensors import HostTensor, Memory


@pytest.mark.parametrize("element", list(ElementKind))
@pytest.mark.parametrize("shape", [(3, 7), (2, 4), (5,), (0, 3), (2, 0), (1, 1)])
def test_memory_gives_back_the_codes_it_was_given(element, shape):
    codes = [i * 37 % (1 << element.bits) for i in range(int(np.prod(shape)))]
    memory = HostTensor(element, shape, codes).memory()
    assert memory.load() == codes
    assert memory.faults() == []


def test_packed_elements_lie_low_nibble_first_with_a_zero_tail():
    memory = HostTensor(ElementKind.S4, (2, 3), [1, 2, 3, 4, 5, 15]).memory()
    assert memory.operand.numpy().tolist() == [[0x21, 0x03], [0x54, 0x0F]]


def test_the_operand_is_the_memory_with_strided_rows():
    memory = HostTensor.of(ElementKind.F32, (2, 3), [1.0, -2.0, 0.5, 3.0, 4.0, -0.0]).memory()
    view = memory.operand
    assert view.element is ElementKind.F32
    assert view.strides[0] > view.shape[1]
    view.numpy()[1, 2] = 7
    assert memory.load()[-1] == 0x40E00000


@pytest.mark.parametrize("row, column", [(0, -1), (0, 4), (2, 4), (2, -1)])
def test_a_write_beside_a_row_is_noticed(row, column):
    memory = HostTensor(ElementKind.S8, (3, 4), [0] * 12).memory()
    memory.buffer[row, 3 + column] += 1
    assert memory.faults() == ["wrote beyond the ends of its rows"]


def test_a_dirty_odd_tail_is_noticed():
    memory = HostTensor(ElementKind.U4, (2, 3), [0] * 6).memory()
    memory.operand.numpy()[1, 1] = 0x10
    assert memory.faults() == ["left the odd tail's unused nibble other than zero"]


def test_fresh_memory_is_poisoned():
    assert set(Memory.allocate(ElementKind.S8, (2, 2)).load()) == {0xA5}


def test_rows_of_matrices_and_vectors():
    matrix = HostTensor.of(ElementKind.S8, (3, 2), [1, 2, 3, 4, 5, 6])
    assert matrix.rows(1, 3).values == [3, 4, 5, 6]
    assert matrix.rows(1, 2).shape == (1, 2)
    vector = HostTensor.of(ElementKind.F32, (3,), [1.0, 2.0, 3.0])
    assert (vector.rows(2, 3).values, vector.rows(2, 3).shape) == ([3.0], (1,))
