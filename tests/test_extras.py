"""What a notebook installs where the course came as a wheel; in a clone, nothing."""

from __future__ import annotations

import importlib.metadata
import subprocess

import pytest

from dssm_helpers.course import extras


@pytest.fixture
def wheel_install(tmp_path, monkeypatch):
    """A working folder that is no clone, as on Colab; pip is asked, but reaches no index."""
    monkeypatch.setattr(extras, "project_root", lambda: tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("DSSM_STRICT", raising=False)


def without(monkeypatch, *names):
    found = extras._installed()
    monkeypatch.setattr(extras, "_installed", lambda: {k: v for k, v in found.items() if k not in names})


def test_missing_names_what_the_extra_lacks_and_nothing_else(monkeypatch):
    assert extras.missing("retrieval", "onnx") == []
    without(monkeypatch, "faiss-cpu", "onnx")
    assert [name.partition(">")[0] for name in extras.missing("retrieval")] == ["faiss-cpu"]
    assert len(extras.missing("retrieval", "onnx")) == 2
    assert extras.missing("drawing") == []


def test_every_package_counts_under_its_normal_name():
    assert extras._name("Faiss_CPU>=1.8") == "faiss-cpu"
    assert {extras._name(found.name) for found in importlib.metadata.distributions()} == set(extras._installed())


def test_in_a_clone_nothing_is_installed(monkeypatch):
    without(monkeypatch, "faiss-cpu")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    extras.needs("retrieval")


def test_a_failed_installation_is_said_and_in_ci_it_fails(wheel_install, monkeypatch, capsys):
    wanted = ["a-package-nobody-has>=1"]
    monkeypatch.setattr(extras, "missing", lambda *_: wanted)
    extras.needs("retrieval")
    said = capsys.readouterr().out
    assert "Installing a-package-nobody-has" in said
    assert "could not install" in said
    monkeypatch.setenv("DSSM_STRICT", "1")
    with pytest.raises(RuntimeError, match="a-package-nobody-has"):
        extras.needs("retrieval")
