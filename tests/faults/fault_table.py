"""``docs/reliability.md`` from the rows that the tests of this folder carry: ``python tests/faults/fault_table.py``."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "reliability.md"
HEAD = """\
# What happens when something goes wrong

Each row is a fault, what you see, what is kept, and the test that makes it happen. The table is generated from these
tests: `python tests/faults/fault_table.py` writes it again.

What does not stand in it. A file that you keep alone, of weights, a checkpoint or an ONNX tower, carries no digest:
damage that leaves its form intact is not noticed; in a trained model's folder and in a bundle it is. A crafted index
file can crash Annoy: take a stranger's bundle with an exact or a Faiss index. Locks are those of the file system, and
some network file systems have none. Digests find damage, not a stranger who wrote others: take bundles from people you
trust.

What a bundle says of people. It holds no ratings and no histories, but the ids of all users, their columns and a vector
of weights for each. `export_bundle(..., users=False)` leaves these out; counts, item vectors and the tables of a second
stage are sums over all users, and a value of a column, such as a postal area, may be that of a single person.
"""
TITLES = {
    "kill": "Interrupted at any moment", "kill_runs": "A run of the notebooks, interrupted",
    "damage": "Damaged files", "two_at_once": "Several at once", "load": "Under load",
    "hostile": "Odd tables and files of strangers", "network": "The network",
}  # fmt: skip


class Rows:
    """A plugin that notes the row of every collected test."""

    def __init__(self):
        self.found: dict[str, dict[tuple[str, ...], str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if row := item.get_closest_marker("fault"):
                rows = self.found.setdefault(item.path.stem.removeprefix("test_"), {})
                rows.setdefault(row.args, f"{item.path.name} `{item.originalname}`")


def page() -> str:
    rows = Rows()
    with redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-m", "", str(HERE)], plugins=[rows])
    parts = [HEAD]
    for name, title in TITLES.items():
        parts.append(f"\n## {title}\n\n| fault | you see | kept | test |\n|---|---|---|---|\n")
        parts += [f"| {' | '.join((*row, test))} |\n" for row, test in rows.found[name].items()]
    return "".join(parts)


if __name__ == "__main__":
    written = page()
    if sys.argv[1:] == ["--check"]:
        sys.exit(PAGE.read_text(encoding="utf-8") != written)
    PAGE.write_text(written, encoding="utf-8")
