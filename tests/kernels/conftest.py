import pytest

from tests.kernels.twin import Twin


@pytest.fixture
def twin(lab):
    return Twin(lab)


@pytest.fixture(scope="session", autouse=True)
def _headers(precompiled):
    """Build kernels faster."""
