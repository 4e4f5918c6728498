"""Say whether the tests on real data can run."""

import os
from pathlib import Path

root = Path(__file__).parents[1]
folder = Path(os.environ.get("QA_HPO_REAL_DATA") or root.parent / "shared" / "data")
if folder.is_dir():
    print(f"Real data: {folder}; the tests marked 'real' run.")
else:
    print(f"No real data in {folder} (set QA_HPO_REAL_DATA): tests marked 'real' are skipped.")
