"""Servers that know nothing of contexts: two of each, unchanged and on the same ports, each on its own addresses."""

from __future__ import annotations

import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from ckpt import context, registry, run
from ckpt.kernel import enter, netns
from ckpt.model.groupspec import GroupSpec
from ckpt.model.process import Isolation
from ckpt.registry import GroupEntry
from ckpt.stop import stop_group
from tests.conftest import random_name, require
from tests.criu import postgres
from tests.net import context_lab
from tests.net.context_lab import Lab, ip

SECONDS = 20.0
ONE: tuple[str, ...] = (ip("first", 4), ip("second", 4), ip("first", 6), ip("second", 6))
OTHER: tuple[str, ...] = (ip("other", 4), ip("other", 6))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("CKPT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CKPT_LOG_DIR", str(tmp_path / "log"))
    with context_lab.lab(tmp_path / "state") as found:
        yield found
        for entry in registry.entries():
            stop_group(entry.name, timeout=0)
        assert not context.has_floor()


def start(command: Sequence[str], addresses: Sequence[str], variables: Mapping[str, str] | None = None) -> GroupEntry:
    spec = GroupSpec(
        name=random_name("g"),
        command=command,
        environment=run.MINIMAL_ENVIRONMENT | dict(variables or {}),
        isolation=Isolation.IPSET,
        addresses=addresses,
        root_may_leave=True,
    )
    return run.start_group(spec)


def answer(ask: Callable[[], bytes], entry: GroupEntry) -> bytes:
    """What a server answers, when it is ready to."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return ask()
        except ConnectionRefusedError:
            assert entry.alive and entry.log is not None
            assert time.monotonic() < deadline, Path(entry.log).read_text()
        time.sleep(0.02)


def spoken(address: str, port: int, request: bytes, end: bytes = b"") -> bytes:
    """What is answered to ``request``, up to ``end`` or to the end of the connection."""
    with socket.create_connection((address, port), timeout=SECONDS) as connection:
        connection.sendall(request)
        found = b""
        while not end or not found.endswith(end):
            more = connection.recv(65536)
            if not more:
                break
            found += more
        return found


def from_everywhere(place: Lab) -> Iterator[int]:
    """The namespaces that clients are in: that of the host, unconfined, and the peer's."""
    yield from (place.host, place.peer)


def own_loopback(entry: GroupEntry, address: str, port: int, request: bytes, expected: bytes) -> None:
    """A client inside the context finds the server at the loopback address, and there is nobody else."""
    code = (
        "import socket\n"
        f"connection = socket.create_connection(({address!r}, {port}), timeout={SECONDS})\n"
        f"connection.sendall({request!r})\n"
        f"raise SystemExit({expected!r} not in connection.recv(65536))\n"
    )
    assert enter.run_inside(entry.pid, [sys.executable, "-c", code], cgroup=context.cgroup_of(entry)) == 0


NGINX = """
daemon off; user root; worker_processes 2; pid {place}/pid; error_log stderr;
events {{ }}
http {{
    access_log off; client_body_temp_path {place}/a; proxy_temp_path {place}/b; fastcgi_temp_path {place}/c;
    uwsgi_temp_path {place}/d; scgi_temp_path {place}/e;
    server {{ listen 80{options}; listen [::]:80{options}; location / {{ return 200 "{name}\\n"; }} }}
}}
"""
GET = b"GET / HTTP/1.0\r\n\r\n"


@pytest.mark.parametrize("options", ["", " reuseport"])
def test_two_nginx_serve_any_each_on_its_own_addresses(place: Lab, tmp_path: Path, options: str) -> None:
    require(shutil.which("nginx") is not None, "nginx is not installed")
    entries = []
    for name, addresses in (("one", ONE), ("other", OTHER)):
        (tmp_path / name).mkdir()
        configuration = tmp_path / name / "nginx.conf"
        configuration.write_text(NGINX.format(place=tmp_path / name, options=options, name=name))
        entries.append(start(["nginx", "-c", str(configuration)], addresses))
    for name, addresses, entry in zip(("one", "other"), (ONE, OTHER), entries, strict=True):
        for space in from_everywhere(place):
            with netns.entered(space):
                for address in addresses:
                    found = answer(lambda address=address: spoken(address, 80, GET), entry)  # type: ignore[misc]
                    assert found.endswith(f"\r\n\r\n{name}\n".encode())
        for address in ("127.0.0.1", "::1"):
            own_loopback(entry, address, 80, GET, f"{name}\n".encode())


def test_two_redis_keep_their_own_data(place: Lab, tmp_path: Path) -> None:
    require(shutil.which("redis-server") is not None, "redis is not installed")
    command = ["redis-server", "--port", "6379", "--save", "", "--bind", "* -::*", "--protected-mode", "no"]
    entries = [start(command, addresses) for addresses in (ONE, OTHER)]
    for name, addresses, entry in zip(("one", "other"), (ONE, OTHER), entries, strict=True):
        request = f"SET name {name}\r\n".encode()
        assert answer(lambda: spoken(addresses[0], 6379, request, b"\r\n"), entry) == b"+OK\r\n"  # noqa: B023
    for word, addresses, entry in zip((b"one", b"other"), (ONE, OTHER), entries, strict=True):
        for space in from_everywhere(place):
            with netns.entered(space):
                for address in addresses:
                    found = spoken(address, 6379, b"GET name\r\n", word + b"\r\n")
                    assert found == b"$%d\r\n%s\r\n" % (len(word), word)
        for address in ("127.0.0.1", "::1"):
            own_loopback(entry, address, 6379, b"GET name\r\n", word)


def test_two_postgresql_have_sessions_by_network_and_loopback(place: Lab) -> None:
    with postgres.cluster() as one, postgres.cluster() as other:
        entries = [
            start(cluster.command, addresses, cluster.environment)
            for cluster, addresses in ((one, ONE), (other, OTHER))
        ]
        for number, (addresses, entry) in enumerate(zip((ONE, OTHER), entries, strict=True)):
            for address in addresses:
                query = f"create table if not exists t(n int); insert into t values ({number}); select n from t"
                rows = answer(lambda: rows_of(place, address, query), entry)  # noqa: B023
                assert set(eval(rows)) == {(str(number),)}
            own_loopback(entry, "127.0.0.1", postgres.PORT, struct.pack(">II", 8, 80877103), b"N")
        for entry in entries:
            stop_group(entry.name)


def rows_of(place: Lab, address: str, query: str) -> bytes:
    with netns.entered(place.peer):
        connection = socket.create_connection((address, postgres.PORT), timeout=SECONDS)
    try:
        with postgres.Session(connection) as session:
            return repr(session.query(query)).encode()
    except RuntimeError as error:  # it is still starting up
        raise ConnectionRefusedError(str(error)) from error


def dns_query(name: str) -> bytes:
    """A question for the IPv4 address of ``name``."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)


def asked(address: str, query: bytes) -> bytes:
    """What a name server says, by a datagram from the very address that was asked."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(SECONDS)
        client.connect((address, 53))
        client.send(query)
        return client.recv(512)


def test_two_dnsmasq_answer_from_where_they_were_asked(place: Lab) -> None:
    require(shutil.which("dnsmasq") is not None, "dnsmasq is not installed")
    entries = []
    for number, addresses in enumerate((ONE, OTHER), 1):
        command = [
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-hosts",
            "--no-resolv",
            "--user=root",
        ]
        command += ["--pid-file=", f"--address=/name.test/192.0.2.{number}"]
        entries.append(start(command, addresses))
    query = dns_query("name.test")
    for number, (addresses, entry) in enumerate(zip((ONE, OTHER), entries, strict=True), 1):
        expected = bytes([192, 0, 2, number])
        for space in from_everywhere(place):
            with netns.entered(space):
                for address in addresses:
                    found = answer(lambda address=address: asked(address, query), entry)  # type: ignore[misc]
                    assert found.endswith(expected), (address, found)
                    by_stream = spoken(address, 53, struct.pack(">H", len(query)) + query, expected)
                    assert by_stream.endswith(expected)
