"""Both command lines of a GPU day take the same options."""

import argparse
import inspect

from quantplan.bench import gpu_day, options


def parse(*words):
    parser = argparse.ArgumentParser()
    options.add(parser)
    return options.given(parser.parse_args(words))


def test_the_defaults_are_those_of_the_function():
    parameters = inspect.signature(gpu_day.run_day).parameters
    for name, value in parse().items():
        default = parameters[name].default
        assert value == (list(default) if isinstance(default, tuple) else default), name


def test_what_is_given_is_passed_on():
    given = parse("--budget", "60", "--only", "tests", "host", "--ops", "quantize", "--resume", "--target", "cuda:1")
    assert given == {
        "target": "cuda:1",
        "budget": 60.0,
        "only": ["tests", "host"],
        "ops": ["quantize"],
        "resume": True,
        "smoke": False,
    }
