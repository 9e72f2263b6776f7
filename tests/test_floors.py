"""The project's own rules, run like any test: style, types, floors, and the size of things."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from trio_gateway.clients.schema import SCHEMA_VERSION
from trio_gateway.migrate import head

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "trio_gateway").rglob("*.py"))
BIN = Path(sys.executable).parent

MOST_FUNCTION_LINES = 40
MOST_FILE_LINES = 250

# flake8-async leaves out: httpx2 for httpx (127), a sync function for one without `await` (124:
# Quart's handlers are async), and async generators (900: the body of a response is one, and
# none holds a nursery). The starters named are for `nursery.start`.
STARTERS = (
    "carry,run,follow,keep_sampling,serve,serve_admin,hold_open,keep,_keep_admin,admin,_serve,"
    "_listen,_hear"
)
TOOLS: dict[str, list[str | Path]] = {
    "ruff check": [BIN / "ruff", "check", "."],
    "ruff format": [BIN / "ruff", "format", "--check", "."],
    "mypy": [sys.executable, "-m", "mypy"],
    "imports": [BIN / "lint-imports"],
    "flake8-async": [
        BIN / "flake8-async",
        "--enable=ASYNC1,ASYNC2",
        "--disable=ASYNC124,ASYNC127",
        f"--startable-in-context-manager={STARTERS}",
        *PACKAGE,
    ],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tree_passes(tool):
    """Style, types, import contracts and async hygiene hold for the whole tree."""
    done = subprocess.run(
        [str(word) for word in TOOLS[tool]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _code_lines(path: Path) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = {
        line
        for node in ast.walk(tree)
        if isinstance(node, (ast.stmt, ast.expr)) and hasattr(node, "lineno")
        for line in (node.lineno, node.end_lineno or node.lineno)
    }
    return len(lines)


def _functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node, clean=False)
            spare = len(doc.splitlines()) if doc else 0
            last = node.end_lineno or node.lineno
            yield f"{path.name}:{node.lineno} {node.name}", last - node.lineno + 1 - spare


def test_functions_and_files_stay_small():
    """A function is one thought and a file is one noun: both have a size."""
    long = [name for path in PACKAGE for name, n in _functions(path) if n > MOST_FUNCTION_LINES]
    big = [path.name for path in PACKAGE if _code_lines(path) > MOST_FILE_LINES]
    assert (long, big) == ([], [])


def test_the_schema_version_is_the_last_migrations():
    """Workers compare the database with the very version that the migrations reach."""
    assert head() == SCHEMA_VERSION


def test_package_inits_are_empty():
    """Only the top package says anything; the others are folders."""
    inits = [path for path in PACKAGE if path.name == "__init__.py"]
    assert [p.parent.name for p in inits if p.read_text().strip()] == ["trio_gateway"]
