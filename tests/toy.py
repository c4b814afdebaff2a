"""A small op with three variants: what the skeleton does is seen on it, apart from any real op's arithmetic.

``output[m, k] = x[m, k] + 1`` in f32. The variant ``scratch`` wants a workspace, ``plain`` none, ``gpu`` needs sm_90a.
"""

from __future__ import annotations

import attrs

import quantplan as qp
from quantplan.operands import Operand, tensor_field
from quantplan.plan import Plan
from quantplan.record import Record, dimension
from quantplan.variant import Identity, Variant


@attrs.frozen(kw_only=True, repr=False)
class ToyDescriptor(Record):
    m: int = dimension()
    k: int = dimension()
    scratch: int = 0
    offset: bool = False


@attrs.frozen(kw_only=True)
class ToyArgs:
    x: qp.TensorView = tensor_field()
    output: qp.TensorView = tensor_field()
    offset: qp.TensorView | None = tensor_field(optional=True)


@attrs.frozen(repr=False)
class ToyBound(qp.ErrorBound):
    @property
    def formula(self):
        return "u32·|x + 1|"

    def bound(self, desc, args):
        raise NotImplementedError


def guarantee(**changes):
    facts = {
        "math_precision": "f32",
        "accumulator": qp.F32,
        "bit_stable_on_same_hardware": True,
        "deterministic": True,
        "bit_identical_to_reference": True,
        "batch_invariant": True,
        "reduction_id": "elementwise",
        "error_bound": ToyBound(),
    }
    return qp.PrecisionGuarantee(**facts | changes)


@attrs.frozen
class ToyVariant(Variant):
    name: str
    arch: qp.ArchSku
    facts: dict = attrs.field(factory=dict, hash=False)
    needs_scratch: bool = False
    launches: list = attrs.field(factory=list)

    backend = qp.BackendKind.BESPOKE

    def guarantee(self, _desc):
        return guarantee(**self.facts)

    def source_digest(self):
        return "0" * 64

    def workspace_size(self, desc):
        return desc.scratch if self.needs_scratch else 0

    def load(self, _desc, _target):
        def prepare(desc, args, workspace):
            def start(stream):
                self.launches.append((desc, workspace, stream))
                args.output.numpy()[...] = args.x.numpy() + 1

            return start

        return prepare


GPU = ToyVariant("gpu", qp.ArchSku.SM90A)
SCRATCH = ToyVariant("scratch", qp.ArchSku.CPU, {"batch_invariant": False}, needs_scratch=True)
PLAIN = ToyVariant("plain", qp.ArchSku.CPU, {"deterministic": False})


class ToyPlan(Plan[ToyDescriptor, ToyArgs]):
    op = qp.QuantizeKind.QUANTIZE
    category = qp.OpCategory.QUANTIZE
    descriptor_type = ToyDescriptor
    args_type = ToyArgs
    rows_operand = "x"
    variants = (GPU, SCRATCH, PLAIN)

    @classmethod
    def operands(cls, desc):
        dims = (("M", desc.m), ("K", desc.k))
        operands = (Operand("x", qp.F32, dims), Operand("output", qp.F32, dims, output=True))
        return (*operands, Operand("offset", qp.F32, (("K", desc.k),))) if desc.offset else operands

    @classmethod
    def identity(cls, _desc):
        return Identity(parts=("f32",), element=qp.F32, aux_element=qp.F32, output_element=qp.F32)

    @classmethod
    def catalogue(cls):
        yield ToyDescriptor(m=3, k=4)

    @classmethod
    def limit(cls, desc):
        return "K=13 is unlucky" if desc.k == 13 else None
