"""The generator of mutants, the table of equivalent ones, and a sample that the suite must notice."""

import os
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from quantplan.kernels import source_root
from tests.mutants.equivalent import Entry, Equivalents
from tests.mutants.generate import mutants_of, mutants_of_folder
from tests.mutants.run import Outcome, met_by_cases, report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mutants():
    return mutants_of_folder(source_root())


def made(text, operator):
    """Return what an operator makes of a text."""
    return {m.after for m in mutants_of("a.cu", text) if re.sub(r"\.\d+$", "", m.operator) == operator}


@pytest.mark.parametrize(
    "operator, before, after",
    [
        ("barrier-removed", "x = 1; __syncthreads();", {"x = 1; ;"}),
        ("barrier-removed", "{ ptx::cp_async_wait_group(n); }", {"{ ; }"}),
        ("less-equal", "bool b = i < n;", {"bool b = i <= n;"}),
        ("less", "bool b = i <= n;", {"bool b = i < n;"}),
        ("greater-equal", "bool b = i > n;", {"bool b = i >= n;"}),
        ("greater", "bool b = i >= n;", {"bool b = i > n;"}),
        ("equal", "bool b = i != n;", {"bool b = i == n;"}),
        ("not-equal", "bool b = i == n;", {"bool b = i != n;"}),
        ("not-equal", "if (i == n) return;", set()),  # if-true and if-false do more
        ("bound-minus-one", "for (int i = a; i < n && f(i, n); ++i)", {"for (int i = a; i < n - 1 && f(i, n); ++i)"}),
        ("if-false", "if (f(a)) return;", {"if (false) return;"}),
        ("if-true", "else if constexpr (f(a)) return;", {"else if constexpr (true) return;"}),
        ("choose-true", "x = a < b ? f(c ? d : e) : g;", {"x = true ? f(c ? d : e) : g;",
                                                          "x = a < b ? f(true ? d : e) : g;"}),
        ("choose-false", "return a ? b : c ? d : e;", {"return false ? b : c ? d : e;",
                                                       "return a ? b : false ? d : e;"}),
        ("operand-dropped", "if (f(a) && b && c)", {"if (true && b && c)", "if (f(a) && true && c)",
                                                    "if (f(a) && b && true)"}),
        ("operand-dropped", "x = a<b, c> || d ? 1 : 2;", {"x = false || d ? 1 : 2;", "x = a<b, c> || false ? 1 : 2;"}),
        ("not-removed", "if (!f(a) && b != c)", {"if (f(a) && b != c)"}),
        ("minus", "x = a * b + f<int*>(c);", {"x = a * b - f<int*>(c);"}),
        ("plus", "x = a - b;", {"x = a + b;"}),
        ("shift-left", "x = a >> b;", {"x = a << b;"}),
        ("shift-right", "x = a << b;", {"x = a >> b;"}),
        ("or", "x = a & f(&b);", {"x = a | f(&b);"}),
        ("and", "x = a | b;", {"x = a & b;"}),
        ("subtract", "x += b;", {"x -= b;"}),
        ("increment", "x = --n;", {"x = ++n;"}),
        ("plus-one", "x = 0xffu + a[0];", {"x = 0x100u + a[0];", "x = 0xffu + a[1];"}),
        ("minus-one", "x = 0xffu + a[0];", {"x = 0xfeu + a[0];"}),
        ("plus-one", "bool b = i < 3;", set()),  # less-equal is the same
        ("minus-one", "bool b = i < 3;", {"bool b = i < 2;"}),
        ("plus-one", "Vec<int, 2> v = f<32>(a);", {"Vec<int, 2> v = f<33>(a);"}),
        ("doubled", "x = W(0x1p-3);", {"x = W(2 * 0x1p-3);"}),
        ("halved", "x = f(1.5f);", {"x = f(1.5f / 2);"}),
        ("one", "f(0.0f);", {"f(0.0f + 1);"}),
        ("max", "x = min(a, b);", {"x = max(a, b);"}),
        ("lesser", "x = ptx::greater_x2<In>(a, b);", {"x = ptx::lesser_x2<In>(a, b);"}),
        ("greater", "inline f32 lesser(f32 a, f32 b);", set()),  # a declaration
        ("distance-halved", "y = __shfl_xor_sync(0xffu, f(x, y), d);", {"y = __shfl_xor_sync(0xffu, f(x, y), d / 2);"}),
    ],
)  # fmt: skip
def test_operators(operator, before, after):
    assert made(before, operator) == after


def test_what_is_no_code_is_left_alone():
    text = """
      // a < b, and 3 more
      /* if (a && b)
         return 1; */
      #if X >= 890 && \\
          Y < 2
      const char* s = "a + 1 \\" - 2";
      char c = '1';
      static_assert(N <= 32 && (N & 1) == 0, "a sentence");
      template <int N = 3, class T = Vec<int, 4>> struct S;
    """
    assert mutants_of("a.cu", text) == []


def test_a_mutant_is_one_change_at_its_line():
    text = "int f(int a) {\n  // nothing\n  return a + 1;  // more\n}\n"
    for mutant in mutants_of("a.cu", text):
        assert mutant.line == 3
        assert mutant.before == "return a + 1;"
        changed = mutant.apply(text)
        assert changed.splitlines()[2].startswith("  " + mutant.after)
        assert [*changed.splitlines()[:2], *changed.splitlines()[3:]] == ["int f(int a) {", "  // nothing", "}"]


def test_names_are_unique_and_stay(mutants):
    assert len({m.name for m in mutants}) == len(mutants)
    assert mutants == mutants_of_folder(source_root())
    text = (source_root() / "quantize.cu").read_text()
    before, below = mutants_of("quantize.cu", text), mutants_of("quantize.cu", "\n\n" + text)
    assert [attrs.evolve(m, line=m.line + 2, begin=m.begin + 2, end=m.end + 2) for m in before] == below


def test_every_file_has_mutants(mutants):
    folder = source_root()
    sources = {path.relative_to(folder).as_posix() for path in (*folder.glob("*.cu"), *folder.glob("include/qp/*.cuh"))}
    assert {m.file for m in mutants} == sources - {"include/qp/architecture.cuh"}  # a constant per architecture


# ---- the table of equivalents


def test_the_table_names_mutants_that_are_there(mutants):
    assert Equivalents.read().stale(mutants) == []


def test_entries_without_a_mutant_or_a_reason_are_errors():
    mutants = mutants_of("a.cu", "x = a + 1;")
    good = Entry("a.cu", "x = a + 1;", ("minus", "plus-one"), "nobody reads x")
    assert Equivalents([good]).stale(mutants) == []
    assert [Equivalents([good]).reason(m) for m in mutants] == ["nobody reads x", "nobody reads x", None]
    for change in ({"file": "b.cu"}, {"line": "x = a + 2;"}, {"operators": ("minus", "plus")}, {"reason": " "}):
        assert len(Equivalents([attrs.evolve(good, **change)]).stale(mutants)) in {1, 2}, change


def test_an_entry_may_be_of_one_of_the_lines_that_read_the_same():
    mutants = mutants_of("a.cu", "x = a - b;\ny = 1;\nx = a - b;")
    table = Equivalents([Entry("a.cu", "x = a - b; [2]", ("plus",), "nobody reads this one")])
    assert [m.line for m in mutants if table.reason(m)] == [3]
    assert table.stale(mutants) == []
    assert len(Equivalents([Entry("a.cu", "x = a - b; [3]", ("plus",), "nobody reads it")]).stale(mutants)) == 1


def test_what_is_as_it_should_be():
    minus, more, less = mutants_of("a.cu", "x = a + 1;")
    table = Equivalents([Entry("a.cu", "x = a + 1;", ("minus",), "nobody reads x")])

    def unexpected(*outcomes):
        return report([(mutant, Outcome(kind)) for mutant, kind in outcomes], table, len(outcomes))

    assert unexpected((minus, "survived"), (more, "killed"), (less, "not compiled")) == 0
    assert unexpected((minus, "killed")) == 1  # it is not equivalent
    assert unexpected((minus, "survived"), (more, "survived"), (less, "broken")) == 2


def test_the_score_is_the_last_line(capsys):
    minus, more, less = mutants_of("a.cu", "x = a + 1;")
    outcomes = [(minus, Outcome("killed")), (more, Outcome("survived")), (less, Outcome("not compiled"))]
    report(outcomes, Equivalents([]), 3)
    assert capsys.readouterr().out.splitlines()[-1] == "killed 1/2"


def test_files_that_no_case_includes_are_told(capsys):
    mutants = [*mutants_of("a.cu", "x = a + 1;"), *mutants_of("b.cu", "x = a + 1;")]
    met = met_by_cases(mutants, lambda mutant: ["a unit"] if mutant.file == "a.cu" else [])
    assert met == mutants[:3]
    assert capsys.readouterr().out == "no case includes b.cu: 3 mutants are not run\n"


def test_the_table_shares_a_reason_among_mutants(tmp_path):
    path = tmp_path / "equivalent.toml"
    path.write_text(
        '[[equivalent]]\nreason = "nobody reads x"\nmutants = [["a.cu", "x = a + 1;", "minus", "plus-one"]]'
    )
    entry = Entry("a.cu", "x = a + 1;", ("minus", "plus-one"), "nobody reads x")
    assert Equivalents.read(path)._entries == (entry,)


# ---- a sample of the real thing

FUSED = (  # the normal run's, which meet the cases of their family only
    ("include/qp/range.cuh", "__syncthreads();", "barrier-removed"),
    ("include/qp/row.cuh", "present = per_block == 1 || row < m;", "less-equal"),
    ("include/qp/row.cuh", "if (place.lane % lanes == 0 && place.column(i) < k)", "less-equal"),
    (
        "norm_quantize.cu",
        "for (int i = Keep; i * Lanes * run_length < p.k; ++i) row.update(i, row.load(i));",
        "bound-minus-one",
    ),
)
SAMPLE = (
    *FUSED,
    ("dynamic_range_quantize.cu", "__syncthreads();", "barrier-removed"),
    (
        "dynamic_range_quantize.cu",
        "const bool present = alone || ((Abreast > 1 || row < p.m) && index < per_row);",
        "less-equal",
    ),
    ("quantize.cu", "if (row >= p.m) break;", "if-false"),
    ("quantize.cu", "for (int i = 0; i < elementwise_rows; ++i) {", "bound-minus-one"),
    ("include/qp/vec.cuh", "__device__ inline int left(int rest, int v) { return max(0, min(rest, v)); }", "max"),
    ("include/qp/element.cuh", "static constexpr int bias = 7, mantissa = 3;", "plus-one"),
    ("dequantize.cu", "if (row >= p.m) break;", "if-false"),
)


@pytest.mark.parametrize(
    "sample, options",
    [
        pytest.param(FUSED, ("--family", "fused"), id="family"),
        pytest.param(SAMPLE, (), id="all", marks=pytest.mark.slow),
    ],
)
def test_a_sample_is_killed_and_the_sources_as_they_are_pass(mutants, sample, options):
    names = [next(m.name for m in mutants if (m.file, m.before, m.operator) == wanted) for wanted in sample]
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutants", "--jobs", "1", *options, *names],
        cwd=ROOT, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "the unchanged sources pass every case" in lines
    killed, run = re.fullmatch(r"killed (\d+)/(\d+)", lines[-1]).groups()
    assert killed == run
    assert int(run) >= len(sample)  # a name may be a part of another's
