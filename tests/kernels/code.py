"""What machine code is held to: the instructions meant, and registers that suffice."""

import quantplan as qp


def hold(code, wanted, where):
    """Assert that nothing is spilled, and that each of some instructions, by parts of its name, is there."""
    assert code.stack_bytes == code.spill_store_bytes == code.spill_load_bytes == 0, where
    for parts in wanted:
        assert code.count(*parts), f"{parts}: {where}"


def compiled(arch, sample):
    """Return the kernels that run some problems with aligned operands, each behind its variant's name."""
    rows = qp.resources(arch, sample)
    return [(row.sku.split(".")[1], kernel) for row in rows if row.aligned for kernel in row.kernels]
