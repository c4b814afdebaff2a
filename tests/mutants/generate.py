"""Mutants of CUDA sources: each is one small change to one expression or statement, which a test would have to notice.

The operators work on text, and count on how the sources are formatted: binary operators have a space on either side,
template brackets have none. Comments, strings, preprocessor lines, template headers and static asserts are left alone.
"""

import re
from itertools import count
from pathlib import Path

import attrs

FOLDERS = ("*.cu", "include/qp/*.cuh")  # ptx/ is asm: tests/emulator/test_ptx_mirror.py and GPUs are for that


@attrs.frozen
class Mutant:
    """A change to a file below ``kernels_cu``: ``text[begin:end]`` becomes ``replacement``."""

    file: str
    line: int
    operator: str  # with the number of the place within the line, from the second on
    before: str  # the lines that it changes, without what leads and trails
    after: str
    begin: int
    end: int
    replacement: str
    nth: int = 1  # of the file's lines that read the same

    @property
    def name(self):
        return f"{self.file}:{self.line}:{self.operator}"

    def apply(self, text):
        return text[: self.begin] + self.replacement + text[self.end :]


def mutants_of_folder(root):
    """Return the mutants of all sources below a folder."""
    paths = sorted(path for pattern in FOLDERS for path in Path(root).glob(pattern))
    return [m for path in paths for m in mutants_of(path.relative_to(root).as_posix(), path.read_text("utf-8"))]


def mutants_of(file, text):
    """Return the mutants of a text, in its order; of two operators that make the same text, the first counts."""
    code, seen, names, found = Code(text), {text}, set(), []
    lines = [squeeze(line) for line in text.split("\n")]
    changes = [(*span, operator) for make in OPERATORS for operator, span in make(code)]
    for begin, end, replacement, operator in sorted(changes, key=lambda change: change[:2]):
        whole = text[:begin] + replacement + text[end:]
        if whole in seen:
            continue
        seen.add(whole)
        line = text.count("\n", 0, begin) + 1
        wanted = (operator if n == 1 else f"{operator}.{n}" for n in count(1))
        name = next(name for name in wanted if (line, name) not in names)
        names.add((line, name))
        first, last = text.rfind("\n", 0, begin) + 1, (text + "\n").find("\n", end)
        before, after = text[first:last], text[first:begin] + replacement + text[end:last]
        nth = 1 + lines[: line - 1].count(squeeze(before))
        found.append(Mutant(file, line, name, squeeze(before), squeeze(after), begin, end, replacement, nth))
    return found


def squeeze(text):
    """Return lines as one, without comments."""
    return " ".join(re.sub(r"//[^\n]*", "", text).split())


# ---- text


def blank(text):
    """Return the text with spaces in place of everything that no operator shall see."""
    spaces = lambda match: re.sub(r"[^\n]", " ", match[0])  # noqa: E731 - it is only passed on
    text = re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", spaces, text, flags=re.DOTALL)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", spaces, text, flags=re.MULTILINE)
    text = re.sub(r"\bstatic_assert\s*\([^;]*;", spaces, text)
    for match in re.finditer(r"\btemplate <", text):
        end = closing(text, match.end() - 1, "<", ">")
        text = text[: match.start()] + " " * (end - match.start()) + text[end:]
    return text


def closing(text, begin, opens="([{", closes=")]}"):
    """Return the place behind the bracket that closes the one at ``begin``."""
    depth = 0
    for place in range(begin, len(text)):
        depth += (text[place] in opens) - (text[place] in closes)
        if depth == 0:
            return place + 1
    raise ValueError(f"a bracket is not closed: {text[begin : begin + 60]!r}")


class Code:
    """A source as the operators see it."""

    def __init__(self, text):
        self.text = blank(text)
        self._tokens = list(_TOKEN.finditer(_without_template_arguments(self.text)))

    def find(self, pattern):
        return re.finditer(pattern, self.text)

    def operators(self, names):
        """Yield the binary operators among some."""
        choice = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        yield from self.find(rf"(?<=[ \n])(?:{choice})(?=[ \n])")

    def operand_behind(self, place, also=()):
        """Return the span of the operand behind a place: up to what ends an expression, or one of some operators."""
        ahead = [token for token in self._tokens if token.start() >= place]
        operand, _ = _operand(ahead, "([{", ")]}", _ENDS.union(also))
        return operand[0].start(), operand[-1].end()

    def operand_before(self, place, also=()):
        """Return the span of the operand before a place, and the token before that."""
        back = [token for token in reversed(self._tokens) if token.end() <= place]
        operand, stop = _operand(back, ")]}", "([{", _ENDS.union(also))
        return operand[-1].start(), operand[0].end(), stop


_TOKEN = re.compile(r"\w+|::|->|<<=|>>=|[<>=!+\-*/%&|^]=|<<|>>|&&|\|\||\+\+|--|\S")
# What an expression ends with, or begins behind; of a ternary, its condition and its two sides are each one.
_ENDS = frozenset((";", ",", "?", ":", "=", "+=", "-=", "*=", "/=", "|=", "&=", "return", "else"))


def _operand(tokens, opens, closes, ends):
    operand, depth = [], 0
    for token in tokens:
        depth += (token[0] in opens) - (token[0] in closes)
        if depth < 0 or (depth == 0 and token[0] in ends):
            return operand, token[0]
        operand.append(token)
    return operand, ""


def _without_template_arguments(text):
    """Return the text with template arguments as parts of the names before them."""
    while match := re.search(r"\w<", text):
        end = closing(text, match.start() + 1, "<", ">")
        text = text[: match.start() + 1] + "_" * (end - match.start() - 1) + text[end:]
    return text


# ---- operators: each yields its name and (begin, end, replacement)


LOGIC = ("&&", "||")


def barriers(code):
    """Leave out barriers, fences and waits."""
    statement = r"\b(?:__sync\w+|__threadfence\w*|ptx::\w*(?:wait|arrive|commit|fence|sync|barrier)\w*)\([^;{}]*\);"
    for match in code.find(rf"(?<=[;{{}}\s]){statement}"):
        yield "barrier-removed", (match.start(), match.end(), ";")


RELATIONS = {
    "<": ("<=", "less-equal"),
    "<=": ("<", "less"),
    ">": (">=", "greater-equal"),
    ">=": (">", "greater"),
    "==": ("!=", "not-equal"),
    "!=": ("==", "equal"),
}


def relations(code):
    """Shift bounds by one, and negate equalities, but not where they are all of an if: `conditions` does more."""
    for match in code.operators(RELATIONS):
        begin, end = code.operand_before(match.start())[0], code.operand_behind(match.end())[1]
        if match[0] in ("==", "!=") and re.search(r"\bif \($", code.text[:begin]) and code.text[end] == ")":
            continue
        replacement, name = RELATIONS[match[0]]
        yield name, (match.start(), match.end(), replacement)


def loop_bounds(code):
    """End loops one step early; one step late is `relations`."""
    for match in code.find(r"\bfor \("):
        header = range(match.end(), closing(code.text, match.end() - 1))
        for relation in code.operators("<"):
            if relation.start() in header:
                _, end = code.operand_behind(relation.end(), LOGIC)
                yield "bound-minus-one", (end, end, " - 1")


def conditions(code):
    """Run statements always, or never: a guard's return or break among them."""
    for match in code.find(r"\bif (?:constexpr )?\("):
        end = closing(code.text, match.end() - 1) - 1
        for value in ("true", "false"):
            yield f"if-{value}", (match.end(), end, value)


def choices(code):
    """Take always the same side of a ternary."""
    for match in code.find(r"(?<=[ \n])\?(?=[ \n])"):
        begin, end, _ = code.operand_before(match.start())
        for value in ("true", "false"):
            yield f"choose-{value}", (begin, end, value)


def conjunctions(code):
    """Make an operand of && or || no longer matter."""
    for match in code.operators(LOGIC):
        neutral = "true" if match[0] == "&&" else "false"
        ends = ("||",) if match[0] == "||" else ("||", "&&")
        begin, end, stop = code.operand_before(match.start(), ends)
        if stop != match[0]:  # else it is the right operand of the operator before
            yield "operand-dropped", (begin, end, neutral)
        yield "operand-dropped", (*code.operand_behind(match.end(), ends), neutral)


def negations(code):
    for match in code.find(r"!(?!=)"):
        yield "not-removed", (match.start(), match.end(), "")


ARITHMETIC = {
    "+": ("-", "minus"),
    "-": ("+", "plus"),
    "<<": (">>", "shift-right"),
    ">>": ("<<", "shift-left"),
    "&": ("|", "or"),
    "|": ("&", "and"),
    "+=": ("-=", "subtract"),
}


def arithmetic(code):
    for match in code.operators(ARITHMETIC):
        replacement, name = ARITHMETIC[match[0]]
        yield name, (match.start(), match.end(), replacement)
    for match in code.find(r"--(?=\w)"):
        yield "increment", (match.start(), match.end(), "++")


_NUMBER = re.compile(
    r"(?<![\w.])(?:(?P<real>0x[\da-f.]+p[+-]?\d+|\d+\.\d*(?:e[+-]?\d+)?)f?"
    r"|(?P<whole>0x[\da-f]+|\d+)(?P<suffix>[ul]*))(?![\w.])"
)
# `x < 3` with `<=` is `x < 4`: the change of the relation stands for it.
_SAME_AS_RELATION = {"<": 1, "<=": -1, ">": -1, ">=": 1}


def constants(code):
    """Add one to whole numbers, and take one off; double and halve real ones, and make 1 of 0."""
    for match in _NUMBER.finditer(code.text):
        if re.search(r"<(?:\w+, )*$", code.text[: match.start()]) and not re.match(r">\(", code.text[match.end() :]):
            continue  # an argument of a type
        span = match.span()
        if match["real"]:
            zero = re.fullmatch(r"[0.]+", match["real"])
            for name, change in (("one", "{} + 1"),) if zero else (("doubled", "2 * {}"), ("halved", "{} / 2")):
                yield name, (*span, change.format(match[0]))
            continue
        relation = re.search(r" ([<>]=?) $", code.text[: match.start()])
        same = _SAME_AS_RELATION[relation[1]] if relation and code.operand_behind(match.start(), LOGIC) == span else 0
        first = code.text[: match.start()].endswith("[") and match["whole"] == "0"
        for name, step in (("plus-one", 1), ("minus-one", -1)):
            if step != same and not (first and step < 0):  # no compiler promises anything about an array's [-1]
                value = int(match["whole"], 0) + step
                number = hex(value) if match["whole"].startswith("0x") else str(value)
                yield name, (*span, number + match["suffix"])


PARTNERS = {"min": "max", "lesser": "greater"}
PARTNERS |= {high: low for low, high in PARTNERS.items()}


def partners(code):
    """Make a minimum a maximum, and the reverse: `ptx::min_nan_f16x2` and its like too."""
    for match in code.find(r"\b(min|max|lesser|greater)(?=(?:_\w+)?[(<])"):
        if not re.search(r"[\w*&>] $", code.text[: match.start()]) or code.text[: match.start()].endswith("return "):
            yield PARTNERS[match[1]], (match.start(), match.end(), PARTNERS[match[1]])


def shuffles(code):
    """Shuffle half as far; one lane farther would be no mistake, for such distances reach every lane too."""
    for match in code.find(r"__shfl_\w+\("):
        place = match.end() - 1
        for _ in range(3):  # mask, value, distance
            _, place = code.operand_behind(place + 1)
        yield "distance-halved", (place, place, " / 2")


OPERATORS = (
    barriers, relations, loop_bounds, conditions, choices, conjunctions, negations, arithmetic, constants, partners,
    shuffles,
)  # fmt: skip
