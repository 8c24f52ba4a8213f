"""What the import linter cannot see: what a fresh interpreter really loads."""

import subprocess
import sys

import pytest

CODE = "import sys, {module}; print(sorted({{m.split('.')[0] for m in sys.modules}} & {{{names}}}))"


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("kernel.boot", {"torch", "numpy", "gguf", "safetensors", "transformers"}),
        ("gpuworker.wire", {"torch", "numpy"}),
        ("gpuworker.null", {"torch", "numpy"}),
        ("kvfs.fs", {"torch", "numpy", "uvloop"}),
        ("sdk", {"torch", "numpy", "httpx", "typer", "rich", "starlette"}),
    ],
)
def test_what_an_import_does_not_load(module, never):
    code = CODE.format(module=module, names=", ".join(repr(n) for n in sorted(never)))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
