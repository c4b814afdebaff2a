"""Plots hold every op and peer, are the same for the same run, and say so when nobody measured it."""

import xml.etree.ElementTree as ET

import pytest

from quantplan.bench import plots
from tests.bench import synthetic


def draw(panels, data):
    return plots.draw(data, panels(data))


@pytest.mark.untraced
@pytest.mark.parametrize("panels", [plots.roofline, plots.speedups])
def test_a_plot_is_svg_and_the_same_every_time(panels):
    data = synthetic.run()
    first = draw(panels, data)
    assert ET.fromstring(first).tag.endswith("svg")  # noqa: S314 - it was drawn a line before
    assert draw(panels, data) == first
    assert plots.digest(data) in first


def test_the_roofline_shows_roofs_and_every_op():
    text = draw(plots.roofline, synthetic.run())
    for label in ("roof, torch's int8", "quantized_linear int8", "quantize s8 token", "part of the copy bandwidth"):
        assert label in text


def test_speedups_show_every_peer():
    text = draw(plots.speedups, synthetic.run())
    assert "torch bf16" in text
    assert "torch eager int8" in text


def test_a_synthetic_run_is_marked_in_the_plot():
    data = synthetic.run()
    assert "nobody measured this" in draw(plots.roofline, data)
    del data["synthetic"]
    assert "nobody measured this" not in draw(plots.roofline, data)


def test_other_figures_have_another_digest():
    data = synthetic.run()
    other = synthetic.run(points={})
    assert plots.digest(data) != plots.digest(other)


def test_without_points_there_is_no_plot():
    data = synthetic.run(points={})
    assert plots.roofline(data) == plots.speedups(data) == []
