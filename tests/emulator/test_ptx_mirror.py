"""The headers of PTX wrappers and their emulations are the same to a kernel, and NVRTC makes of them what they say."""

import importlib.util
import itertools
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from quantplan import kernels
from quantplan.emulator import compiler
from quantplan.errors import KernelBuildError

REAL = kernels.source_root() / "include" / "qp" / "ptx"
EMULATED = compiler.HERE / "include" / "qp" / "ptx"
HEADERS = sorted({path.name for folder in (REAL, EMULATED) for path in folder.iterdir()})
ARCHES = {"sm_80": 800, "sm_86": 860, "sm_89": 890, "sm_90a": 900, "sm_100a": 1000, "sm_120a": 1200}
FP8 = ("e4m3", "e5m2")
SM_90A = "bool there = is_sm_90a"
# What templates are instantiated for, by those of their parameters that must be given.
ARGUMENTS = {
    ("int bytes",): ("4", "8", "16"),
    ("int groups",): ("0", "2"),
    ("int registers",): ("40", "232"),
    ("class T", "int count"): ("int, 4", "float, 32", "unsigned, 4"),
    ("MatrixElement a_element", "MatrixElement b_element", "int columns"): (
        *("MatrixElement::s8, MatrixElement::u8, 24", "MatrixElement::f16, MatrixElement::f16, 8"),
        *("MatrixElement::bf16, MatrixElement::bf16, 40", "MatrixElement::e4m3, MatrixElement::e5m2, 256"),
    ),
}

# ---- the functions of a header


class Function(NamedTuple):
    name: str
    returns: str
    parameters: tuple[str, ...]  # those that have no default
    template: tuple[str, ...]
    needs: int  # least __CUDA_ARCH__

    @property
    def signature(self):
        return self.name, self.returns, self.parameters, self.template, self.needs

    def instances(self):
        """Return the name with each choice of template arguments."""
        own = tuple(itertools.takewhile(lambda parameter: "=" not in parameter, self.template))
        if not own:
            return [f"{self.name}<>" if self.template else self.name]
        return [f"{self.name}<{values}>" for values in ARGUMENTS[own]]

    def address(self, instance):
        """Return an expression that makes the compiler emit the function."""
        given = instance.partition("<")[2].rstrip(">").split(", ")
        values = dict(zip((parameter.split()[1] for parameter in self.template), given, strict=False))
        values["Sum"] = "int" if "::s8" in instance else "float"
        parameters = re.sub(r"\w+", lambda word: values.get(word[0], word[0]), ", ".join(self.parameters))
        return f"(void*)static_cast<{self.returns} (*)({parameters})>(&qp::ptx::{instance})"

    @property
    def newer(self):
        """Whether it is a template so that only a call is refused where there is no such instruction."""
        return any(parameter.startswith(("int arch", "bool there")) for parameter in self.template)

    def exists_on(self, arch):
        """Tell whether an architecture has the instruction; some are sm_90a's alone."""
        return arch == "sm_90a" if SM_90A in self.template else self.needs <= ARCHES[arch]


DECLARATION = re.compile(
    r"(?:template\s*<([^>]*)>\s*)?(?:__device__ inline|EMULATED_INSTRUCTION)\s+([\w ]+[ *&]+)(\w+)\("
)


def functions(path):
    """Return what a header declares in qp::ptx."""
    found, needs = [], [0]
    text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
    for part in re.split(r"^(#(?:if|endif).*)$", text, flags=re.MULTILINE):
        if part.startswith("#if"):
            guard = re.search(r"__CUDA_ARCH__ >= (\d+)", part)
            needs.append(int(guard[1]) if guard else needs[-1])
        elif part.startswith("#endif"):
            needs.pop()
        else:
            found += _declared(part, needs[-1])
    return found


def _declared(text, needs):
    for match in DECLARATION.finditer(text):
        namespaces = re.findall(r"namespace ([\w:]+) \{", text[: match.start()])
        if namespaces and namespaces[-1] != "qp::ptx":
            continue
        template, returns, name = match.groups(default="")
        wanted = _split(template)
        arch = next((int(part.split("=")[1]) for part in wanted if part.startswith("int arch")), needs)
        arch = 900 if SM_90A in wanted else arch
        parameters = _split(_parenthesised(text, match.end()))
        needed = tuple(p for p in parameters if "=" not in p and p != "EMULATED_CALLER")
        yield Function(name, returns.strip(), needed, tuple(wanted), arch)


def _parenthesised(text, start):
    depth = 1
    for end in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    raise AssertionError("a parenthesis stays open")


def _split(text):
    return [" ".join(part.split()) for part in re.split(r",(?![^(<]*[)>])", text) if part.strip()]


ALL = [function for header in HEADERS if (REAL / header).exists() for function in functions(REAL / header)]
NEWER = [function for function in ALL if function.newer]


@pytest.mark.parametrize("header", HEADERS)
def test_both_sides_declare_the_same_functions(header):
    real, emulated = REAL / header, EMULATED / header
    assert real.exists(), f"{header} is only emulated"
    assert emulated.exists(), f"{header} has no emulation"
    assert sorted(functions(real)) == sorted(functions(emulated))
    assert functions(real), "a header without functions"


def test_the_parser_sees_what_is_there():
    by_name = {function.name: function for function in ALL}
    assert len(by_name) == len(ALL), "wrappers have no overloads"
    assert by_name["ldmatrix_x4"] == Function(
        "ldmatrix_x4", "void", ("unsigned (&fragment)[4]", "const void* row"), (), 0
    )
    assert by_name["cp_async_bulk_wait_group"].template == ("int groups", "int arch = 900")
    assert by_name["mbarrier_try_wait_parity"].needs == 900
    assert by_name["mma_m16n8k32_e4m3_e5m2"].needs == 890


def test_wrappers_are_the_only_assembly():
    root = kernels.source_root()
    for path in (*root.rglob("*.cu"), *root.rglob("*.cuh")):
        if path.parent != REAL:
            assert not re.search(r"\basm\b", path.read_text(encoding="utf-8")), path


# ---- NVRTC


def unit(statements):
    includes = "".join(f"#include <qp/ptx/{header}>\n" for header in HEADERS) + "using namespace qp::ptx;\n"
    uses = "using namespace qp::ptx;\n__device__ void* volatile sink;\n"
    return f'{includes}{uses}extern "C" __global__ void k() {{\n{statements}\n}}\n'


@pytest.fixture(scope="module")
def nvrtc():
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'quantplan[cuda13]'")
    return kernels.compile_text


@pytest.mark.parametrize("arch", ARCHES)
def test_every_wrapper_compiles_where_its_instruction_exists(nvrtc, arch):
    there = [function for function in ALL if function.exists_on(arch)]
    lines = [f"sink = {function.address(instance)};" for function in there for instance in function.instances()]
    assert nvrtc(unit("\n".join(lines)), arch)


def test_a_wrapper_of_a_newer_instruction_says_what_it_needs(nvrtc):
    lines = [f"sink = {function.address(instance)};" for function in NEWER for instance in function.instances()[:1]]
    with pytest.raises(KernelBuildError) as caught:
        nvrtc(unit("\n".join(lines)), "sm_80")
    sentence = r'failed with "[^"]*needs sm_(\d+)(?:a| or newer)".*?instantiation of "[^"]*?::(\w+)[(<]'
    refused = {name: int(arch) * 10 for arch, name in re.findall(sentence, caught.value.log, re.DOTALL)}
    assert refused == {function.name: function.needs for function in NEWER}


@pytest.mark.parametrize("function", NEWER, ids=lambda function: function.name)
def test_what_is_refused_does_not_exist_there(nvrtc, function):
    """With the refusal lifted, the assembler itself refuses the instruction on the next older architecture."""
    if SM_90A in function.template:
        older, lifted = "sm_90", "true"
    else:
        older, lifted = max((arch for arch in ARCHES if ARCHES[arch] < function.needs), key=ARCHES.get), "800"
    own = function.instances()[0].partition("<")[2].rstrip(">")
    arguments = ", ".join(filter(None, (own, lifted)))
    statement = f"sink = {function.address(f'{function.name}<{arguments}>')};"
    with pytest.raises(KernelBuildError, match=r"sm_\d\d or higher|not supported"):
        nvrtc(unit(statement), older)


# ---- SASS

MNEMONICS = {
    "sm_80": {
        "and_or": "LOP3.LUT",
        "cp_async<4>": "LDGSTS.E",
        "cp_async<8>": "LDGSTS.E.64",
        "cp_async<16>": "LDGSTS.E.BYPASS.128",
        "cp_async_zero_fill<4>": "LDGSTS.E.ZFILL",
        "cp_async_zero_fill<8>": "LDGSTS.E.64.ZFILL",
        "cp_async_zero_fill<16>": "LDGSTS.E.BYPASS.128.ZFILL",
        "cp_async_commit_group": "LDGDEPBAR",
        "cp_async_wait_group<2>": "DEPBAR.LE",
        "cp_async_mbarrier_arrive": "ATOMS.ADD.S32",
        "cp_async_mbarrier_arrive_noinc": "ARRIVES.LDGSTSBAR.64",
        "mbarrier_arrive": "ATOMS.ARRIVE.64",
        "bar_sync": "BAR.SYNC.DEFER_BLOCKING",
        "bar_arrive": "BAR.ARV",
        "ex2_approx": "MUFU.EX2",
        "rcp_approx": "MUFU.RCP",
        "ldmatrix_x1": "LDSM.16.M88",
        "ldmatrix_x2": "LDSM.16.M88.2",
        "ldmatrix_x4": "LDSM.16.M88.4",
        "ldmatrix_x1_trans": "LDSM.16.MT88",
        "ldmatrix_x2_trans": "LDSM.16.MT88.2",
        "ldmatrix_x4_trans": "LDSM.16.MT88.4",
        "mma_m16n8k16_f16_f16": "HMMA.16816.F32",
        "mma_m16n8k16_bf16_bf16": "HMMA.16816.F32.BF16",
        "mma_m16n8k32_s8_s8": "IMMA.16832.S8.S8",
        "mma_m16n8k32_u8_s8": "IMMA.16832.U8.S8",
        "mma_m16n8k32_s8_u8": "IMMA.16832.S8.U8",
        "mma_m16n8k32_u8_u8": "IMMA.16832.U8.U8",
    },
    "sm_89": {f"mma_m16n8k32_{a}_{b}<>": f"QMMA.16832.F32.{a}.{b}".upper() for a in FP8 for b in FP8},
    "sm_90a": {
        "mbarrier_init": "SYNCS.EXCH.64",
        "mbarrier_inval": "SYNCS.CCTL.IV",
        "mbarrier_arrive": "SYNCS.ARRIVE.TRANS64.A1T0",
        "mbarrier_arrive_count<>": "SYNCS.ARRIVE.TRANS64.ART0",
        "mbarrier_arrive_expect_tx<>": "SYNCS.ARRIVE.TRANS64",
        "mbarrier_expect_tx<>": "SYNCS.ARRIVE.TRANS64.RED.A0TR",
        "mbarrier_try_wait_parity<>": "SYNCS.PHASECHK.TRANS64.TRYWAIT",
        "mbarrier_test_wait_parity": "SYNCS.PHASECHK.TRANS64",
        "cp_async_mbarrier_arrive_noinc": "ARRIVES.LDGSTSBAR.64.ARVCNT",
        "cp_async_bulk_load<>": "UBLKCP.S.G",
        "cp_async_bulk_store<>": "UBLKCP.G.S",
        "cp_async_bulk_commit_group<>": "UTMACMDFLUSH",
        "cp_async_bulk_wait_group<2>": "DEPBAR.LE",
        "cp_async_bulk_wait_group_read<2>": "DEPBAR.LE",
        "fence_proxy_async_shared<>": "FENCE.VIEW.ASYNC.S",
        "cluster_rank<>": "S2UR",
        "cluster_size<>": "ULDC",
        "cluster_arrive<>": "UCGABAR_ARV",
        "cluster_arrive_relaxed<>": "UCGABAR_ARV",
        "cluster_wait<>": "UCGABAR_WAIT",
        "mapa<>": "PRMT",
        "load_cluster_4<>": "LD.E",
        "load_cluster_16<>": "LD.E.128",
        "store_cluster_4<>": "ST.E",
        "store_cluster_16<>": "ST.E.128",
        "store_async_4<>": "STAS",
        "store_async_16<>": "STAS.128",
        "cp_async_bulk_cluster<>": "UBLKCP.S.S",
        "mbarrier_arrive_cluster<>": "MEMBAR.ALL.GPU",
        "mbarrier_arrive_cluster_read<>": "SYNCS.ARRIVE.TRANS64.RED.A1T0",
        "mbarrier_try_wait_parity_cluster<>": "SYNCS.PHASECHK.TRANS64.TRYWAIT",
        "cp_async_bulk_tensor_load_2d_multicast<>": "UTMALDG.2D.MULTICAST",
        "wgmma_fence<>": "WARPGROUP.ARRIVE",
        "wgmma_wait_group<2>": "WARPGROUP.DEPBAR.LE",
        "prefetch_tensor_map<>": "UTMACCTL.PF",
        "cp_async_bulk_tensor_load_2d<>": "UTMALDG.2D",
        "cp_async_bulk_tensor_load_2d_hint<>": "UTMALDG.2D",
        "cp_async_bulk_tensor_load_3d<>": "UTMALDG.3D",
        "cp_async_bulk_tensor_store_2d<>": "UTMASTG.2D",
        "stmatrix_x1<>": "STSM.16.M88",
        "stmatrix_x2<>": "STSM.16.M88.2",
        "stmatrix_x4<>": "STSM.16.M88.4",
        "stmatrix_x1_trans<>": "STSM.16.MT88",
        "stmatrix_x2_trans<>": "STSM.16.MT88.2",
        "stmatrix_x4_trans<>": "STSM.16.MT88.4",
    },
    "sm_120a": {f"mma_m16n8k32_{a}_{b}<>": f"QMMA.16832.F32.{a}.{b}".upper() for a in FP8 for b in FP8},
}


@pytest.fixture(scope="module")
def disassemble(tmp_path_factory):
    """Return the instructions of each function of a cubin, by its mangled name."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else ()
    tools = [tool for folder in folders for tool in Path(folder).glob("cu*/bin/nvdisasm*")]
    if not tools:
        pytest.skip("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")

    def run(cubin):
        file = tmp_path_factory.mktemp("sass") / "k.cubin"
        file.write_bytes(cubin)
        listing = subprocess.run([tools[0], "-c", file], capture_output=True, text=True, check=True).stdout
        parts = re.split(r"^\$k\$(\w+):$", listing, flags=re.MULTILINE)
        mnemonic = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)")
        return {name: mnemonic.findall(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}

    return run


def mangled(instance):
    """Return how the mangled name of an instance begins."""
    name, _, argument = instance.rstrip(">").partition("<")
    own = f"ILi{argument}E" if argument else "I" if instance.endswith("<>") else ""
    return f"_ZN2qp3ptx{len(name)}{name}{own}"


@pytest.mark.parametrize("arch", MNEMONICS)
def test_the_instruction_is_in_the_machine_code(nvrtc, disassemble, arch):
    by_name = {function.name: function for function in ALL}
    lines = [f"sink = {by_name[one.partition('<')[0]].address(one)};" for one in MNEMONICS[arch]]
    code = disassemble(nvrtc(unit("\n".join(lines)), arch))
    for instance, mnemonic in MNEMONICS[arch].items():
        (instructions,) = (body for name, body in code.items() if name.startswith(mangled(instance)))
        assert mnemonic in instructions, (instance, instructions)
