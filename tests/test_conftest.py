"""conftest.py: a test that lacks an optional part is skipped with what to install; any other error stays one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest


def outcome(error: Exception | None) -> tuple[str, str]:
    """What becomes of a test that failed with this error."""
    item = SimpleNamespace(path=Path("test_x.py"), location=("test_x.py", 6, "test_y"))
    call = SimpleNamespace(excinfo=error and SimpleNamespace(value=error))
    hook = conftest.pytest_runtest_makereport(item, call)
    next(hook)
    with pytest.raises(StopIteration) as done:
        hook.send(SimpleNamespace(outcome="failed", longrepr=("", 0, "as it was")))
    return done.value.value.outcome, done.value.value.longrepr[2]


ABSENT = ModuleNotFoundError("No module named 'no_such_part'", name="no_such_part.inner")


def test_what_is_not_installed_is_a_skip_and_with_strict_a_failure(monkeypatch):
    monkeypatch.delenv("DSSM_STRICT", raising=False)
    assert outcome(ABSENT) == ("skipped", "Skipped: pip install no_such_part")
    said = "this index needs no_such_part: pip install no-such-part"
    assert outcome(ImportError(said, name="no_such_part")) == ("skipped", f"Skipped: {said}")
    monkeypatch.setenv("DSSM_STRICT", "1")
    assert outcome(ABSENT) == ("failed", "as it was")


@pytest.mark.parametrize(
    "error",
    [
        None,
        AssertionError("wrong"),
        ImportError("cannot import name 'x'", name="numpy"),  # which is installed
        ModuleNotFoundError("No module named 'dssm_helpers.x'", name="dssm_helpers.x"),
    ],
)
def test_any_other_error_is_a_failure(monkeypatch, error):
    monkeypatch.delenv("DSSM_STRICT", raising=False)
    assert outcome(error) == ("failed", "as it was")
