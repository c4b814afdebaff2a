import json

from quantplan.verify import Coverage, PlanReport, VerifyReport

PLAN = PlanReport(op="quantize", sku="a.b", backend="reference", cases=3, mismatches=0, worst_fraction=None)


def test_a_report_is_ok_when_there_is_nothing_to_say_against_it():
    assert VerifyReport(target="cpu", plans=(PLAN,), problems=()).ok
    assert not VerifyReport(target="cpu", plans=(PLAN,), problems=("bad",)).ok


def test_a_report_is_json_data():
    share = Coverage(op="quantize", skus=324, attacked=1, rule="some")
    report = VerifyReport(target="cpu", plans=(PLAN,), problems=("bad",), coverage=(share,))
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data == {
        "schema": 2,
        "target": "cpu",
        "ok": False,
        "problems": ["bad"],
        "coverage": [{"op": "quantize", "skus": 324, "attacked": 1, "rule": "some"}],
        "plans": [
            {
                "op": "quantize",
                "sku": "a.b",
                "backend": "reference",
                "cases": 3,
                "mismatches": 0,
                "worst_fraction": None,
            }
        ],
    }
