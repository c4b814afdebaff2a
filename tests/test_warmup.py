"""warmup compiles kernels ahead of time, on a machine that may have no GPU."""

import json

import pytest

import quantplan as qp
from quantplan import cubins, warmup

pytest.importorskip("cuda.core", reason="compiling for GPUs needs cuda-core, which this environment lacks")

DESC = qp.DynamicRangeQuantizeDescriptor(m=4, k=64)


def test_writes_what_the_plans_will_load_with_digests_beside_it(tmp_path):
    seen = []
    made = warmup.warmup("sm_90a", tmp_path / "out", [DESC], lambda done, of: seen.append((done, of)))
    kernels = qp.DynamicRangeQuantizePlan.choose("sm_90a", DESC).kernels(DESC)
    assert {path.name for path in made} == {cubins.file_name(k, cubins.key_of(k, "sm_90a")) for k in kernels}
    assert seen == [(done, len(kernels)) for done in range(1, len(kernels) + 1)]
    for path in made:
        content = path.read_bytes()
        assert content.startswith(b"\x7fELF")
        assert path.with_name(f"{path.name}.sha256").read_text() == cubins.sha256(content)


def test_the_catalogue_is_every_kernel_once():
    specs = warmup._of_catalogue(qp.Target.parse("sm_80"))
    assert len(specs) > 500
    assert len({spec.name for spec in specs}) == len(specs)


@pytest.mark.parametrize("target", ["cpu", "emulated:sm_90a"])
def test_targets_without_cubins_are_refused(tmp_path, target):
    with pytest.raises(qp.InvalidProblem, match="warmup: target: expected an architecture"):
        warmup.warmup(target, tmp_path, [DESC])


def test_what_no_kernel_runs_is_refused_before_anything_is_written(tmp_path):
    desc = qp.DynamicRangeQuantizeDescriptor(m=4, k=64, output_element="s4")
    with pytest.raises(qp.Unsupported, match="s4 is stored in pairs"):
        warmup.warmup("sm_90a", tmp_path / "out", [DESC, desc])
    assert not (tmp_path / "out").exists()


def test_descriptors_are_read_back(tmp_path):
    path = tmp_path / "plans.json"
    path.write_text(json.dumps([DESC.to_dict(), DESC.replace(m=1).to_dict()]))
    assert warmup.read_descriptors(path) == [DESC, DESC.replace(m=1)]


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "expected a file of JSON"),
        ('{"a": 1}', "expected a list of descriptors, got dict"),
        ('[{"a": 1}]', "schema"),
        ("[1]", r"in .*plans\.json, entry 0: expected a dictionary, got int"),
        (
            f"[{json.dumps(DESC.to_dict())}, {json.dumps(qp.Scope.token().to_dict())}]",
            "entry 1: expected one of .*Desc",
        ),
        ("[" * 100_000, "expected a file of JSON"),
    ],
)
def test_a_file_that_is_no_list_of_descriptors(tmp_path, text, words):
    path = tmp_path / "plans.json"
    path.write_text(text)
    with pytest.raises(qp.InvalidProblem, match=words):
        warmup.read_descriptors(path)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(qp.InvalidProblem, match="expected a file of JSON"):
        warmup.read_descriptors(tmp_path / "none.json")
