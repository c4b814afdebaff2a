"""The skeleton: selection among variants, checks before a launch, binding."""

import copy
import pickle
import threading

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan.operands import Operand
from quantplan.plan import plan_type
from tests.toy import GPU, PLAIN, SCRATCH, ToyArgs, ToyDescriptor, ToyPlan, guarantee

DESC = ToyDescriptor(m=3, k=4)


def toy_args(m=3, k=4):
    return ToyArgs(x=np.arange(m * k, dtype=np.float32).reshape(m, k), output=np.zeros((m, k), np.float32))


@pytest.fixture(autouse=True)
def _forget_launches():
    for variant in (GPU, SCRATCH, PLAIN):
        variant.launches.clear()


class TestSelect:
    def test_takes_the_first_variant_that_runs_on_the_target(self):
        assert ToyPlan.select("cpu", DESC).sku.name == "quantize.scratch.f32"
        assert ToyPlan.select("emulated:sm_90a", DESC).sku.name == "quantize.gpu.f32"

    def test_the_sku_states_what_was_selected(self):
        plan = ToyPlan.select("cpu", DESC)
        assert plan.sku.backend is qp.BackendKind.BESPOKE
        assert plan.sku.arch is qp.ArchSku.CPU
        assert plan.precision_guarantee == guarantee(batch_invariant=False)
        assert str(plan.target) == "cpu"
        assert plan.descriptor is DESC

    def test_every_variant_answers_with_its_reason(self):
        reports = ToyPlan.why_not("sm_80", DESC)
        assert [(r.name, r.supported, r.reason) for r in reports] == [
            ("gpu", False, "needs sm_90a, and the target is sm_80"),
            ("scratch", False, "runs on cpu only, and the target is sm_80"),
            ("plain", False, "runs on cpu only, and the target is sm_80"),
        ]

    def test_unsupported_carries_and_prints_the_whole_table(self):
        with pytest.raises(qp.Unsupported, match="no variant runs this on sm_80") as caught:
            ToyPlan.select("sm_80", DESC)
        assert [r.name for r in caught.value.variants] == ["gpu", "scratch", "plain"]
        assert "gpu      needs sm_90a" in str(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).variants == caught.value.variants

    def test_a_limit_of_the_op_rules_out_every_variant(self):
        with pytest.raises(qp.Unsupported) as caught:
            ToyPlan.select("cpu", DESC.replace(k=13))
        assert {r.reason for r in caught.value.variants} == {"K=13 is unlucky"}

    @pytest.mark.parametrize(
        "pref, name",
        [
            ({"max_workspace_bytes": 15}, "plain"),
            ({"max_workspace_bytes": 16}, "scratch"),
            ({"require_batch_invariant": True}, "plain"),
            ({"require_deterministic": True}, "scratch"),
            ({"min_guarantee": guarantee(deterministic=False)}, "plain"),
        ],
    )
    def test_preferences_decide_between_variants(self, pref, name):
        plan = ToyPlan.select("cpu", DESC.replace(scratch=16), qp.PlanPreference(**pref))
        assert plan.sku.name == f"quantize.{name}.f32"

    @pytest.mark.parametrize(
        "pref, reasons",
        [
            ({"backend": "reference"}, ["backend is bespoke, and reference is required"] * 2),
            (
                {"require_batch_invariant": True, "require_deterministic": True},
                ["does not promise batch_invariant", "does not promise deterministic"],
            ),
            (
                {"max_workspace_bytes": 0, "require_deterministic": True},
                ["needs 16 bytes of workspace, and 0 are allowed", "does not promise deterministic"],
            ),
            ({"accumulation": "fast"}, ["has no choice of accumulation, and fast is required"] * 2),
        ],
    )
    def test_a_preference_that_cannot_be_met_is_an_error(self, pref, reasons):
        with pytest.raises(qp.Unsupported) as caught:
            ToyPlan.select("cpu", DESC.replace(scratch=16), qp.PlanPreference(**pref))
        assert [r.reason for r in caught.value.variants][1:] == reasons

    def test_refuses_the_descriptor_of_another_op(self):
        other = qp.QuantizeDescriptor(m=1, k=1)
        with pytest.raises(qp.InvalidProblem, match="desc: expected ToyDescriptor, got QuantizeDescriptor"):
            ToyPlan.select("cpu", other)

    def test_refuses_a_descriptor_with_rules_of_its_own_wherever_it_comes(self):
        @attrs.frozen(kw_only=True, repr=False)
        class OtherDescriptor(ToyDescriptor):
            pass

        other = OtherDescriptor(m=3, k=4)
        for take in (
            lambda: ToyPlan.select("cpu", other),
            lambda: ToyPlan.why_not("cpu", other),
            lambda: qp.PlanFamily.select("cpu", other, ms=[1]),
            lambda: qp.PlanFamily.select("cpu", other, ms=[1], plan=ToyPlan),
            lambda: qp.explain("cpu", other),
        ):
            with pytest.raises(qp.InvalidProblem, match=r"expected .*ToyDescriptor.*, got OtherDescriptor") as caught:
                take()
            assert caught.value.field == "desc"

    def test_a_descriptor_names_its_op(self):
        assert plan_type(DESC) is ToyPlan
        assert plan_type(qp.DequantizeDescriptor(m=1, k=1)) is qp.DequantizePlan
        with pytest.raises(qp.InvalidProblem, match=r"expected one of .*ToyDescriptor.*, got int"):
            plan_type(3)

    def test_threads_may_select_and_run_at_once(self):
        plan = ToyPlan.select("cpu", DESC, qp.PlanPreference(max_workspace_bytes=0))
        wrong = []

        def work(seed):
            for step in range(50):
                x = np.full((3, 4), seed + step, np.float32)
                output = np.empty_like(x)
                (plan if step % 2 else ToyPlan.select("cpu", DESC)).run(None, None, ToyArgs(x=x, output=output))
                if not np.array_equal(output, x + 1):
                    wrong.append((seed, step))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


class TestRun:
    def test_launches_with_the_descriptor_and_the_operands(self):
        plan, args = ToyPlan.select("cpu", DESC), toy_args()
        plan.run(None, None, args)
        np.testing.assert_array_equal(args.output.numpy(), args.x.numpy() + 1)
        assert SCRATCH.launches == [(DESC, None, None)]

    def test_a_plan_for_an_architecture_selects_and_does_not_run(self):
        plan = ToyPlan.select("sm_90a", DESC)
        assert plan.sku.arch is qp.ArchSku.SM90A
        with pytest.raises(qp.Unsupported, match="selected for the architecture sm_90a"):
            plan.run(None, None, toy_args())

    @pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
    def test_an_empty_problem_launches_nothing(self, shape):
        m, k = shape
        ToyPlan.select("cpu", DESC.replace(m=m, k=k)).run(None, None, toy_args(m, k))
        assert SCRATCH.launches == []

    def test_an_empty_problem_is_checked_all_the_same(self):
        with pytest.raises(qp.InvalidProblem, match="x: expected element f32, got f64"):
            ToyPlan.select("cpu", DESC.replace(m=0)).run(
                None, None, ToyArgs(x=np.zeros((0, 4)), output=np.zeros((0, 4), np.float32))
            )

    def test_m_is_exact(self):
        plan = ToyPlan.select("cpu", DESC)
        with pytest.raises(qp.InvalidProblem, match=r"x: expected shape \(M=3, K=4\), got \(2, 4\)"):
            plan.run(None, None, toy_args(m=2))

    def test_refuses_the_args_of_another_op(self):
        args = qp.DequantizeArgs(q=np.zeros((3, 4), np.int8), output=np.zeros((3, 4), np.float32))
        with pytest.raises(qp.InvalidProblem, match="args: expected ToyArgs, got DequantizeArgs"):
            ToyPlan.select("cpu", DESC).run(None, None, args)

    def test_operands_the_descriptor_asks_for_must_be_there_and_no_others(self):
        plan = ToyPlan.select("cpu", DESC)
        surplus = ToyArgs(
            x=np.zeros((3, 4), np.float32), output=np.zeros((3, 4), np.float32), offset=np.zeros(4, np.float32)
        )
        with pytest.raises(qp.InvalidProblem, match="offset: expected no operand") as caught:
            plan.can_implement(surplus)
        assert caught.value.hint == "drop it, or let the descriptor ask for it"
        with pytest.raises(qp.InvalidProblem, match=r"offset: expected a tensor of shape \(4,\), got None"):
            ToyPlan.select("cpu", DESC.replace(offset=True)).can_implement(toy_args())

    def test_no_output_may_overlap_another_operand(self):
        x = np.zeros((4, 4), np.float32)
        with pytest.raises(qp.InvalidProblem, match="output: expected memory of its own, apart from x"):
            ToyPlan.select("cpu", DESC).can_implement(ToyArgs(x=x[:3], output=x[1:]))

    def test_the_cpu_takes_no_stream(self):
        with pytest.raises(qp.DeviceMismatch, match="stream: expected None on cpu"):
            ToyPlan.select("cpu", DESC).run(qp.Stream(1, 0), None, toy_args())
        assert SCRATCH.launches == []

    def test_plans_do_not_pickle_and_say_what_to_send(self):
        with pytest.raises(qp.InvalidProblem, match=r"send \(target, desc, pref\) and call ToyPlan.select there"):
            pickle.dumps(ToyPlan.select("cpu", DESC))

    def test_a_plans_copy_is_the_plan(self):
        plan = ToyPlan.select("cpu", DESC)
        assert copy.copy(plan) is plan
        assert copy.deepcopy({"layer": [plan]})["layer"][0] is plan


class TestWorkspace:
    @pytest.fixture
    def plan(self):
        return ToyPlan.select("cpu", DESC.replace(scratch=1000))

    def test_the_size_is_that_of_the_selected_variant(self, plan):
        assert plan.workspace_size == 1000

    def test_reaches_the_launch(self, plan):
        workspace = qp.Workspace.allocate(plan.workspace_size, plan.target)
        plan.run(None, workspace, toy_args())
        assert SCRATCH.launches[0][1] is workspace

    @pytest.mark.parametrize("nbytes", [999, 0])
    def test_one_byte_short_is_refused(self, plan, nbytes):
        with pytest.raises(qp.WorkspaceTooSmall, match=f"expected at least 1000 bytes, got {nbytes}") as caught:
            plan.run(None, qp.Workspace.allocate(nbytes, "cpu"), toy_args())
        assert (caught.value.needed, caught.value.available) == (1000, nbytes)
        assert SCRATCH.launches == []

    def test_a_missing_one_is_refused(self, plan):
        with pytest.raises(qp.WorkspaceTooSmall):
            plan.bind(None, toy_args())

    def test_one_on_another_device_is_refused(self, plan):
        workspace = qp.Workspace(pointer=0, nbytes=1000, location=qp.Location("cuda", 0))
        with pytest.raises(qp.DeviceMismatch, match="workspace: expected cpu, got cuda:0"):
            plan.run(None, workspace, toy_args())

    def test_a_misaligned_one_is_refused(self, plan):
        with pytest.raises(qp.MisalignedOperand, match="a multiple of 256 bytes"):
            plan.run(None, qp.Workspace(pointer=128, nbytes=1000), toy_args())


class TestBind:
    def test_launches_again_and_again_on_what_the_memory_holds_then(self):
        args = toy_args()
        bound = ToyPlan.select("cpu", DESC).bind(None, args)
        for value in (1, 2):
            args.x.numpy()[...] = value
            bound.run(None)
            assert (args.output.numpy() == value + 1).all()

    def test_keeps_its_operands_alive(self):
        bound = ToyPlan.select("cpu", DESC).bind(None, toy_args())
        bound.run(None)
        np.testing.assert_array_equal(bound.args.output.numpy().ravel(), np.arange(12) + 1)

    def test_checks_when_bound(self):
        with pytest.raises(qp.InvalidProblem, match="x: expected shape"):
            ToyPlan.select("cpu", DESC).bind(None, toy_args(k=5))

    def test_reprs_name_the_kernel(self):
        plan = ToyPlan.select("cpu", DESC)
        assert repr(plan) == "ToyPlan(quantize.scratch.f32 on cpu)"
        assert repr(plan.bind(None, toy_args())) == "BoundPlan(quantize.scratch.f32 on cpu)"

    def test_something_else_is_refused_even_where_none_is_needed(self):
        plan = ToyPlan.select("cpu", DESC)
        assert plan.workspace_size == 0
        with pytest.raises(qp.InvalidProblem, match="workspace: expected a Workspace or None, got str"):
            plan.run(None, "scratch", toy_args())


@pytest.mark.parametrize("pref", [0, {}, "bespoke", False])
def test_a_preference_is_a_plan_preference(pref):
    with pytest.raises(qp.InvalidProblem, match="pref: expected PlanPreference"):
        ToyPlan.select("cpu", DESC, pref)


class TestRepeatedLayouts:
    """A layout is checked once; nothing that differs from it passes on its account."""

    WRONG = (
        ({"x": toy_args().x.numpy().astype(np.float64)}, "x: expected element f32, got f64"),
        ({"x": np.zeros((4, 3), np.float32)}, "x: expected shape"),
        ({"x": np.zeros((3, 8), np.float32)[:, ::2]}, "x: expected a contiguous last axis"),
        ({"x": np.zeros(49, np.uint8)[1:].view(np.float32).reshape(3, 4)}, "x: expected a pointer aligned to 4 bytes"),
        ({"x": qp.TensorView(4096, (3, 4), (4, 1), qp.F32, qp.Location("cuda"))}, "x: expected cpu, got cuda:0"),
        ({"output": np.zeros((3, 4), np.float32)[::-1]}, "output: expected a contiguous last axis"),
        ({"offset": np.zeros((3, 4), np.float32)}, "offset: expected no operand"),
    )

    @pytest.fixture
    def plan(self):
        ToyPlan.forget()
        plan = ToyPlan.select("cpu", DESC)
        for _ in range(2):
            plan.run(None, None, toy_args())
        return plan

    def test_operands_are_not_looked_at_again(self, plan, monkeypatch):
        checked = []
        monkeypatch.setattr(Operand, "check", lambda operand, op, view, location: checked.append(operand.name))
        plan.run(None, None, toy_args())
        assert checked == []
        wide = np.zeros((3, 5), np.float32)[:, :4]
        plan.run(None, None, ToyArgs(x=wide, output=toy_args().output))
        assert checked == ["x", "output"]

    @pytest.mark.parametrize("changed, said", WRONG, ids=[said for _, said in WRONG])
    def test_another_layout_is_refused_each_time(self, plan, changed, said):
        fields = {"x": toy_args().x, "output": toy_args().output} | changed
        for _ in range(2):
            with pytest.raises(qp.QuantPlanError, match=said):
                plan.run(None, None, ToyArgs(**fields))

    def test_operands_of_right_layouts_in_each_others_place_are_refused(self):
        plan, given, row = ToyPlan.select("cpu", DESC.replace(offset=True)), toy_args(), np.zeros(4, np.float32)
        plan.run(None, None, ToyArgs(x=given.x, output=given.output, offset=row))
        with pytest.raises(qp.InvalidProblem, match="x: expected shape"):
            plan.run(None, None, ToyArgs(x=row, output=given.output, offset=given.x))

    def test_a_read_only_output_is_refused(self, plan):
        output = np.zeros((3, 4), np.float32)
        plan.run(None, None, ToyArgs(x=toy_args().x, output=output))
        output.flags.writeable = False
        with pytest.raises(qp.InvalidProblem, match="output: expected writable memory"):
            plan.run(None, None, ToyArgs(x=toy_args().x, output=output))

    def test_overlap_is_looked_for_each_time(self, plan):
        memory = np.zeros((8, 4), np.float32)
        plan.run(None, None, ToyArgs(x=memory[:3], output=memory[3:6]))
        with pytest.raises(qp.InvalidProblem, match="output: expected memory of its own, apart from x"):
            plan.run(None, None, ToyArgs(x=memory[:3], output=memory[1:4]))

    def test_an_architecture_runs_nothing_however_often(self):
        plan = ToyPlan.select("sm_90a", DESC)
        for _ in range(2):
            with pytest.raises(qp.Unsupported, match="the plan was selected for the architecture sm_90a"):
                plan.run(None, None, toy_args())

    def test_a_bounded_number_is_remembered(self, plan):
        output = toy_args().output
        for pitch in range(4, 2000):
            plan.can_implement(ToyArgs(x=np.zeros((3, pitch), np.float32)[:, :4], output=output))
        assert len(plan.problem(3).fitting) <= 1024


def test_a_plan_remembers_a_bounded_number_of_problems():
    plan = qp.PlanFamily.select("cpu", DESC, ms=[5000]).plans[0]
    for m in range(5000):
        assert plan.problem(m).desc.m == m
    assert len(plan._problems) <= 1024
