"""Memory that was freed is used again without being touched for the first time again."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from asose_jax.runtime import malloc

if {keep} and not malloc.keep_freed_memory():
    print('unsupported')
    raise SystemExit
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**25, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def _faults(keep, root):
    command = [sys.executable, '-c', SCRIPT.format(keep=keep)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, cwd=root)
    return done.stdout.strip()


def test_freed_memory_is_kept(root):
    kept = _faults(True, root)
    if kept == 'unsupported':
        pytest.skip('this C library is not glibc')
    assert int(kept) < 100 < int(_faults(False, root))
