"""The documents are complete and true: examples run, links lead somewhere, and they speak of quantplan only."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "kernels_cu").rglob("*.md")]
)
HEADINGS = ["When to use", "Elements", "Shape limits", "Workspace", "Precision guarantee", "Source"]

# Sites that a reader is meant to be sent to. Package registries are none of them: `pip install` needs no address.
HOSTS = {"keepachangelog.com", "semver.org", "arxiv.org", "github.com", "docs.nvidia.com", "onnx.ai"}
FORBIDDEN = [
    (r"/(work|root|home|tmp|usr)/", "a path of one machine"),
    (r"(?i)\b(this|the|a|last) session\b", "the making of the project"),
    (r"(?i)\bissues? #?\d", "a work item"),
    (r"(?i)\bmilestones?\b", "the making of the project"),
    (r"(?i)\bTODO\b|\bFIXME\b|\bXXX\b", "an unfinished place"),
]


def text_of(page):
    return page.read_text(encoding="utf-8")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def anchors(text):
    """Return the anchors that a Markdown page's headings get."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    prose = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        if not other.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(text_of(other)):
            yield f"{target}: no such heading"


def foreign_hosts(text):
    for host in re.findall(r"\b((?:[a-z0-9-]+\.)+(?:com|org|net|io|dev|ai))\b", text.lower()):
        if host.removeprefix("www.") not in HOSTS:
            yield host


def forbidden_words(text):
    for pattern, why in FORBIDDEN:
        for match in re.finditer(pattern, text):
            yield f"{match.group()!r}: {why}"


def examples(page):
    return "\n".join(re.findall(r"```python\n(.*?)```", text_of(page), flags=re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_name_no_foreign_host(page):
    assert list(foreign_hosts(text_of(page))) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_speak_of_quantplan_only(page):
    assert list(forbidden_words(text_of(page))) == []


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=name_of)
def test_examples_run(page, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + examples(page)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_readme_shows_the_quickstart_as_it_is():
    quickstart = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(quickstart), clean=False)
    code = quickstart.replace(f'"""{docstring}"""', "").strip()
    assert code == examples(ROOT / "README.md").strip()
    assert len(code.splitlines()) <= 25


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "ops").glob("*.md")), ids=name_of)
def test_op_pages_have_the_same_headings(page):
    assert re.findall(r"^## (.+)$", text_of(page), re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "ops").glob("*.md")), ids=name_of)
def test_plan_docstrings_have_the_headings_of_their_page(page):
    tree = ast.parse((ROOT / "quantplan" / "ops" / f"{page.stem}.py").read_text(encoding="utf-8"))
    plans = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Plan")]
    assert len(plans) == 1
    docstring = ast.get_docstring(plans[0])
    assert re.findall(rf"^({'|'.join(HEADINGS)})$", docstring, re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "ops").glob("*.md")), ids=name_of)
def test_op_pages_name_every_operand(page):
    tree = ast.parse((ROOT / "quantplan" / "ops" / f"{page.stem}.py").read_text(encoding="utf-8"))
    (args,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Args"))
    operands = [node.target.id for node in args.body if isinstance(node, ast.AnnAssign)]
    assert operands
    assert [name for name in operands if f"| `{name}` |" not in text_of(page)] == []


def test_every_decision_is_listed():
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", text_of(folder / "README.md")))
    assert listed == {page.name for page in folder.glob("[0-9]*.md")}


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")), ids=name_of)
def test_decisions_tell_context_decision_and_consequences(page):
    assert re.findall(r"^\*\*(\w+)\.\*\*", text_of(page), re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_the_checks_see_what_they_look_for(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](#a-b) [y](#gone) [z](missing.md)\nsee packages.example.org and docs.nvidia.com\n")
    assert list(broken_links(page)) == ["#gone: no such heading", "missing.md: no such file"]
    assert list(foreign_hosts(text_of(page))) == ["packages.example.org"]
    for text in ("cd /" + "home/me", "in the last " + "session", "see issue 12", "TODO: write", "milestone two"):
        assert list(forbidden_words(text)), text
