"""What machine code is held to: the instructions meant, and registers that suffice."""

import io

import quantplan as qp
from quantplan.kernels import compile_text, source_text


def hold(code, wanted, where):
    """Assert that nothing is spilled, and that each of some instructions, by parts of its name, is there."""
    assert code.stack_bytes == code.spill_store_bytes == code.spill_load_bytes == 0, where
    for parts in wanted:
        assert code.count(*parts), f"{parts}: {where}"


def compiled(arch, sample):
    """Return the kernels that run some problems with aligned operands, each behind its variant's name."""
    rows = qp.resources(arch, sample)
    return [(row.sku.split(".")[1], kernel) for row in rows if row.aligned for kernel in row.kernels]


def serialized(specs):
    """Return the compiler's words where it lets no wgmma run in the background, for which bits give no sign."""
    log = io.StringIO()
    compile_text(source_text(specs), "sm_90a", log=log)
    return [line for line in log.getvalue().splitlines() if "wgmma" in line and "serialized" in line]
