"""One suite for both kinds of host: what the other kind does, this kind does, with the same words.

The other host is an agent behind pipes here: its ssh has tests of its own.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest

from ckpt import registry
from ckpt.errors import CkptError, ImageError, NotFoundError, RefusedError
from ckpt.image import StreamReader
from ckpt.model.finding import Severity, blocking
from ckpt.remote.host import DumpWanted, Host, LocalHost, RestoreWanted, SshHost
from ckpt.remote.protocol import Channel
from tests.criu.groups import Group, Starter, wait_for


@contextmanager
def agent() -> Iterator[SshHost]:
    """Another host that happens to be this one."""
    code = "from ckpt.cli.main import main; main()"
    argv = [sys.executable, "-c", code, "agent"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        channel = Channel(process.stdout.fileno(), process.stdin.fileno(), "B")
        channel.greet()
        yield SshHost(channel)
        process.stdin.close()
        assert process.wait(20) == 0


@contextmanager
def local() -> Iterator[LocalHost]:
    """This host."""
    yield LocalHost()


@pytest.fixture(params=[local, agent], ids=["local", "ssh"])
def host(request: pytest.FixtureRequest, directories: object) -> Iterator[Host]:
    with request.param() as made:
        yield made


@pytest.fixture
def group(start: Starter) -> Group:
    return start.stream_server("--family", "v4")


def dumped(host: Host, group: Group, wanted: DumpWanted | None = None) -> bytes:
    """The image of a group, by ``host``."""
    out = io.BytesIO()
    report = host.dump(group.target, lambda: nullcontext(out), wanted or DumpWanted())
    assert (report.name, report.size) == (group.target, len(out.getvalue()))
    return out.getvalue()


def error_of(act: Callable[[], object]) -> CkptError:
    with pytest.raises(CkptError) as caught:
        act()
    return caught.value


def test_ps_tells_what_the_registry_has(host: Host, group: Group) -> None:
    (found,) = host.ps()
    assert (found.entry, found.state) == (registry.get(str(group.target)), "running")


def test_clean_of_a_clean_host_finds_nothing(host: Host) -> None:
    assert host.clean() == ()


def test_check_host_has_findings(host: Host) -> None:
    assert {one.severity for one in host.check(None)} <= set(Severity)
    assert blocking(host.check(None)) == ()


def test_check_group_by_name_and_by_pid_are_alike(host: Host, group: Group) -> None:
    assert host.check(group.target) == host.check(group.pid)


def test_check_unknown_group_is_not_found(host: Host) -> None:
    error = error_of(lambda: host.check("nobody"))
    assert (type(error), error.code, error.brief) == (NotFoundError, "group-unknown", "no group is named nobody")


def test_dump_and_restore_by_streams_keep_the_connection(host: Host, group: Group) -> None:
    with group.stream() as stream:
        stream.progress()
        image = dumped(host, group)
        assert registry.find(str(group.target)) is None
        report = host.restore(io.BytesIO(image), "the image", RestoreWanted())
        assert report.connections == 1
        stream.progress()


def test_dump_leave_running_lets_the_group_run(host: Host, group: Group) -> None:
    with group.stream() as stream:
        image = dumped(host, group, DumpWanted(leave_running=True, codec="none"))
        stream.progress()
    assert StreamReader(io.BytesIO(image)).header.codec == "none"


def test_dump_into_a_stream_that_fails_lets_the_group_run_on(group: Group) -> None:
    class Full(io.BytesIO):
        def write(self, data: object, /) -> int:
            raise OSError(28, "No space left on device")

    with group.stream() as stream:
        stream.progress()
        error = error_of(lambda: LocalHost().dump(group.target, lambda: nullcontext(Full()), DumpWanted()))
        assert error.code == "storage-full"
        stream.progress()


def test_dump_unknown_group_is_not_found(host: Host) -> None:
    error = error_of(lambda: host.dump("nobody", lambda: nullcontext(io.BytesIO()), DumpWanted()))
    assert (type(error), error.code) == (NotFoundError, "group-unknown")


def test_restore_dry_run_touches_nothing(host: Host, group: Group) -> None:
    image = dumped(host, group)
    report = host.restore(io.BytesIO(image), "the image", RestoreWanted(dry_run=True))
    assert report.dry_run
    assert report.findings
    assert blocking(report.findings) == ()
    assert host.ps() == ()
    host.restore(io.BytesIO(image), "the image", RestoreWanted())


def test_restore_refused_says_why(host: Host, group: Group) -> None:
    image = dumped(host, group, DumpWanted(leave_running=True))
    error = error_of(lambda: host.restore(io.BytesIO(image), "the image", RestoreWanted()))
    assert (type(error), error.code) == (RefusedError, "group-name-taken")


@pytest.mark.parametrize("cut", [100, -100])
def test_restore_from_a_stream_that_is_cut_off_leaves_nothing(host: Host, group: Group, cut: int) -> None:
    image = dumped(host, group)
    error = error_of(lambda: host.restore(io.BytesIO(image[:cut]), "the image", RestoreWanted()))
    assert (type(error), error.code) == (ImageError, "image-truncated")
    assert host.ps() == ()
    assert host.clean() == ()


def test_restore_keep_stores_the_image_there(host: Host, group: Group) -> None:
    kept = group.images / "kept.ckpt"
    image = dumped(host, group)
    host.restore(io.BytesIO(image), "the image", RestoreWanted(keep=kept))
    assert kept.read_bytes() == image
    wait_for(lambda: [one.state for one in host.ps()] == ["running"], "it runs")
