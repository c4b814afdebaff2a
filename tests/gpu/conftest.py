"""What the tests on silicon share. They are skipped where there is no GPU to run on, and for no other reason."""

import pytest

import quantplan as qp
from quantplan.devices import cuda, gpu
from tests.gpu.twin import GpuTwin


@pytest.fixture(scope="session", autouse=True)
def target():
    """Return the first GPU."""
    try:
        count = cuda.device_count()
        if count:
            found = qp.Target.parse("cuda:0")
            gpu.device(found.index, found.arch)
    except qp.DriverNotFound as error:
        pytest.skip(str(error))
    if not count:
        pytest.skip("the CUDA driver shows no GPU")
    return found


@pytest.fixture(scope="session")
def cupy(target):
    return gpu.device(target.index, target.arch).cupy


@pytest.fixture
def stream(cupy):
    """Return a stream that does not wait for the default one."""
    return cupy.cuda.Stream(non_blocking=True)


@pytest.fixture
def twin(lab, target):
    return GpuTwin(lab, target)
