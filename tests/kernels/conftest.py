import pytest

from tests.kernels.twin import Twin


@pytest.fixture
def twin(lab):
    return Twin(lab)
