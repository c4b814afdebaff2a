"""Covering arrays: few combinations in which every pair of values of any two factors occurs."""

import itertools
import random


def pairwise(factors, sound=lambda case: True, seed=0):
    """Return cases (dictionaries) that cover every pair of values that some sound case has.

    Greedy: each case starts from a pair that is still missing, and takes for each further factor, in random order, the
    value that covers most missing pairs among some tries.
    """
    rng = random.Random(seed)
    values = [[(name, value) for value in factors[name]] for name in factors]
    pairs = [pair for one, other in itertools.combinations(values, 2) for pair in itertools.product(one, other)]
    missing = dict.fromkeys(sorted(pairs, key=sorted_text))
    cases = []
    while missing:
        goal = next(iter(missing))
        best, covered = None, []
        for _ in range(60):
            case = {name: rng.choice(factors[name]) for name in factors} | dict(goal)
            if sound(case):
                found = [pair for pair in itertools.combinations(case.items(), 2) if pair in missing]
                if len(found) > len(covered):
                    best, covered = case, found
        if best is None:
            del missing[goal]  # no sound case has it, as far as sixty tries tell
        else:
            cases.append(best)
            for pair in covered:
                del missing[pair]
    return cases


def sorted_text(pair):
    return sorted(map(str, pair))
