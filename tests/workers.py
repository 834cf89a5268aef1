"""Two workers share the suite (`make test`): which tests stay together, what comes first, and what is shown meanwhile.

A piece of work shares an environment, a package manager's lock or models that are still to be trained, so it stays with
one worker. The long pieces come first: so both workers end at about the same time. The solved notebooks come after the
open ones, which have trained their models, and are dealt out one by one. What the open ones have recorded is looked at
when they have ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

OPEN = Path(__file__).resolve().parent.parent / "notebooks"
RECORDED = "tests/test_ranges.py"
PIECES = {
    "tests/test_colab.py": "colab",
    "notebooks/": "open notebooks",
    RECORDED: "open notebooks",
    "tests/test_browser.py": "pages",
    "tests/test_book.py": "pages",
    "tests/test_nbgrader.py": "nbgrader",
    "artifacts/solved/": None,  # every file for itself, like what is not named here
}
WORTH_A_LINE = 10  # seconds


def place(nodeid: str) -> int:
    return next((number for number, start in enumerate(PIECES) if nodeid.startswith(start)), len(PIECES))


def piece_of_work(nodeid: str) -> str:
    named = [*PIECES.values(), None][place(nodeid)]
    return named or nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)  # it is xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class Pieces(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return piece_of_work(nodeid)

    return Pieces(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    shared = "PYTEST_XDIST_WORKER" in os.environ
    items.sort(key=lambda item: place(item.nodeid) if shared else item.nodeid.startswith(RECORDED))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """The notebooks as a learner finds them: an exercise that is not solved yet is no failure."""
    with pytest.MonkeyPatch.context() as patch:
        if item.path.parent == OPEN:
            patch.delenv("DSSM_STRICT", raising=False)
        return (yield)


class LongTests:
    """Names each long test when it has ended; the dots alone would say nothing for minutes."""

    def __init__(self, config: pytest.Config):
        self.plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.duration >= WORTH_A_LINE:
            terminal = self.plugins.get_plugin("terminalreporter")
            terminal.write(f"\n{report.duration:5.0f} s  {report.nodeid} ({report.when}: {report.outcome})\n")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        config.pluginmanager.register(LongTests(config))
