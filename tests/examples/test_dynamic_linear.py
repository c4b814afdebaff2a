"""The pipeline of two plans says the same on emulated GPUs as on the CPU."""

import re

import dynamic_linear
import pytest


def steps(target, capsys):
    """Run the example; return which kernels ran, and what it says of each step."""
    assert dynamic_linear.main(["--target", target]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(f"on {target}: bit-identical") for line in lines[:2]] == [True, True]
    return lines[:2], lines[2:]


@pytest.mark.parametrize("target", ["emulated:sm_80", "emulated:sm_90a"])
def test_an_emulated_gpu_computes_what_the_cpu_does(target, capsys):
    kernels, said = steps(target, capsys)
    assert not any("reference" in kernel for kernel in kernels)
    assert said == steps("cpu", capsys)[1]


def test_only_quantizing_moves_the_output(capsys):
    _, said = steps("cpu", capsys)
    errors = [float(re.search(r"([\d.]+)%", line)[1]) for line in said]
    assert len(errors) == 3
    assert all(0 < error < 3 for error in errors)
