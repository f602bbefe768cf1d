"""Datagram sockets connected to a name outside of the group, as every user of syslog(3) has one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.criu.groups import Starter, python


@pytest.fixture
def log_socket(tmp_path: Path) -> Iterator[socket.socket]:
    """Where a syslog daemon would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "log"))
        listener.settimeout(20)
        yield listener


def numbers(listener: socket.socket, count: int) -> list[int]:
    return [int(listener.recv(64)) for _ in range(count)]


@pytest.mark.parametrize("leave_running", [False, True])
def test_dump_of_a_syslog_user_loses_no_line(start: Starter, log_socket: socket.socket, leave_running: bool) -> None:
    group = start(python("syslog_sender.py", log_socket.getsockname()))
    lines = numbers(log_socket, 3)
    report = group.dump(leave_running=leave_running)
    assert [warning for warning in report.warnings if log_socket.getsockname() in warning]
    if not leave_running:
        group.restore()
    lines += numbers(log_socket, 50)
    assert lines == list(range(len(lines)))


def test_restore_without_the_log_daemon_still_restores(
    start: Starter, log_socket: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(log_socket.getsockname())
    group = start(python("syslog_sender.py", path))
    numbers(log_socket, 3)
    group.dump()
    path.unlink()
    group.restore()
    assert f"nobody listens at {path}" in caplog.text
