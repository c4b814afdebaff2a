"""A variant answers yes or no, because …; and names the kernel that it runs."""

import hashlib
from pathlib import Path

import pytest

import quantplan as qp
from quantplan.ops import PLANS
from quantplan.reference.bounds import QuantizeErrorBound
from quantplan.variant import Identity, ReferenceVariant, Variant

GUARANTEE = qp.PrecisionGuarantee(
    math_precision="int8", accumulator="s32", bit_stable_on_same_hardware=True, deterministic=True,
    bit_identical_to_reference=True, batch_invariant=True, reduction_id="exact", error_bound=QuantizeErrorBound(),
)  # fmt: skip
IDENTITY = Identity(parts=("f32", "s8"), element=qp.S8, aux_element=qp.F32, output_element=qp.BF16)


class Hopper(Variant):
    """A row of a table that states no more than it has to."""

    name = "wgmma"
    arch = qp.ArchSku.SM90A
    backend = qp.BackendKind.BESPOKE

    def guarantee(self, desc):
        return GUARANTEE.replace(reduction_id=f"k{desc}")

    def source_digest(self):
        return "ab" * 32

    def load(self, desc, target):
        raise NotImplementedError


def test_by_default_a_variant_asks_only_for_its_architecture():
    variant = Hopper()
    assert variant.why_not(16, qp.Target.parse("sm_90a")) is None
    assert variant.why_not(16, qp.Target.parse("sm_80")) == "needs sm_90a, and the target is sm_80"
    assert variant.why_not(16, qp.Target.parse("cpu")) is not None
    assert variant.workspace_size(16) == 0


def test_a_variant_that_states_less_is_none():
    with pytest.raises(TypeError, match="abstract"):
        type("Nothing", (Variant,), {})()


def test_the_sku_joins_the_variants_share_and_the_descriptors():
    sku = Hopper().sku(qp.OpCategory.GEMM, qp.QuantizeKind.SMOOTHQUANT_LINEAR, IDENTITY, 16)
    assert sku == qp.KernelSku(
        name="smoothquant_linear.wgmma.f32.s8",
        category="gemm",
        op="smoothquant_linear",
        element="s8",
        aux_element="f32",
        output_element="bf16",
        layout="row_major",
        epilogue="identity",
        arch="sm_90a",
        backend="bespoke",
        precision_guarantee=GUARANTEE.replace(reduction_id="k16"),
        source_digest="ab" * 32,
    )


# ---- the reference


def reference(calls):
    return ReferenceVariant(lambda desc, args: calls.append((desc, args)), lambda desc: GUARANTEE)


def test_the_reference_runs_its_function_on_the_host():
    calls = []
    prepare = reference(calls).load("desc", qp.Target.parse("cpu"))
    launch = prepare("other desc", "args", None)
    assert calls == []
    launch(None)
    assert calls == [("other desc", "args")]


@pytest.mark.parametrize("target", ["emulated:sm_90a", "sm_80", "sm_120a"])
def test_the_reference_is_no_silent_fallback(target):
    """The reference answers for the target cpu and for no other."""
    variant = reference([])
    assert variant.why_not(None, qp.Target.parse("cpu")) is None
    assert variant.why_not(None, qp.Target.parse(target)) == f"runs on cpu only, and the target is {target}"


def test_the_reference_states_its_place():
    variant = reference([])
    assert (variant.name, variant.arch, variant.backend) == ("reference", qp.ArchSku.CPU, qp.BackendKind.REFERENCE)
    assert variant.guarantee(None) == GUARANTEE
    assert variant.workspace_size(None) == 0


def test_the_reference_digest_covers_all_of_its_files():
    folder = Path(qp.__file__).parent / "reference"
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    assert reference([]).source_digest() == digest.hexdigest()


def test_every_op_has_the_reference():
    for plan in PLANS.values():
        assert "reference" in [variant.name for variant in plan.variants]


@pytest.mark.parametrize("op", PLANS)
def test_sku_names_are_unique_per_kernel(op):
    """Two descriptors share a SKU's name only when they share the whole SKU."""
    plan, found = PLANS[op], {}
    for desc in plan.catalogue():
        for variant in plan.variants:
            sku = variant.sku(plan.category, plan.op, plan.identity(desc), desc)
            assert found.setdefault(sku.name, sku) == sku
    assert found
