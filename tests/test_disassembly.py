"""What the two tools print becomes figures: recorded output, and cubins made here."""

import pytest

import quantplan as qp
from quantplan import disassembly
from quantplan.disassembly import disassemble, parse
from quantplan.kernels import compile_text

RESOURCES = """
Resource usage:
 Common:
  GLOBAL:48 CONSTANT[4]:96
 Function qp_first:
  REG:41 STACK:8 SHARED:1152 LOCAL:0 CONSTANT[0]:632 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function qp_second:
  REG:12 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:584 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
	.headerflags	@"EF_CUDA_ACCELERATORS EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
	.target	sm_90a
//--------------------- .text.qp_first            --------------------------
	.section	.text.qp_first,"ax",@progbits
	.align	128
        .global         qp_first
qp_first:
.text.qp_first:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0400*/              @P0 BRA `(.L_x_680) ;
        /*05e0*/                   LDG.E.NA.128.CONSTANT R4, desc[UR6][R22.64] ;
        /*0840*/                   LDG.E.NA.128.CONSTANT R8, desc[UR6][R22.64+0x800] ;
        /*0848*/             @!P0 LDG.E.U16 R3, desc[UR6][R22.64+0x1000] ;
        /*0850*/                   STL [R1], R40                                      (*"SpillRefill"*);
        /*0858*/                   STL.64 [R1+0x8], R40 ;
        /*0860*/                   LDL.LU R39, [R1]                                   (*"SpillRefill"*);
        /*0d20*/                   LOP3.LUT R0, R4, 0x7fff7fff, RZ, 0xc0, !PT ;
        /*0d30*/                   LDG.E.NA.128.CONSTANT R4, desc[UR6][R22.64] ;
        /*0d40*/             @!UP0 UMOV UR4, 0x400 ;
        /*0d50*/                   F2FP.SATFINITE.E4M3.F32.PACK_AB_MERGE_C R5, R6, R5, RZ ;
        /*0d60*/                   STG.E.64 desc[UR6][R4.64], R24 ;
.L_x_680:
        /*0d70*/                   EXIT ;

//--------------------- .text.qp_second           --------------------------
	.section	.text.qp_second,"ax",@progbits
qp_second:
        /*0000*/                   LDG.E R4, desc[UR6][R22.64] ;
        /*0010*/                   IADD3 R4, R4, 0x1, RZ ;
        /*0020*/                   LDG.E R5, desc[UR6][R22.64+0x4] ;
        /*10000*/                  LDG.E R6, desc[UR6][R22.64+0x8] ;
        /*10010*/                  SHFL.BFLY PT, R3, R0, 0x10, 0x1f ;
"""


def test_recorded_resources():
    first, second = parse(RESOURCES, SASS).values()
    assert (first.registers, first.stack_bytes, second.registers, second.stack_bytes) == (41, 8, 12, 0)


@pytest.mark.parametrize("target, shared", [("sm_90a", 128), ("sm_120a", 128), ("sm_89", 1152)])
def test_the_systems_own_shared_memory_is_none_of_the_kernels(target, shared):
    """From sm_90 on the compiler counts the 1024 bytes that CUDA reserves, where a kernel has any."""
    first, second = parse(RESOURCES, SASS.replace("sm_90a", target)).values()
    assert (first.static_shared_bytes, second.static_shared_bytes) == (shared, 0)


def test_recorded_instructions():
    code = parse(RESOURCES, SASS)["qp_first"]
    assert dict(code.instructions)["LDG.E.NA.128.CONSTANT"] == 3
    assert code.count("LDG") == 4
    assert code.count("LDG", "128") == 3
    assert code.count("LDG", "U16") == 1
    assert code.count("STG", "64") == 1
    assert code.count("F2FP", "SATFINITE", "E4M3") == 1
    assert code.count("UMOV") == code.count("EXIT") == code.count("BRA") == 1
    assert code.count("STG", "128") == code.count("ST") == 0


def test_spills_are_counted_in_bytes():
    first, second = parse(RESOURCES, SASS).values()
    assert (first.spill_store_bytes, first.spill_load_bytes) == (4 + 8, 4)
    assert (second.spill_store_bytes, second.spill_load_bytes) == (0, 0)


def test_loads_in_flight_are_those_before_the_first_use():
    first, second = parse(RESOURCES, SASS).values()
    assert (first.load_bytes, first.loads_in_flight) == (16, 2)
    assert (second.load_bytes, second.loads_in_flight) == (4, 2)


def in_flight(*lines):
    text = "    .section .text.qp_first\n" + "\n".join(
        line if line[0] == "." else f"        /*{16 * number:04x}*/ {line} ;" for number, line in enumerate(lines)
    )
    resources = " Function qp_first:\n  REG:41 STACK:0 SHARED:0 LOCAL:0\n"
    return parse(resources, text)["qp_first"].loads_in_flight


def test_loads_in_flight_are_those_of_one_path():
    """What stands between two loads, and is jumped over, uses nothing; where one path meets another, both count."""
    assert (
        in_flight(
            "@!P0 BRA `(.L_x_1)",
            "LDG.E.128 R4, desc[UR6][R16.64]",
            "BRA `(.L_x_2)",
            ".L_x_1:",
            "LDG.E.U16 R4, desc[UR6][R16.64]",
            "PRMT R4, R4, 0x5410, R5",
            ".L_x_2:",
            "LDG.E.128 R8, desc[UR6][R16.64+0x800]",
            "@P1 BRA `(.L_x_3)",
            "IADD3 R0, R8, R0, RZ",
            ".L_x_3:",
            "LDG.E.128 R16, desc[UR6][R16.64+0x1000]",
            "IADD3 R0, R4, R0, RZ",
            "@P2 BRA `(.L_x_2)",
            "EXIT",
            "LDG.E.128 R20, desc[UR6][R16.64]",
        )
        == 3
    )


def test_the_other_side_of_a_predicate_uses_nothing():
    wide = ["@P2 LDG.E.128 R4, desc[UR6][R16.64]", "@!P2 LDG.E.U16 R4, desc[UR6][R16.64]"]
    second = "@P2 LDG.E.128 R8, desc[UR6][R16.64+0x800]"
    assert in_flight(*wide, second) == 2
    assert in_flight(wide[0], "ISETP.GE.AND P2, PT, R0, 0x1, PT", wide[1], second) == 1, "it is another predicate now"
    assert in_flight(wide[0], wide[1].replace("!", ""), second) == 1


def test_each_load_has_its_own_count():
    """The first load is waited for before the last two are issued; the second one is not."""
    loads = [f"LDG.E.128 R{4 * i}, desc[UR6][R60.64]" for i in range(4)]
    use = "IADD3 R40, R{}, R40, RZ"
    assert in_flight(*loads[:2], use.format(0), *loads[2:], use.format(4)) == 3


def test_paths_that_part_and_meet_are_followed_once():
    """As many pairs of branches as this would otherwise be two to the power of that many paths."""
    lines = []
    for i in range(48):
        lines += [
            f"@P0 BRA `(.L_x_{2 * i})",
            f"LDG.E.128 R{4 + 4 * i}, desc[UR6][R2.64]",
            f"BRA `(.L_x_{2 * i + 1})",
            f".L_x_{2 * i}:",
            f"LDG.E.U16 R{4 + 4 * i}, desc[UR6][R2.64]",
            f".L_x_{2 * i + 1}:",
        ]
    assert in_flight(*lines, "@P1 BRA `(.L_x_0)", "EXIT") == 48


def test_what_is_told_leaves_out_what_says_little():
    told = parse(RESOURCES, SASS)["qp_first"].told
    assert told == {
        "LDG.128.CONSTANT": 3, "LDG.U16": 1, "STG.64": 1, "LDL.LU": 1, "STL": 1, "STL.64": 1, "F2FP.SATFINITE.E4M3": 1,
    }  # fmt: skip
    assert list(told)[:2] == ["LDG.128.CONSTANT", "LDG.U16"], "loads come first"


def test_code_is_a_record():
    code = parse(RESOURCES, SASS)["qp_first"]
    assert qp.Record.from_dict(code.to_dict()) == code


KERNELS = """
extern "C" __global__ void together(const uint4* x, uint4* y) {
  const uint4 a = x[threadIdx.x], b = x[threadIdx.x + 256];
  y[threadIdx.x] = make_uint4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
extern "C" __global__ void one_by_one(const int* x, int* y) {
  int sum = 0;
  for (int i = threadIdx.x; i >= 0; i = x[i]) sum += i;
  y[threadIdx.x] = sum;
}
extern "C" __global__ void indexed(const int* x, int* y) {
  int kept[64] = {};
  for (int i = 0; i < 64; ++i) kept[x[i] & 63] = i;
  y[threadIdx.x] = kept[y[threadIdx.x] & 63];
}
extern "C" __global__ void shared(int* y) {
  __shared__ int s[96];
  s[threadIdx.x] = y[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[95 - threadIdx.x];
}
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120a"])
def test_cubins(arch):
    codes = disassemble(compile_text(KERNELS, arch))
    assert set(codes) == {"together", "one_by_one", "indexed", "shared"}
    assert (codes["together"].load_bytes, codes["together"].loads_in_flight) == (16, 2)
    assert codes["one_by_one"].loads_in_flight == 1
    assert codes["indexed"].stack_bytes >= 256
    assert codes["indexed"].spill_store_bytes >= 256, "the array is cleared"
    assert codes["indexed"].spill_load_bytes >= 4
    assert codes["together"].stack_bytes == codes["together"].spill_load_bytes == 0
    assert {name: code.static_shared_bytes for name, code in codes.items() if code.static_shared_bytes} == {
        "shared": 384
    }
    assert codes["shared"].count("BAR") == 1


def test_a_missing_tool_is_an_error_that_says_what_to_install(monkeypatch):
    cubin = compile_text(KERNELS, "sm_90a")
    monkeypatch.setattr(disassembly, "_tool", lambda name: None)
    with pytest.raises(qp.CompilerNotFound, match="cuobjdump is not installed") as caught:
        disassemble(cubin)
    assert "quantplan[inspect]" in caught.value.hint
    assert caught.value.op == "disassemble"
