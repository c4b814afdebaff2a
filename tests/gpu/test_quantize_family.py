"""The quantize family on silicon: every case of tests/kernels that holds a plan to the reference, on ``cuda:0``.

The cases ask for architectures and for orders of threads; a GPU has its own.
"""

from tests.kernels import test_conversions, test_quantize_family

FOR_THE_EMULATOR_ONLY = {"test_one_plan_serves_every_number_of_rows_of_its_bucket"}

for module in (test_conversions, test_quantize_family):
    for name, value in vars(module).items():
        if name.startswith("test_") and callable(value) and name not in FOR_THE_EMULATOR_ONLY:
            globals()[name] = value
del module, name, value
