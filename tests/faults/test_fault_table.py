"""The page of faults is what the tests say."""

from __future__ import annotations

import subprocess
import sys

from fault_table import HERE


def test_the_page_is_that_of_the_tests():
    done = subprocess.run([sys.executable, HERE / "fault_table.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run python tests/faults/fault_table.py\n{done.stderr}"
