"""Covering arrays: few combinations in which every pair of values of any two factors occurs."""

import itertools
import random


def pairwise(factors, sound=lambda case: True, seed=0):
    """Return cases (dictionaries) that cover every pair of values that some sound case has.

    Greedy: each case starts from a pair that is still missing, and takes for each further factor, in random order, the
    value that covers most missing pairs among some tries.
    """
    rng = random.Random(seed)
    names = list(factors)
    missing = {
        frozenset({(a, x), (b, y)}) for a, b in itertools.combinations(names, 2) for x in factors[a] for y in factors[b]
    }
    cases = []
    while missing:
        goal = min(missing, key=sorted_text)
        best, covered = None, set()
        for _ in range(60):
            case = {name: rng.choice(factors[name]) for name in names} | dict(goal)
            if sound(case):
                pairs = missing & {frozenset(pair) for pair in itertools.combinations(case.items(), 2)}
                if len(pairs) > len(covered):
                    best, covered = case, pairs
        if best is None:
            missing.discard(goal)  # no sound case has it, as far as sixty tries tell
        else:
            cases.append(best)
            missing -= covered
    return cases


def sorted_text(pair):
    return sorted(map(str, pair))
