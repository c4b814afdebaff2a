"""The arrows between modules point one way, and every file has the companions that a reader expects.

Each rule is a function from a source tree to its violations. It runs on the real tree, and on small ones that break it,
so that a rule which has stopped seeing anything is noticed.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 420

# What each part of the package may import from the others. A part is a module or folder directly under quantplan/.
VOCABULARY = {"errors", "elements", "record", "types"}
CONTRACT = VOCABULARY | {"reference", "formats"}
TENSORS = VOCABULARY | {"tensor", "tensor_maps", "dlpack"}
HOST = TENSORS | {"cache", "cubins", "disassembly", "occupancy", "devices", "kernels", "emulator"}
PLANS = HOST | {"operands", "workspace", "variant", "programs", "plan", "family"}
OPS = PLANS | CONTRACT | {"ops", "chips"}
USERS = OPS | {"_scaled", "scaled", "recipes", "queries", "warmup", "doctor", "verify"}
MAY_IMPORT = {
    "errors": set(),
    "elements": VOCABULARY,
    "record": VOCABULARY,
    "types": VOCABULARY,
    "cache": VOCABULARY,
    # Know neither CUDA nor plans.
    "reference": CONTRACT,
    "formats": CONTRACT,
    "recipes": CONTRACT,
    "tensor": TENSORS,
    "tensor_maps": TENSORS,
    "dlpack": TENSORS,
    "devices": HOST,
    "kernels": HOST,
    "cubins": HOST,
    "disassembly": VOCABULARY,
    "occupancy": VOCABULARY,
    "chips": set(),
    "emulator": HOST,
    "operands": PLANS,
    "workspace": PLANS,
    "variant": PLANS - {"programs", "plan", "family"},
    "programs": PLANS - {"plan", "family"},
    "plan": PLANS - {"family"},
    "family": PLANS,
    "ops": OPS,
    "_scaled": OPS | {"recipes"},
    "scaled": OPS | {"recipes", "_scaled"},
    "straight_through": OPS | {"recipes", "_scaled", "scaled"},
    "queries": OPS | {"scaled", "footprint"},
    "footprint": OPS,
    "warmup": OPS,
    "doctor": HOST | {"__init__"},
    "verify": USERS | {"__init__"},
    "bench": USERS | {"__init__", "footprint"},
    "_printing": VOCABULARY,
    "cli": USERS | {"__init__", "_printing", "bench"},
    "__init__": USERS | {"footprint"},
    "__main__": {"cli"},
}
CUDA_MODULES = {"cupy", "cupyx", "cuda", "pycuda", "numba", "torch", "jax", "triton"}
MAY_IMPORT_CUDA = {"devices", "kernels", "cubins", "disassembly", "doctor", "bench", "straight_through"}


def part_of(path, package):
    relative = path.relative_to(package)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path, root):
    """Every module that a file imports, anywhere in it and however it is spelt, as absolute dotted names."""
    module = path.relative_to(root).with_suffix("").parts
    package = module[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*base, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def python_files(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def arrows_that_point_back(root):
    package = root / "quantplan"
    for path in python_files(package):
        part = part_of(path, package)
        where = path.relative_to(root).as_posix()
        if part not in MAY_IMPORT:
            yield f"{where}: give quantplan/{part} a place in MAY_IMPORT"
            continue
        for line, name in imported(path, root):
            target = name.split(".")
            if target[0] != "quantplan":
                continue
            # `from quantplan import x` names the part x, or a public name of the facade, which sits above everything.
            to = target[1] if len(target) > 1 else "__init__"
            if to not in MAY_IMPORT:
                to = "__init__"
            if to != part and to not in MAY_IMPORT[part]:
                yield f"{where}:{line}: {part} imports {to} ({name})"


def ops_that_import_ops(root):
    folder = root / "quantplan" / "ops"
    for path in python_files(folder):
        if path.stem == "__init__":
            continue
        for line, name in imported(path, root):
            target = name.split(".")
            if target[:2] == ["quantplan", "ops"] and len(target) > 2 and not target[2].startswith("_"):
                yield f"{path.relative_to(root).as_posix()}:{line}: imports the op {name}"


def cuda_where_it_is_unknown(root):
    package = root / "quantplan"
    for path in python_files(package):
        if part_of(path, package) in MAY_IMPORT_CUDA:
            continue
        for line, name in imported(path, root):
            if name.split(".")[0] in CUDA_MODULES:
                yield f"{path.relative_to(root).as_posix()}:{line}: imports {name}"


def modules_without_a_test(root):
    for path in python_files(root / "quantplan"):
        if path.stem.startswith("_"):
            continue
        mirror = root / "tests" / path.relative_to(root / "quantplan").with_name(f"test_{path.stem}.py")
        if not mirror.is_file():
            yield f"{path.relative_to(root).as_posix()}: no {mirror.relative_to(root).as_posix()}"


def ops_with_missing_files(root):
    for path in python_files(root / "quantplan" / "ops"):
        op = path.stem
        if op.startswith("_"):
            continue
        for companion in (f"quantplan/reference/{op}.py", f"tests/ops/test_{op}.py", f"docs/ops/{op}.md"):
            if not (root / companion).is_file():
                yield f"{op}: no {companion}"
    for page in sorted((root / "docs" / "ops").glob("*.md")):
        if not (root / "quantplan" / "ops" / f"{page.stem}.py").is_file():
            yield f"docs/ops/{page.name}: no op of that name"


def kernels_without_a_host_side(root):
    hosts = [path.read_text(encoding="utf-8") for path in (root / "quantplan" / "ops").glob("_*.py")]
    for path in sorted((root / "kernels_cu").glob("*.cu")):
        if not any(f'"{path.name}"' in text for text in hosts):
            yield f"kernels_cu/{path.name}: no program in quantplan/ops/_*.py"


def inline_asm_outside_ptx(root):
    homes = (
        root / "kernels_cu" / "include" / "qp" / "ptx",
        root / "quantplan" / "emulator" / "runtime",  # for the CPU: it switches between threads
    )
    for folder in ("kernels_cu", "quantplan"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in {".cu", ".cuh", ".h", ".hpp", ".cpp"} or any(map(path.is_relative_to, homes)):
                continue
            for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if re.search(r"\b(__)?asm(__)?\b", text.partition("//")[0]):
                    yield f"{path.relative_to(root).as_posix()}:{number}: {text.strip()}"


def long_modules(root):
    for folder in ("quantplan", "kernels_cu", "examples"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in {".py", ".cu", ".cuh", ".h", ".cpp"}:
                continue
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > MAX_LINES:
                yield f"{path.relative_to(root).as_posix()}: {lines} lines"


RULES = [
    arrows_that_point_back,
    ops_that_import_ops,
    cuda_where_it_is_unknown,
    modules_without_a_test,
    ops_with_missing_files,
    kernels_without_a_host_side,
    inline_asm_outside_ptx,
    long_modules,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule):
    assert list(rule(ROOT)) == []


# Each line breaks one rule: the rule, the file, its text, and what the violation must name.
BREACHES = [
    (arrows_that_point_back, "quantplan/tensor.py", "from quantplan.plan import Plan", "tensor imports plan"),
    (arrows_that_point_back, "quantplan/tensor.py", "from . import plan", "tensor imports plan"),
    (arrows_that_point_back, "quantplan/plan.py", "def f():\n    import quantplan.ops.quantize", "plan imports ops"),
    (arrows_that_point_back, "quantplan/reference/x.py", "from ..tensor import f", "reference imports tensor"),
    (arrows_that_point_back, "quantplan/recipes/x.py", "import quantplan", "recipes imports __init__"),
    (
        arrows_that_point_back,
        "quantplan/formats/x.py",
        "from quantplan import QuantizePlan",
        "formats imports __init__",
    ),
    (arrows_that_point_back, "quantplan/ops/x.py", "import importlib\nimportlib.import_module('quantplan.cli')", "cli"),
    (arrows_that_point_back, "quantplan/misc.py", "", "give quantplan/misc a place"),
    (ops_that_import_ops, "quantplan/ops/x.py", "from quantplan.ops.y import Y", "quantplan.ops.y"),
    (ops_that_import_ops, "quantplan/ops/x.py", "from quantplan.ops import y", "quantplan.ops.y"),
    (ops_that_import_ops, "quantplan/ops/_shared.py", "from .y import Y", "quantplan.ops.y"),
    (cuda_where_it_is_unknown, "quantplan/plan.py", "import cupy as cp", "cupy"),
    (cuda_where_it_is_unknown, "quantplan/reference/x.py", "def f():\n    from cuda.core import Device", "cuda.core"),
    (modules_without_a_test, "quantplan/ops/x.py", "", "tests/ops/test_x.py"),
    (ops_with_missing_files, "quantplan/ops/x.py", "", "docs/ops/x.md"),
    (ops_with_missing_files, "docs/ops/gone.md", "", "no op of that name"),
    (kernels_without_a_host_side, "kernels_cu/x.cu", "", "kernels_cu/x.cu: no program"),
    (inline_asm_outside_ptx, "kernels_cu/x.cu", 'asm volatile("bar.sync 0;");', "kernels_cu/x.cu:1"),
    (inline_asm_outside_ptx, "kernels_cu/include/qp/tile.cuh", '__asm__("");', "tile.cuh:1"),
    (inline_asm_outside_ptx, "quantplan/emulator/include/qp/ptx/x.cuh", 'asm("");', "x.cuh:1"),
    (long_modules, "quantplan/x.py", "\n" * (MAX_LINES + 1), f"{MAX_LINES + 1} lines"),
]


@pytest.mark.parametrize("rule, name, text, named", BREACHES)
def test_the_rule_sees_a_breach(tmp_path, rule, name, text, named):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    violations = list(rule(tmp_path))
    assert any(named in violation for violation in violations), violations


# What looks like a breach and is none.
ALLOWED = [
    (arrows_that_point_back, "quantplan/ops/x.py", "from quantplan.plan import Plan\nfrom quantplan import errors"),
    (arrows_that_point_back, "quantplan/cli.py", "import quantplan as qp\nfrom quantplan import __version__"),
    (ops_that_import_ops, "quantplan/ops/x.py", "from quantplan.ops._shared import y\nfrom . import _shared"),
    (cuda_where_it_is_unknown, "quantplan/devices/cuda.py", "import cupy"),
    (modules_without_a_test, "quantplan/ops/_shared.py", ""),
    (ops_with_missing_files, "quantplan/ops/_shared.py", ""),
    (kernels_without_a_host_side, "kernels_cu/include/qp/x.cuh", ""),
    (inline_asm_outside_ptx, "kernels_cu/include/qp/ptx/barrier.cuh", 'asm volatile("bar.sync 0;");'),
    (inline_asm_outside_ptx, "quantplan/emulator/runtime/switch.h", 'asm("ret");'),
    (inline_asm_outside_ptx, "kernels_cu/x.cu", "// no asm here"),
    (long_modules, "quantplan/x.py", "\n" * MAX_LINES),
]


@pytest.mark.parametrize("rule, name, text", ALLOWED)
def test_the_rule_allows_what_is_allowed(tmp_path, rule, name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert list(rule(tmp_path)) == []
