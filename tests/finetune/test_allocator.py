"""What a process does with memory that it has freed, seen from the system's own counts."""

import json
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")

BLOCK, TIMES = 128 * 2**20, 20
# In a process of its own, since what is chosen holds for as long as a process lives.
PROGRAM = f"""
import json, resource, sys
from qa_hpo.finetune.allocator import give_back_freed_memory, keep_freed_memory

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
before, at_first = resident(), faults()
for _ in range({TIMES}):
    b'x' * {BLOCK}
counted, held = faults() - at_first, resident() - before
give_back_freed_memory()
print(json.dumps(dict(kept=kept, faults=counted, held=held, after=resident() - before)))
"""


def freed(mode: str, **environment: str) -> dict[str, int]:
    usual = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    usual.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        env=usual | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def test_freed_memory_is_used_again_and_given_back_when_told() -> None:
    kept, usual = freed("keep"), freed("leave")
    assert kept["kept"] is True
    # A page is met once, and not once for each block that lies on it.
    assert kept["faults"] < 2 * usual["faults"] / TIMES
    assert kept["held"] > 0.9 * BLOCK
    assert usual["held"] < 0.1 * BLOCK
    assert kept["after"] < 0.1 * BLOCK


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}],
)
def test_what_the_environment_says_stays(environment: dict[str, str]) -> None:
    found = freed("keep", **environment)
    assert found["kept"] is False
    assert found["held"] < 0.1 * BLOCK
