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
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 2


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    Whoever opens ``path`` sees the old content or the new, never half of it.

    Raises:
        OSError: the folder cannot be written or the disk is full; the message says which folder and what to do.
        IsADirectoryError: ``path`` is a folder, which a file must not replace.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; move it away, or choose another name")
    with _hidden_beside(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextmanager
def write_folder(path: str | Path, kind: str, fields: Mapping[str, Any]) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends, give it a manifest and put it in the place of ``path``.

    Args:
        kind: what the folder is, for example ``"index"``; :func:`read_manifest` asks for it.
        fields: what the manifest says besides; read when the block ends, so it may be filled inside.

    Raises:
        FileExistsError: ``path`` is a file, or a folder with files that no manifest lists: they would be lost.
        OSError: as :func:`write_atomically`.
    """
    path = Path(path)
    _restore(path)
    if others := _unlisted(path):
        raise FileExistsError(
            f"{path} holds other files ({', '.join(others[:3])}); give the {kind} a folder of its own"
        )
    with _hidden_beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in _read_all(temporary).items()}
        note = json.loads(_json({"format": FORMAT, "kind": kind, "fields": dict(fields), "files": digests}))
        text = json.dumps({**note, "digest": digest(note)}, indent=1, ensure_ascii=False)
        (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
        _exchange(temporary, path)


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
    """Read a folder that :func:`write_folder` wrote; every file and the manifest itself are compared.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing (named).
        ValueError: another kind or format, an unreadable manifest, or an altered file (named).
    """
    path = Path(path)
    for patience in (True, True, True, True, False):
        _restore(path)
        if not path.exists():
            raise FileNotFoundError(f"no {kind} at {path}; make one first, or check the path")
        try:
            return _verified(path, _read_all(path), kind)
        except (FileNotFoundError, ValueError):
            if not patience:
                raise
        time.sleep(0.02)  # a writer may have exchanged the folder between two of its files
    raise AssertionError


def _verified(path: Path, files: dict[str, bytes], kind: str) -> Manifest:
    again = f"make the {kind} again"
    if MANIFEST not in files:
        raise FileNotFoundError(f"no {kind} at {path}: {MANIFEST} is missing; {again}")
    try:
        note = json.loads(files[MANIFEST])
        stated = note.pop("digest", None)
        if note["format"] != FORMAT:
            raise ValueError(f"{path} has format {note['format']!r}, this version reads {FORMAT}; {again}")
        altered = stated != digest(note)
        found, fields, digests = note["kind"], note["fields"], note["files"]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged ({error!r}); {again}") from error
    if altered or found != kind:
        raise ValueError(f"{path} holds {'an altered manifest' if altered else f'a {found}, not a {kind}'}; {again}")
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


def _read_all(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in _names(folder)}


def _unlisted(path: Path) -> list[str]:
    """What would be lost if a folder took the place of ``path``."""
    if not path.is_dir() or path.is_symlink():
        return [path.name] if path.exists() else []
    names = _names(path)
    if MANIFEST not in names:
        return names
    try:
        return sorted(set(names) - {MANIFEST, *json.loads((path / MANIFEST).read_bytes())["files"]})
    except (ValueError, KeyError, TypeError):  # a damaged folder of ours may be replaced
        return []


def _restore(path: Path) -> None:
    """A kill between the two renames of :func:`_exchange` leaves ``path`` absent: bring the old folder back."""
    for old in [] if path.exists() else path.parent.glob(f".{path.name}.*.old"):
        with suppress(OSError):  # another process was quicker
            os.replace(old, path)


def _exchange(temporary: Path, path: Path) -> None:
    """A folder cannot be renamed over a full one: the old steps aside, whole, and goes when the new is in its place."""
    old = temporary.with_suffix(".old")
    for patience in (True, True, True, False):
        with suppress(FileNotFoundError):
            os.replace(path, old)
        try:
            os.replace(temporary, path)
            break
        except OSError as error:
            _restore(path)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not patience:
                raise  # otherwise a reader has restored the old one, or another writer was quicker
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _hidden_beside(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of ``path``, so that a rename stays on one file system; removed at the end."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise
        where = "free some space, or point DSSM_DATA_DIR and DSSM_ARTIFACTS_DIR to folders you can write"
        text = f"cannot write {path.name} ({error.strerror}); {where}"
        raise OSError(error.errno, text, str(path.parent)) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()
