"""A PostgreSQL cluster for a test, and just enough of its protocol to hold a session open.

PostgreSQL refuses to run as root, and CRIU can only dump the processes of another user where it has
CAP_SYS_RESOURCE. Where that is missing the server runs as root all the same, and is told otherwise by the preloaded
uid_wrapper: what is to be seen, several processes with shared memory and their sessions, is the same.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conftest import require

USER = "postgres"
PORT = 5432
CAP_SYS_RESOURCE = 24

WRAPPER = "libuid_wrapper.so"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A data directory, and how a server is started on it."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A fresh cluster, whose owner is the user postgres."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    require(programs is not None, "PostgreSQL is not installed")
    assert programs is not None
    user = pwd.getpwnam(USER)
    # Not below pytest's own directory, which other users cannot enter.
    place = Path(tempfile.mkdtemp(prefix="ckpt-postgres-"))
    try:
        place.chmod(0o755)
        data = place / "data"
        data.mkdir(mode=0o700)
        os.chown(data, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={user.pw_gid}", "--init-groups"]
        made = subprocess.run(
            [*as_user, programs / "initdb", "-D", data, "--auth=trust", "--no-sync", "--no-instructions"],
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert made.returncode == 0, made.stderr
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all trust\n")
        server = [str(programs / "postgres"), "-D", str(data), "-p", str(PORT)]
        for setting in ("listen_addresses=*", "unix_socket_directories=", "fsync=off", "shared_buffers=16MB"):
            server += ["-c", setting]
        if has_sys_resource():
            yield Cluster([*as_user, *server])
        else:
            yield Cluster(server, disguise(user.pw_uid))
    finally:
        shutil.rmtree(place)


def has_sys_resource() -> bool:
    """Whether this process has the capability."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> CAP_SYS_RESOURCE & 1)


def disguise(uid: int) -> dict[str, str]:
    """The environment in which a program of root takes itself for one of ``uid``."""
    require(any(Path("/usr/lib").glob(f"*/{WRAPPER}")), f"neither CAP_SYS_RESOURCE nor {WRAPPER}")
    number = str(uid)
    ids = {"UID_WRAPPER_INITIAL_RUID": number, "UID_WRAPPER_INITIAL_EUID": number}
    return {"LD_PRELOAD": WRAPPER, "UID_WRAPPER": "1", **ids}


class Session:
    """A session, by version 3 of the frontend/backend protocol: a simple query, and its rows as text."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._send(b"", struct.pack(">I", 3 << 16) + f"user\0{USER}\0database\0postgres\0\0".encode())
        self._until_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def query(self, text: str) -> list[tuple[str, ...]]:
        """The rows of ``text``'s last statement that has some."""
        self._send(b"Q", text.encode() + b"\0")
        return self._until_ready()

    def _send(self, kind: bytes, body: bytes) -> None:
        self._socket.sendall(kind + struct.pack(">I", len(body) + 4) + body)

    def _until_ready(self) -> list[tuple[str, ...]]:
        rows = []
        while True:
            kind = self._receive(1)
            body = self._receive(struct.unpack(">I", self._receive(4))[0] - 4)
            if kind == b"E":
                raise RuntimeError(body.decode(errors="replace"))
            if kind == b"D":
                rows.append(_row(body))
            if kind == b"Z":
                return rows

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the server ended the session")
            data += more
        return data


def _row(body: bytes) -> tuple[str, ...]:
    values, offset = [], 2
    for _ in range(struct.unpack_from(">H", body)[0]):
        size = struct.unpack_from(">i", body, offset)[0]
        values.append(body[offset + 4 : offset + 4 + max(size, 0)].decode())
        offset += 4 + max(size, 0)
    return tuple(values)
