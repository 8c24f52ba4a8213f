"""The house kept small: files, functions, tests' layout, and words that must not come in."""

import ast
import re
import subprocess
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[2]
ROOMS = ("sdk", "kvfs", "kernel", "gpuworker", "programs", "perf")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60

# Longer than they should be; a number here may only fall, and a name only go.
LONG_FUNCTIONS: dict[str, int] = {}


def sources(*rooms: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=HOUSE, capture_output=True, text=True)
    files = [HOUSE / f for f in listed.stdout.splitlines() if f.endswith(".py")]
    return [f for f in files if f.relative_to(HOUSE).parts[0] in rooms and f.exists()]


def test_files_are_short():
    long = {
        str(f.relative_to(HOUSE)): n for f in sources(*ROOMS) if (n := len(f.read_text().splitlines())) > FILE_LINES_MAX
    }
    assert long == {}


def test_functions_are_short():
    long = {}
    for file in sources(*ROOMS):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n = (node.end_lineno or 0) - node.lineno + 1
                name = f"{file.relative_to(HOUSE)}:{node.name}"
                if n > LONG_FUNCTIONS.get(name, FUNCTION_LINES_MAX):
                    long[name] = n
    assert long == {}


def test_every_module_says_what_it_is():
    silent = [str(f.relative_to(HOUSE)) for f in sources(*ROOMS) if not ast.get_docstring(ast.parse(f.read_text()))]
    assert silent == []


def test_tests_have_no_packages():
    """An `__init__.py` in tests/kernel would make `import kernel` mean the tests."""
    assert [str(f) for f in (HOUSE / "tests").rglob("__init__.py")] == []


def test_left_over_markers():
    marker = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [str(f) for f in sources(*ROOMS, "tests") if f != Path(__file__) and marker.search(f.read_text())]
    assert found == []


def test_paths_in_the_documents_exist():
    """ARCHITECTURE.md and README.md name files; each must be there."""
    missing = []
    for document in ("ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"):
        for path in re.findall(
            r"`((?:sdk|kvfs|kernel|gpuworker|programs|perf|docs|tests)/[\w/.]+)`", (HOUSE / document).read_text()
        ):
            if not (HOUSE / path).exists():
                missing.append(f"{document}: {path}")
    assert missing == []
