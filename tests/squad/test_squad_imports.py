"""What the rooms of squad/ may cost to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "evaluate", "pandas", "pyarrow")


@pytest.mark.parametrize("module", ["corpus", "windows", "spans", "scoring", "predictions"])
def test_imports_nothing_heavy(module):
    code = f"import sys, qa_hpo.squad.{module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
