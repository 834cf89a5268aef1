"""Two workers share the suite (`make test`): which tests stay together, what comes first, and what is shown meanwhile.

A piece of work shares an environment, trained models or a package manager's lock, so it stays with one worker. The long
pieces come first: so both workers end at about the same time, and no model is trained by two of them at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

OPEN = Path(__file__).resolve().parent.parent / "notebooks"
PIECES = {".ipynb": "notebooks", "test_colab.py": "colab", "test_browser.py": "pages", "test_book.py": "pages"}
LONG = ("colab", "notebooks", "pages", "tests/test_nbgrader.py")
WORTH_A_LINE = 1


def piece_of_work(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    return next((piece for end, piece in PIECES.items() if path.endswith(end)), path)


def place(nodeid: str) -> int:
    piece = piece_of_work(nodeid)
    return LONG.index(piece) if piece in LONG else len(LONG)


@pytest.hookimpl(optionalhook=True)  # it is xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class Pieces(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return piece_of_work(nodeid)

    return Pieces(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: place(item.nodeid))


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
