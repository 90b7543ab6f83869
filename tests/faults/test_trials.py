"""A few trials of every kind whose damage is drawn; the large run (``python -m tests.faults``) makes many more.

A test's name holds kind and number: ``python -m tests.faults --seed 0 --kind KIND --number NUMBER`` repeats it.
"""

import os

import pytest
from trials import KINDS, run_trial

SLOW = os.environ.get("BCZOO_SLOW") == "1"
COUNTS = {"recordings": 12, "cache": 10, "checkpoint": 8, "exported": 8, "resumed": 2, "stopped": 2}


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, n) for kind in KINDS for n in range(COUNTS.get(kind, 0) * (1, 20)[SLOW])]
)
def test_trial(kind, number, bench):
    told = run_trial(kind, 0, number, bench)
    assert not told, told
