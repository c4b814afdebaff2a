"""Goals are met where they hold at every point that they speak of, missed where they do not, and else not measured."""

import pytest

from quantplan.bench import goals
from quantplan.bench.peers import PEERS
from quantplan.bench.problems import ROWS
from tests.bench import synthetic


def verdict(data, goal, text):
    return next(v for v in goals.verdicts(data) if v.goal == goal and text in v.text)


def point(m, us, nbytes=400_000_000, operations=0, **peers):
    return {"sku": "s", "bytes": nbytes, "operations": operations, "us": synthetic.times(quantplan=us, **peers)}


def test_goals_speak_of_ops_and_peers_that_exist():
    assert {row for goal in goals.GOALS for row in goal.rows} <= {row.name for row in ROWS}
    peers = {goal.text.split(" × ")[1] for goal in goals.GOALS if " × " in goal.text and "time of" not in goal.text}
    assert peers <= set(PEERS)
    by_name = {row.name: row for row in ROWS}
    for goal in goals.GOALS:
        peer = goal.text.partition(" × ")[2]
        if peer in PEERS:
            assert any(peer in by_name[row].peers for row in goal.rows), f"{goal.text} is never measured"


def test_the_worst_point_decides():
    name = "quantize by token or group, from 64 MB on"
    points = {f"quantize s8 token | 8192 | {m}": point(m, us) for m, us in ((4096, 101.0), (8192, 105.0))}
    found = verdict(synthetic.run(points=points), name, "bandwidth")
    assert (found.met, found.points, found.worst) == (True, 2, "95% of the copy bandwidth")
    points["quantize fp8 group | 8192 | 8192"] = point(8192, 125.0)
    found = verdict(synthetic.run(points=points), name, "bandwidth")
    assert (found.met, found.points, found.worst) == (False, 3, "80% of the copy bandwidth")


def test_points_that_a_goal_does_not_speak_of_do_not_count():
    points = {"quantize s8 token | 8192 | 16": point(16, 900.0, nbytes=300_000)}
    assert verdict(synthetic.run(points=points), "quantize by token or group, from 64 MB on", "").met is None
    name = "quantize by token or group, K ≤ 8192, M ≤ 64"
    assert verdict(synthetic.run(points=points), name, "≤ 2.5 µs").met is False


def test_small_quantizations_have_a_goal_by_scope_where_rows_are_short():
    token, tensor = (f"quantize by {scope}, K ≤ 8192, M ≤ 64" for scope in ("token or group", "tensor, in one launch"))
    points = {
        "quantize mxfp8 | Qwen2.5 7B | 16": point(16, 2.0, nbytes=300_000),
        "quantize s8 token | Llama-3 70B down | 16": point(16, 9.0, nbytes=300_000),
        "quantize fp8 tensor | 8192 | 16": point(16, 5.0, nbytes=300_000),
        "quantize s8 token | 8192 | 128": point(128, 9.0, nbytes=300_000),
    }
    data = synthetic.run(points=points)
    assert (verdict(data, token, "").met, verdict(data, token, "").points) == (True, 1)
    assert (verdict(data, tensor, "").met, verdict(data, tensor, "").worst) == (False, "5.0 µs")


def test_a_peer_that_was_not_there_leaves_a_goal_open():
    points = {"quantized_linear int8 | 8192 × 8192 | 16": point(16, 20.0)}
    found = verdict(synthetic.run(points=points), "int8, M ≤ 32", "torch bf16")
    assert (found.met, found.points) == (None, 0)
    points = {"quantized_linear int8 | 8192 × 8192 | 16": point(16, 20.0, torch__bf16=40.0)}
    found = verdict(synthetic.run(points=points), "int8, M ≤ 32", "torch bf16")
    assert (found.met, found.worst) == (True, "2.00 × torch bf16")


@pytest.mark.parametrize("us, met", [(104.0, True), (106.0, False)])
def test_act_order_is_compared_with_the_same_problem_without(us, met):
    points = {
        "int4_marlin_gemm | 8192 × 8192 | 16": point(16, 100.0),
        "int4_marlin_gemm | 8192 × 8192 | 32": point(32, 1.0),
        "int4_marlin_gemm act-order | 8192 × 8192 | 16": point(16, us),
    }
    assert verdict(synthetic.run(points=points), "W4A16 in act-order", "").met is met


def test_the_host_has_goals_too():
    data = synthetic.run()
    bound = verdict(data, "host, bound run, beyond the driver's call", "≤ 3.0 µs")
    assert (bound.met, bound.worst) == (True, "1.5 µs"), "3.5 µs, of which the driver takes 2.0"
    assert verdict(data, "host, run, beyond the driver's call", "≤ 8.0 µs").worst == "5.5 µs"
    del data["host"]["launch"]["us"]["cuLaunchKernel alone"]
    assert verdict(data, "host, bound run, beyond the driver's call", "").met is None
    assert verdict(data, "host, compiling a kernel", "≤ 1.00 s").met is True
    assert verdict(synthetic.run(host={}), "host, run, beyond the driver's call", "").met is None
