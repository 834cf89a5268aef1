"""Files and folders that are either complete or absent, and the one manifest of every folder written here.

A folder's ``manifest.json`` says what it is and holds the SHA-256 of every file in it and of itself. Who reads a folder
gets the very bytes that were compared with those digests, so an exchange of the folder meanwhile cannot mix two models.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 2


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to ``path`` when the block ends without an error. Nobody sees half a file."""
    with _hidden_beside(Path(path)) as temporary:
        yield temporary
        temporary.chmod(temporary.parent.stat().st_mode & 0o666)  # safetensors would hide its files from other users
        os.replace(temporary, path)  # a folder in its place is an error


@contextmanager
def write_folder(path: str | Path, kind: str, fields: Mapping[str, Any]) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends, give it a manifest and put it in the place of ``path``.

    ``kind`` is what the folder is, for example ``"index"``. ``fields`` may be filled inside the block. If ``path`` is a
    file, a link, or a folder with files that no manifest lists, they would be lost: that is a ``FileExistsError``.
    """
    with _hidden_beside(Path(path)) as temporary:
        temporary.mkdir()
        yield temporary
        digests = {name: file_digest(temporary / name) for name in _names(temporary)}
        note = json.loads(_json({"format": FORMAT, "kind": kind, "fields": dict(fields), "files": digests}))
        (temporary / MANIFEST).write_text(json.dumps({**note, "digest": digest(note)}, indent=1) + "\n")
        _patiently(lambda: _exchange(temporary, Path(path)))


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """One process at a time is in the block. SQLite locks a file alike on all systems, until the process is gone."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        yield


@dataclass(frozen=True)
class Manifest:
    """A folder at the moment its digests were compared. ``fields``: what it says; ``files``: name → bytes."""

    path: Path
    fields: dict[str, Any]
    files: dict[str, bytes] = field(repr=False)

    def inside(self, name: str, kind: str) -> Manifest:
        """The folder ``name`` in this folder, from the same bytes."""
        prefix = f"{name}/"
        files = {n.removeprefix(prefix): content for n, content in self.files.items() if n.startswith(prefix)}
        return _verified(self.path / name, files, kind)


def read_manifest(path: str | Path, kind: str) -> Manifest:
    """Read what :func:`write_folder` wrote. A FileNotFoundError or ValueError names what is missing or altered."""
    return _patiently(lambda: _verified(Path(path), _read(Path(path)), kind))


def _verified(path: Path, files: dict[str, bytes], kind: str) -> Manifest:
    if MANIFEST not in files:
        raise FileNotFoundError(f"no {kind} at {path} ({MANIFEST} is missing); make one first, or check the path")
    again = f"make the {kind} again"
    try:
        note = json.loads(files[MANIFEST])
        stated, version = note.pop("digest", None), note["format"]
        found, fields, digests = note["kind"], note["fields"], note["files"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged ({error!r}); {again}") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}, this version reads {FORMAT}; {again}")
    if stated != digest(note):
        raise ValueError(f"{path} holds an altered manifest; {again}")
    if found != kind:
        raise ValueError(f"{path} holds a {found}, not a {kind}; {again}")
    for name, wanted in digests.items():
        if name not in files:
            raise FileNotFoundError(f"the {kind} at {path} is incomplete: {name} is missing; {again}")
        if hashlib.sha256(files[name]).hexdigest() != wanted:
            raise ValueError(f"the {kind} at {path} was altered: {name} is not what was written; {again}")
    return Manifest(path, fields, {name: files[name] for name in digests})


def digest(value: Any) -> str:
    """SHA-256 of anything JSON can hold."""
    return hashlib.sha256(_json(value).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, without holding it in memory."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=lambda v: v.item() if hasattr(v, "item") else str(v))


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _unlisted(path: Path, new: Iterable[str]) -> list[str]:
    """Files that would be lost if a folder with the files ``new`` took the place of ``path``."""
    if path.is_symlink() or path.is_file():
        return [path.name]
    try:
        ours = {MANIFEST, *json.loads((path / MANIFEST).read_bytes())["files"]}
    except (FileNotFoundError, KeyError, TypeError):  # nothing says that these files are ours
        ours = set()
    except ValueError:  # a damaged manifest: ours have the names of those that follow them
        ours = set(new)
    return [name for name in _names(path) if name not in ours]


def _exchange(new: Path, path: Path) -> None:
    """A folder cannot be renamed over a full one, so the old one steps aside, whole, until the new is in place."""
    old = path.with_name(f".{path.name}.old")
    if lost := _unlisted(path, _names(new)):
        raise FileExistsError(f"{path} holds other files ({', '.join(lost[:3])}); choose a folder of its own")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)


def _read(path: Path) -> dict[str, bytes]:
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():  # a writer was killed between its two renames, or is at it
        os.replace(old, path)
    # A link could make us read, and remember, a file outside.
    return {name: (path / name).read_bytes() for name in _names(path) if not (path / name).is_symlink()}


def _patiently(attempt: Callable[[], Any]) -> Any:
    """Another process may exchange the folder in the midst of ``attempt``: then it starts anew, a few times."""
    for _ in range(5):
        try:
            return attempt()
        except (OSError, ValueError):
            time.sleep(0.02)
    return attempt()


@contextmanager
def _hidden_beside(path: Path) -> Iterator[Path]:
    """A place for ``path`` in a hidden folder beside it, so that a rename stays on one file system."""
    for left in path.parent.glob(f".{path.name}.????????.tmp"):
        with suppress(FileNotFoundError):  # another writer has just removed its own
            if time.time() - left.stat().st_mtime > 86_400:  # no write takes a day: its process was killed
                shutil.rmtree(left, ignore_errors=True)
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        hidden.mkdir(parents=True)
        yield hidden / path.name
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise
        cure = "free some space, or point DSSM_DATA_DIR and DSSM_ARTIFACTS_DIR to folders you can write"
        text = f"cannot write {path.name} ({error.strerror}); {cure}"
        raise OSError(error.errno, text, str(path.parent)) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
