"""The CUDA sources are found and told apart, and a kernel's text, parameter and cubin are what its spec says."""

import itertools
import re
import struct
import sys

import numpy as np
import pytest

import quantplan as qp
from quantplan import kernels
from quantplan.emulator import compiler
from quantplan.emulator.library import Library, Region
from quantplan.emulator.schedule import Schedule
from quantplan.errors import CompilerNotFound
from quantplan.kernels import KernelSpec, ParamStruct


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Pretend that the package lies in a folder of ours, with two sources beside it."""
    monkeypatch.setattr(kernels, "_PACKAGE", tmp_path / "quantplan")
    folder = tmp_path / "kernels_cu"
    (folder / "include").mkdir(parents=True)
    (folder / "README.md").write_text("sources")
    (folder / "a.cu").write_bytes(b"one")
    (folder / "include" / "b.cuh").write_bytes(b"two")
    return folder


def digest(root):
    return kernels.source_digest([root / "a.cu", root / "include" / "b.cuh"])


def test_the_packages_own_folder_comes_first(root):
    assert kernels.source_root() == root
    inside = root.parent / "quantplan" / "kernels_cu"
    inside.mkdir(parents=True)
    assert kernels.source_root() == root, "an empty folder is no source folder"
    (inside / "README.md").write_text("sources")
    assert kernels.source_root() == inside


def test_missing_folder_is_an_error_that_names_both_places(root):
    (root / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match="CUDA sources are missing") as caught:
        kernels.source_root()
    assert str(root) in str(caught.value)
    assert str(root.parent / "quantplan" / "kernels_cu") in str(caught.value)


def test_digest_ignores_order(root):
    paths = [root / "a.cu", root / "include" / "b.cuh"]
    assert kernels.source_digest(paths) == kernels.source_digest(iter(reversed(paths)))
    assert len(kernels.source_digest(paths)) == 64


def test_digest_follows_the_sources_when_they_move(root, monkeypatch, tmp_path):
    before = digest(root)
    moved = tmp_path / "elsewhere" / "kernels_cu"
    moved.parent.mkdir()
    root.rename(moved)
    monkeypatch.setattr(kernels, "_PACKAGE", moved.parent / "quantplan")
    assert digest(moved) == before


def test_digest_changes_with_content(root):
    before = digest(root)
    (root / "include" / "b.cuh").write_bytes(b"twO")
    assert digest(root) != before


def test_digest_changes_with_names(root):
    before = digest(root)
    (root / "a.cu").rename(root / "c.cu")
    assert kernels.source_digest([root / "c.cu", root / "include" / "b.cuh"]) != before


def test_digest_changes_when_bytes_move_between_files(root):
    before = digest(root)
    (root / "a.cu").write_bytes(b"onet")
    (root / "include" / "b.cuh").write_bytes(b"wo")
    assert digest(root) != before


# ---- families


@pytest.fixture
def family(root):
    """Write a family of four files, and forget what was digested before and after."""
    (root / "include" / "qp").mkdir()
    (root / "family.cu").write_text("#include <qp/a.cuh>\n#include <other.cu>\n#include <cmath>\n")
    (root / "other.cu").write_text("  #  include <qp/b.cuh>\n#include <qp/a.cuh>\n")
    (root / "include" / "qp" / "a.cuh").write_text("// #include <qp/unused.cuh>\n")
    (root / "include" / "qp" / "b.cuh").write_text("#include <qp/a.cuh>\n")
    (root / "include" / "qp" / "unused.cuh").write_text("")
    functions = (kernels.family_sources, kernels.family_digest)

    def digest():
        for function in functions:
            function.cache_clear()
        return kernels.family_digest("family.cu")

    yield digest
    for function in functions:
        function.cache_clear()


def test_a_family_is_its_source_and_all_that_it_includes(root, family):
    family()
    names = [path.name for path in kernels.family_sources("family.cu")]
    assert sorted(names) == ["a.cuh", "b.cuh", "family.cu", "other.cu"]


@pytest.mark.parametrize("name", ["family.cu", "other.cu", "include/qp/a.cuh", "include/qp/b.cuh"])
def test_an_edit_anywhere_in_a_family_changes_its_digest(root, family, name):
    before = family()
    (root / name).write_text((root / name).read_text() + "\n")
    assert family() != before


def test_an_edit_elsewhere_does_not(root, family):
    before = family()
    (root / "include" / "qp" / "unused.cuh").write_text("edited")
    (root / "a.cu").write_text("edited")
    assert family() == before


def test_a_family_that_is_not_there_is_an_error(root, family):
    with pytest.raises(FileNotFoundError):
        kernels.family_sources("missing.cu")


def test_files_that_include_each_other_are_named_once(tmp_path):
    (tmp_path / "a").write_text("#include <b>\n")
    (tmp_path / "b").write_text("#include <a>\n")
    assert kernels.included("#include <a>\n", [tmp_path]) == (tmp_path / "a", tmp_path / "b")


def test_the_first_folder_that_has_a_file_counts(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_text("")
    assert kernels.included("#include <a>\n", [tmp_path / "one", tmp_path / "two"]) == (tmp_path / "one" / "a",)


# ---- specs

PARAMS = ParamStruct("Params", (("out", "P"), ("n", "i")))


def spec(body="copy<int, 4>", source="copy.cu", threads=256):
    return KernelSpec(source=source, body=body, threads=threads, params=PARAMS)


@pytest.mark.parametrize(
    "body, name",
    [
        ("copy", "qp_copy"),
        ("copy<int, 4>", "qp_copy_int_4"),
        ("quantize<bf16, s8, float, Per::row, false, true, 8>", "qp_quantize_bf16_s8_float_Per_row_false_true_8"),
    ],
)
def test_a_kernel_is_named_after_its_body(body, name):
    assert spec(body).name == name
    assert re.fullmatch(r"[A-Za-z]\w*", name)


def test_specs_are_plain_data():
    assert spec() == spec()
    assert hash(spec()) == hash(spec())
    assert spec() != spec(threads=128)


def test_the_text_includes_each_source_once_and_appends_the_entries():
    text = kernels.source_text([spec(), spec("copy<char, 1>", threads=64), spec("fill", source="fill.cu")])
    assert text.splitlines() == [
        "#include <copy.cu>",
        "#include <fill.cu>",
        "namespace qp {",
        "QP_KERNEL(qp_copy_int_4, 256, Params, copy<int, 4>)",
        "QP_KERNEL(qp_copy_char_1, 64, Params, copy<char, 1>)",
        "QP_KERNEL(qp_fill, 256, Params, fill)",
        "}",
    ]


# ---- parameters

C_TYPES = {"T": "qp::ptx::TensorMap", "P": "void*", "q": "long long", "i": "int", "f": "float", "d": "double"}
LAYOUTS = [
    *("P", "i", "ii", "iii", "f", "d", "Pi", "ifd", "PPqi", "PPPifd", "qiiqf", "PPPPqqqqqqdiii"),
    *("T", "TPPqi", "TTTi", "TPPPPPPPPq"),
    *map("".join, itertools.product("id", repeat=4)),
]


def test_structs_lie_as_the_compiler_lays_them_out():
    text = [
        "#include <cstddef>",
        "#include <qp/ptx/launch.cuh>",
        "#include <qp/ptx/tensor_map.cuh>",
        "struct P { long long* out; };",
    ]
    expressions, expected = [], []
    for number, letters in enumerate(LAYOUTS):
        fields = tuple((f"f{i}", letter) for i, letter in enumerate(letters))
        members = "".join(f"{C_TYPES[letter]} {name}; " for name, letter in fields)
        text.append(f"struct S{number} {{ {members}}};")
        expressions += [f"sizeof(S{number})", *(f"offsetof(S{number}, {name})" for name, _ in fields)]
        laid_out = ParamStruct(f"S{number}", fields)
        # a field's offset is where the first byte changes when the field does
        zeros = laid_out.pack([b"" if letter == "T" else 0 for letter in letters])
        ones = [
            laid_out.pack([bytes([i == j]) if letter == "T" else i == j for j, letter in enumerate(letters)])
            for i in range(len(fields))
        ]
        widths = [128 if letter == "T" else struct.calcsize(letter) for letter in letters]
        changed = [next(k for k, (a, b) in enumerate(zip(zeros, one, strict=True)) if a != b) for one in ones]
        offsets = [place // width * width for place, width in zip(changed, widths, strict=True)]
        expected += [laid_out.size, *offsets]
    text.append(f"static const long long numbers[] = {{{', '.join(expressions)}}};")
    text.append("__device__ void body(const P& p) { p.out[threadIdx.x] = numbers[threadIdx.x]; }")
    text.append("QP_KERNEL(k, 1024, P, body)\n")
    out = np.zeros(len(expected), np.int64)
    Library(compiler.build("\n".join(text), arch=900, checked=False), checked=False).launch(
        "k",
        grid=(1,),
        block=(out.size,),
        shared_bytes=0,
        params=ParamStruct("P", (("out", "P"),)).pack([out.ctypes.data]),
        regions=[Region("out", out.ctypes.data, out.nbytes, out.nbytes, 1, writable=True)],
        schedule=Schedule(),
    )
    np.testing.assert_array_equal(out, expected)


def test_pointers_come_first():
    assert PARAMS.pointers == 1
    with pytest.raises(qp.InvalidProblem, match="before all other fields"):
        ParamStruct("P", (("n", "i"), ("x", "P")))


def test_a_kernel_of_clusters_has_an_entry_of_its_own():
    text = kernels.source_text([KernelSpec(source="a.cu", body="sum", threads=64, params=PARAMS, cluster=4)])
    assert "QP_CLUSTER_KERNEL(qp_sum, 4, 64, Params, sum)" in text


def test_values_are_packed_by_their_fields():
    params = ParamStruct("P", (("x", "P"), ("n", "i"), ("scale", "f"), ("big", "q"), ("exact", "d")))
    packed = params.pack([2**48, -3, 0.5, -(2**40), 0.1])
    assert struct.unpack("@Pifqd", packed) == (2**48, -3, 0.5, -(2**40), 0.1)
    assert params.size == len(packed) == 32


@pytest.mark.parametrize("values", [[1], [1, 2, 3], ["x", 1], [1, 0.5], [1, 2**31]])
def test_values_that_do_not_fit_are_refused(values):
    with pytest.raises(struct.error):
        PARAMS.pack(values)


# ---- cubins

KERNEL = """#include <qp/ptx/launch.cuh>
struct Params { int* out; int n; };
__device__ void fill(const Params& p) { if (threadIdx.x < p.n) p.out[threadIdx.x] = 1; }
QP_KERNEL(qp_fill, 256, Params, fill)
"""


def test_without_cuda_core_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(CompilerNotFound, match=r"quantplan\[cuda13\]"):
        kernels.compile_text(KERNEL, "sm_90a")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120a"])
def test_nvrtc_compiles_without_a_gpu(arch):
    pytest.importorskip("cuda.core", reason="compiling for GPUs needs cuda-core, which this environment lacks")
    cubin = kernels.compile_text(KERNEL, arch)
    assert cubin.startswith(b"\x7fELF")
    assert b"qp_fill" in cubin


def test_what_nvrtc_refuses_comes_with_options_and_log():
    pytest.importorskip("cuda.core", reason="compiling for GPUs needs cuda-core, which this environment lacks")
    with pytest.raises(qp.KernelBuildError) as caught:
        kernels.compile_text(KERNEL.replace("p.out", "p.missing"), "sm_90a")
    error = caught.value
    assert "missing" in error.log
    assert "\0" not in error.log
    assert error.op == "compile"
    assert any("sm_90a" in option for option in error.options)
    assert any("fmad=false" in option for option in error.options), "the numeric contract"
