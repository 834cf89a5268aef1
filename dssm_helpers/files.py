"""Files that are either complete or absent, and their digests."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    Whoever opens ``path`` sees the old content or the new, never half of it. Works for a file and for a folder.

    Raises:
        OSError: the folder cannot be written or the disk is full; the message says which folder and what to do.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    old = temporary.with_suffix(".old.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir():  # a folder cannot be renamed over a full one: move the old aside, whole
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise OSError(
                error.errno,
                f"cannot write {path.name} ({error.strerror}); free some space, or point DSSM_DATA_DIR and "
                "DSSM_ARTIFACTS_DIR to folders you can write",
                str(path.parent),
            ) from error
        raise
    finally:
        if old.is_dir() and not path.exists():
            os.replace(old, path)
        for rest in (temporary, old):
            if rest.is_dir():
                shutil.rmtree(rest, ignore_errors=True)
            elif rest.exists():
                rest.unlink()


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\n{sha256(file)}\n".encode())
    return digest.hexdigest()
