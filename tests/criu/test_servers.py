"""Real servers: redis, nginx and PostgreSQL, with clients that are in the middle of something."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from ckpt.errors import NotFoundError
from ckpt.kernel.proc import read_tree
from ckpt.run import MINIMAL_ENVIRONMENT
from ckpt.stop import stop_group
from tests.conftest import require
from tests.criu import postgres
from tests.criu.capture import capturing
from tests.criu.groups import Group, Starter, wait_for
from tests.criu.stream import retransmits

REDIS = ["redis-server", "--port", "6379", "--save", "", "--bind", "* -::*", "--protected-mode", "no"]

REPLY_MAXIMUM = 64


class Counter:
    """Sends INCR to a redis on one connection, one after the other, and checks each answer, until it is closed."""

    def __init__(self, connection: socket.socket, key: str) -> None:
        self.count = 0
        self._socket = connection
        self._key = key
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=key)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if error is not None:
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        assert error or self._failure is None, f"after {self.count} answers: {self._failure!r}"

    def progress(self) -> None:
        """Wait for more answers."""
        wanted = self.count + 50
        wait_for(lambda: self.count >= wanted or self._failure, f"{self._key} counts on from {self.count}")
        assert self._failure is None, f"after {self.count} answers: {self._failure!r}"

    def _work(self) -> None:
        try:
            while not self._stop.wait(0.002):
                self._socket.sendall(f"INCR {self._key}\r\n".encode())
                answer = self._socket.recv(REPLY_MAXIMUM)
                if answer != b":%d\r\n" % (self.count + 1):
                    raise ValueError(f"the answer is {answer!r}")
                self.count += 1
        except BaseException as error:
            self._failure = error


class Repeated:
    """Does something again and again in a thread, until it fails."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.count = 0
        self._work = work
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._repeat, name="repeated")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def progress(self, count: int) -> None:
        """Wait until it was done so many more times."""
        wanted = self.count + count
        wait_for(lambda: self.count >= wanted or self._failure, f"it is done {count} more times")
        assert self._failure is None, f"after {self.count} times: {self._failure!r}"

    def _repeat(self) -> None:
        try:
            while not self._stop.wait(0.003):
                self._work()
                self.count += 1
        except BaseException as error:
            self._failure = error


def knock_through(group: Group, clients: list[Repeated]) -> None:
    """Three round trips while clients come and go."""
    for _ in range(3):
        for client in clients:
            client.progress(20)
        group.round_trip()
    for client in clients:
        client.progress(20)


@pytest.fixture
def redis(start: Starter) -> Group:
    """A redis that answers."""
    require(shutil.which("redis-server") is not None, "redis-server is not installed")
    group = start(REDIS)
    group.wait_for_log("Ready to accept connections")
    return group


def test_redis_ten_round_trips_count_without_a_gap(redis: Group, stack: ExitStack) -> None:
    v4, v6, connect = redis.addresses.v4, redis.addresses.v6, redis.segment.connect
    counters = [
        stack.enter_context(Counter(connect(v4, 6379), "client-v4")),
        stack.enter_context(Counter(connect(v6, 6379), "client-v6")),
        stack.enter_context(Counter(connect(v4, 6379, from_host=True), "host-v4")),
    ]
    with capturing() as capture:
        for number in range(10):
            for counter in counters:
                counter.progress()
            report = redis.round_trip()
            assert (report.connections, report.pid) == (3, redis.pid), f"round trip {number}"
        for counter in counters:
            counter.progress()
    assert capture.betrayals(v4, v6) == []


def test_redis_away_while_keepalive_and_commands_go_unanswered(redis: Group) -> None:
    """Clients of every temper while the group is away: one asks, one is idle with keepalive, one knocks."""
    address = redis.addresses.v4
    idle = redis.segment.connect(address, 6379)
    idle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 60)):
        idle.setsockopt(socket.IPPROTO_TCP, option, value)
    asking = redis.segment.connect(address, 6379)
    with idle, asking, capturing() as capture:
        redis.dump()
        asking.sendall(b"INCR k\r\n")
        wait_for(lambda: retransmits(asking) >= 3, "the question is sent again")
        wait_for(lambda: keepalive_probes(idle) >= 1, "a keepalive probe goes unanswered")
        knocking = redis.segment.socket(address, socket.SOCK_STREAM)
        knocking.setblocking(False)
        knocking.connect_ex((address, 6379))
        redis.restore()
        assert asking.recv(REPLY_MAXIMUM) == b":1\r\n"
        idle.sendall(b"INCR k\r\n")
        assert idle.recv(REPLY_MAXIMUM) == b":2\r\n"
        knocking.settimeout(60)
        wait_for(lambda: knocking.connect_ex((address, 6379)) in (0, 106), "the late connection is there")
        knocking.sendall(b"INCR k\r\n")
        assert knocking.recv(REPLY_MAXIMUM) == b":3\r\n"
        assert capture.betrayals(address) == []
    knocking.close()


def test_redis_new_connections_all_the_time_none_is_refused(redis: Group, stack: ExitStack) -> None:
    """Connections are made, used and closed while the group is dumped and restored: each is answered in the end."""

    def ping() -> None:
        with redis.segment.socket(redis.addresses.v4, socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            connection.connect((redis.addresses.v4, 6379))
            connection.sendall(b"PING\r\n")
            assert connection.recv(REPLY_MAXIMUM) == b"+PONG\r\n"

    knock_through(redis, [stack.enter_context(Repeated(ping)) for _ in range(3)])


def keepalive_probes(connection: socket.socket) -> int:
    """How many probes are unanswered: tcpi_probes of struct tcp_info."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 4)[3]


# -- nginx ---------------------------------------------------------------------------------------------------------

NGINX = """
daemon off; user root; worker_processes 2; pid {place}/pid; error_log stderr;
events {{ }}
http {{
    access_log off; client_body_temp_path {place}/a; proxy_temp_path {place}/b; fastcgi_temp_path {place}/c;
    uwsgi_temp_path {place}/d; scgi_temp_path {place}/e;
    server {{ listen 80; listen [::]:80; root {place}/www; sendfile {sendfile}; }}
}}
"""
DOWNLOAD = 24 << 20


def pattern(offset: int, length: int) -> bytes:
    """The bytes of the file: no two blocks of it are alike."""
    first, skipped = divmod(offset, 8)
    count = (skipped + length + 7) // 8
    return b"".join(number.to_bytes(8, "big") for number in range(first, first + count))[skipped : skipped + length]


def test_nginx_short_downloads_all_the_time_each_is_complete(start: Starter, tmp_path: Path, stack: ExitStack) -> None:
    """The server closes each connection, so that in any moment there are some whose end is on its way."""
    group = start_nginx(start, tmp_path, sendfile="on", size=1_000_000)
    wanted = pattern(0, 1_000_000)

    def download() -> None:
        with group.segment.socket(group.addresses.v4, socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            connection.connect((group.addresses.v4, 80))
            connection.sendall(b"GET /file HTTP/1.0\r\n\r\n")
            answer = b""
            while data := connection.recv(1 << 16):
                answer += data
            assert answer.partition(b"\r\n\r\n")[2] == wanted, f"{len(answer)} bytes"

    group.segment.connect(group.addresses.v4, 80).close()
    knock_through(group, [stack.enter_context(Repeated(download)) for _ in range(3)])


def start_nginx(start: Starter, place: Path, *, sendfile: str, size: int) -> Group:
    """An nginx with a file of that size."""
    require(shutil.which("nginx") is not None, "nginx is not installed")
    (place / "www").mkdir()
    (place / "www/file").write_bytes(pattern(0, size))
    (place / "nginx.conf").write_text(NGINX.format(place=place, sendfile=sendfile))
    return start(["nginx", "-c", str(place / "nginx.conf")])


@pytest.mark.parametrize("sendfile", ["on", "off"])
def test_nginx_download_in_progress_is_complete(start: Starter, tmp_path: Path, sendfile: str) -> None:
    group = start_nginx(start, tmp_path, sendfile=sendfile, size=DOWNLOAD)
    downloads = [
        group.segment.connect(group.addresses.v4, 80, buffer=65536),
        group.segment.connect(group.addresses.v6, 80, from_host=True),
    ]
    for connection in downloads:
        connection.sendall(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1, socket.MSG_PEEK) == b"H"
    slow = Download(downloads[0])
    with slow:
        slow.until(DOWNLOAD // 8)
        assert len(read_tree(group.pid)) == 4
        group.round_trip()
        assert slow.received < DOWNLOAD
        slow.hurry.set()
        slow.until(DOWNLOAD)
        # One that nobody read from, and which was full all the while.
        with Download(downloads[1]) as other:
            other.hurry.set()
            other.until(DOWNLOAD)
            # The connection is kept alive for another request, by whichever worker.
            other.again(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
            other.until(DOWNLOAD)


class Download:
    """Reads the answer to a request for the file, slowly before ``hurry`` is set, and compares every byte."""

    def __init__(self, connection: socket.socket) -> None:
        self.received = 0
        self.hurry = threading.Event()
        self._socket = connection
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="download")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hurry.set()
        if error is not None:
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def until(self, size: int) -> None:
        """Wait until so much has come."""
        wait_for(lambda: self.received >= size or self._failure, f"{size} bytes are downloaded")
        assert self._failure is None, f"after {self.received} bytes: {self._failure!r}"

    def again(self, request: bytes) -> None:
        """Another request on the same connection."""
        self._thread.join()
        self.received = 0
        self._socket.sendall(request)
        self._thread = threading.Thread(target=self._work, name="download")
        self._thread.start()

    def _work(self) -> None:
        try:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += self._socket.recv(1)
            assert b"200 OK" in head, head
            while self.received < DOWNLOAD:
                data = self._socket.recv(1 << 16)
                assert data == pattern(self.received, len(data)) != b"", f"not what should come at {self.received}"
                self.received += len(data)
                if not self.hurry.is_set():
                    self.hurry.wait(0.02)
        except BaseException as error:
            self._failure = error


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


@pytest.fixture
def postgresql(start: Starter) -> Iterator[Group]:
    """A server with a fresh cluster that answers."""
    with postgres.cluster() as made:
        group = start(made.command, environment={**MINIMAL_ENVIRONMENT, **made.environment})
        group.wait_for_log("ready to accept connections")
        yield group
        # Before its files go.
        with suppress(NotFoundError):
            stop_group(str(group.target), timeout=0)


def test_postgresql_transaction_and_temporary_table_survive(postgresql: Group) -> None:
    address = postgresql.addresses.v4

    def session(*, from_host: bool = False) -> postgres.Session:
        return postgres.Session(postgresql.segment.connect(address, postgres.PORT, from_host=from_host))

    with session() as one, session(from_host=True) as other:
        other.query("CREATE TABLE kept (n integer); INSERT INTO kept SELECT generate_series(1, 1000)")
        one.query("CREATE TEMPORARY TABLE own (n integer); INSERT INTO own VALUES (42)")
        one.query(
            "BEGIN; UPDATE kept SET n = n + 1; DECLARE c CURSOR FOR SELECT n FROM kept ORDER BY n; FETCH 10 FROM c"
        )
        pid = one.query("SELECT pg_backend_pid()")
        report = postgresql.round_trip()
        assert report.connections == 2
        assert report.processes >= 7
        assert other.query("SELECT sum(n) FROM kept") == [("500500",)]
        assert one.query("FETCH 1 FROM c") == [("12",)]
        assert one.query("COMMIT; SELECT pg_backend_pid()") == pid
        assert one.query("SELECT n FROM own") == [("42",)]
        assert other.query("SELECT sum(n) FROM kept") == [("501500",)]
        with session() as third:
            assert third.query("CHECKPOINT; SELECT count(*) FROM kept") == [("1000",)]
