"""Contexts that come back elsewhere, late or not at all: other addresses and links, limits, failures, what is left."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ckpt import context, context_restore, held, registry
from ckpt.errors import CkptError, RefusedError, RestoreError
from ckpt.kernel import cgroup2, context_books, netns, outside
from ckpt.kernel import context as kernel
from ckpt.kernel.lock import find
from ckpt.mapping import parse_mapping
from ckpt.model.context import Limits
from ckpt.model.process import Isolation
from ckpt.restore import ANNOUNCE_AFTER
from ckpt.stop import stop_group
from tests.criu.capture import capturing
from tests.criu.context_groups import PORT, ROUNDS, Agent, agent, connected
from tests.criu.groups import Starter, python, wait_for
from tests.criu.segment import Addresses, run
from tests.criu.test_servers import REDIS
from tests.criu.test_servers import Counter as RedisCounter
from tests.net import context_lab

V4, TCP, UDP = "AF_INET", "SOCK_STREAM", "SOCK_DGRAM"


def host_has(*addresses: str) -> list[bool]:
    known = {one.address.partition("/")[0] for one in outside.addresses()}
    return [address in known for address in addresses]


def locks() -> tuple[str, ...]:
    own = netns.open_own()
    try:
        return find(own)
    finally:
        os.close(own)


@pytest.fixture
def pair(start: Starter) -> Addresses:
    return start.segment.addresses()


@pytest.fixture
def one(start: Starter, stack: ExitStack, pair: Addresses) -> Agent:
    """A group in a context of one pair of addresses."""
    return agent(start, stack, pair)


def test_dump_takes_the_context_and_its_addresses_away(one: Agent, pair: Addresses) -> None:
    name = str(one.group.target)
    with capturing() as capture:
        one.connection.sendall(b"1+")
        one.group.dump()
        assert host_has(*(pair.v4, pair.v6)) == [False, False]
        assert context.names() == ()
        assert registry.find(name) is None
        one.connection.sendall(b"")
        report = one.group.restore()
        assert host_has(pair.v4, pair.v6) == [True, True]
    assert capture.betrayals(pair.v4, pair.v6) == []
    entry = registry.get(name)
    assert report.connections == 1
    assert (entry.isolation, entry.context, len(entry.given)) == ("ipset", name, 2)
    assert entry.addresses == (f"{pair.v4}/24", f"{pair.v6}/64")
    assert set(cgroup2.pids(Path(context.cgroup_of(entry) or ""))) >= {entry.pid}
    assert locks() == ()
    assert held.held() == ()


def test_addresses_that_are_put_on_a_link_are_announced_five_times(
    start: Starter, stack: ExitStack, one: Agent, pair: Addresses
) -> None:
    one.group.dump()
    with ExitStack() as listening:
        with netns.entered(start.segment.client):
            capture = listening.enter_context(capturing())
        one.group.restore()
        # Nobody waits for the later ones.
        time.sleep(ANNOUNCE_AFTER[-1] + 1)
    told = Counter(address for _, address in capture.announced)
    assert [told[pair.v4], told[pair.v6]] == [1 + len(ANNOUNCE_AFTER)] * 2


def test_dump_leaves_addresses_that_were_the_hosts(start: Starter, stack: ExitStack) -> None:
    host = start.segment.host
    one = agent(start, stack, host)
    one.group.round_trip()
    assert host_has(host.v4, host.v6) == [True, True]
    assert registry.get(str(one.group.target)).given == ()
    assert one.do("1 + 1") == 2


def test_leave_running_leaves_all_as_it_was(one: Agent, pair: Addresses) -> None:
    entry = registry.get(str(one.group.target))
    claims = context_books.claims()
    one.group.dump(leave_running=True)
    assert one.do("1 + 1") == 2
    assert (context_books.claims(), registry.get(entry.name), locks()) == (claims, entry, ())
    assert host_has(pair.v4, pair.v6) == [True, True]


def test_redis_ten_round_trips(start: Starter, stack: ExitStack, unique: object, pair: Addresses) -> None:
    group = start(REDIS, isolation=Isolation.IPSET, addresses=pair)
    group.wait_for_log("Ready to accept connections")
    counters = [
        stack.enter_context(RedisCounter(start.segment.connect(address, 6379), f"key{secrets.token_hex(4)}"))
        for address in (pair.v4, pair.v6)
    ]
    with capturing() as capture:
        for _ in range(10):
            group.round_trip()
            for counter in counters:
                counter.progress()
    assert capture.betrayals(pair.v4, pair.v6) == []


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def test_map_address_moves_the_set_and_what_is_within(
    start: Starter, stack: ExitStack, one: Agent, pair: Addresses
) -> None:
    one.make("own", V4, TCP, "bind(('127.0.0.1', 87))", "listen()")
    one.make("client", V4, TCP, "connect(('127.0.0.1', 87))")
    one.do("served = own.accept()[0]")
    one.make("self_", V4, TCP, f"bind(('{pair.v4}', 188))", "listen()")
    one.make("caller", V4, TCP, f"connect(('{pair.v4}', 188))")
    one.do("called = self_.accept()[0]")
    one.make("udp", V4, UDP, f"bind(('{pair.v4}', 89))")
    here, there = pair, start.segment.addresses()
    for number in range(ROUNDS):
        one.group.dump()
        mapping = parse_mapping([f"{here.v4}={there.v4}", f"{here.v6}={there.v6}"])
        with pytest.raises(RefusedError, match="their address is mapped"):
            one.group.restore(mapping=mapping)
        one.group.restore(mapping=mapping, tcp_close=True)
        assert host_has(here.v4, there.v4, there.v6) == [False, True, True]
        one.connection = connected(start.segment, stack, there.v4)
        one.do(f"client.sendall(b'still {number}')")
        assert one.do("served.recv(99).decode()") == f"still {number}"
        one.do(f"caller.sendall(b'there {number}')")
        assert one.do("called.recv(99).decode()") == f"there {number}"
        assert one.do("[x.getsockname()[0] for x in (self_, udp, called)]") == [there.v4] * 3
        with start.segment.socket(there.v4, socket.SOCK_DGRAM) as client:
            client.sendto(str(number).encode(), (there.v4, 89))
            assert one.do("udp.recv(99).decode()") == str(number)
        here, there = there, here
    one.group.round_trip()
    assert one.do("1 + 1") == 2


def test_map_link_puts_the_addresses_there(start: Starter, one: Agent, pair: Addresses, stack: ExitStack) -> None:
    bridge = f"br{secrets.token_hex(4)}"
    run("ip", "link", "add", bridge, "type", "bridge")
    stack.callback(subprocess.run, ["ip", "link", "delete", bridge], capture_output=True)
    run("ip", "link", "set", bridge, "up")
    one.group.dump()
    one.group.restore(mapping=parse_mapping(links=[f"{start.segment.bridge}={bridge}"]))
    found = {address.ifname for address in outside.addresses() if address.address.startswith(f"{pair.v4}/")}
    assert found == {bridge}
    # As its own clients: the segment is elsewhere now.
    one.group.dump()
    one.group.restore(mapping=parse_mapping(links=[f"{bridge}={start.segment.bridge}"]))
    assert one.do("1 + 1") == 2


def test_restore_where_somebody_has_the_address_is_refused(start: Starter, one: Agent, pair: Addresses) -> None:
    one.group.dump()
    start.segment.in_client("ip", "addr", "add", f"{pair.v4}/24", "dev", "eth0")
    with pytest.raises(RefusedError, match=pair.v4):
        one.group.restore()
    assert context.names() == ()
    start.segment.in_client("ip", "addr", "del", f"{pair.v4}/24", "dev", "eth0")
    one.group.restore()
    assert one.do("1 + 1") == 2


def test_restore_where_a_port_is_taken_is_refused(start: Starter, stack: ExitStack) -> None:
    host = start.segment.host
    one = agent(start, stack, host)
    one.group.dump()
    with socket.create_server((host.v4, PORT)), pytest.raises(RefusedError, match=str(PORT)):
        one.group.restore()
    assert context.names() == ()
    one.group.restore()
    assert one.do("1 + 1") == 2


# -- what cannot be dumped ---------------------------------------------------------------------------------------------


def test_dump_of_a_context_with_several_roots_is_refused(one: Agent) -> None:
    entry = registry.get(str(one.group.target))
    command = f"echo 0 >{context.cgroup_of(entry)}/cgroup.procs; exec sleep 1000"
    other = subprocess.Popen(["sh", "-c", command])
    try:
        while other.pid not in cgroup2.pids(Path(context.cgroup_of(entry) or "")):
            pass
        with pytest.raises(RefusedError, match=f"PID {other.pid}"):
            one.group.dump()
    finally:
        other.kill()
        other.wait()
    one.group.round_trip()
    assert one.do("1 + 1") == 2


# -- limits ------------------------------------------------------------------------------------------------------------

FORKS = """
def forks():
    made = []
    try:
        while len(made) < 50:
            pid = os.fork()
            if not pid:
                import time; time.sleep(30); os._exit(0)
            made.append(pid)
    except OSError:
        pass
    for pid in made:
        os.kill(pid, 9); os.waitpid(pid, 0)
    return len(made)
"""


def test_limits_are_kept(start: Starter, stack: ExitStack, pair: Addresses) -> None:
    limits = Limits(tasks=6, nice=12, data=600 << 20, memlock=1 << 16)
    one = agent(start, stack, pair, limits=limits)
    one.do(FORKS)
    state = (
        "[os.nice(0), resource.getrlimit(resource.RLIMIT_DATA), resource.getrlimit(resource.RLIMIT_MEMLOCK), caps()]"
    )
    one.do("import resource")
    one.do("def caps(): return [l for l in open('/proc/thread-self/status') if l.startswith('Cap')]")
    before = one.do(state), one.do("forks()")
    assert before[1] == 5
    for _ in range(ROUNDS):
        one.group.round_trip()
        assert (one.do(state), one.do("forks()")) == before


# -- root -------------------------------------------------------------------------------------------------------------


def leaves(one: Agent) -> bool:
    """Whether the agent, which is root, can move a child of its out of its context."""
    one.do(f"procs = {str(cgroup2.root() / 'cgroup.procs')!r}")
    one.do("import os, pathlib")
    one.do("def child():\n try:\n  pathlib.Path(procs).write_text('0')\n except OSError:\n  os._exit(1)\n os._exit(0)")
    one.do("def leaves():\n pid = os.fork()\n return child() if pid == 0 else os.waitpid(pid, 0)[1] == 0")
    return bool(one.do("leaves()"))


def test_restored_root_stays_where_cgroup_namespaces_are_boundaries(start: Starter, stack: ExitStack) -> None:
    with context_lab.boundaries(on=True):
        one = agent(start, stack, root_may_leave=False)
        assert not leaves(one)
        one.group.round_trip()
        assert not leaves(one)


def test_restore_where_root_could_leave_is_refused_unless_it_might(start: Starter, stack: ExitStack) -> None:
    with context_lab.boundaries(on=True):
        one = agent(start, stack, root_may_leave=False)
        one.group.dump()
    with context_lab.boundaries(on=False):
        with pytest.raises(RefusedError) as caught:
            one.group.restore()
        assert (caught.value.code, context.names()) == ("context-delegation", ())
        assert "mount -o remount,nsdelegate" in str(caught.value.hint)
    with context_lab.boundaries(on=True):
        one.group.restore()
        assert not leaves(one)


def test_group_that_root_may_leave_is_restored_where_it_can(start: Starter, stack: ExitStack) -> None:
    with context_lab.boundaries(on=False):
        one = agent(start, stack)
        for _ in range(2):
            one.group.dump()
            findings = one.group.restore().findings
            assert [str(item.severity) for item in findings if item.code == "context-delegation"] == ["warn"]
        assert leaves(one)


# -- failures ----------------------------------------------------------------------------------------------------------


def refuse(*_: object) -> None:
    raise RestoreError("it was broken for the test", code="broken")


BROKEN = {
    "outside": (context_restore.ConfinedHome, "wrapper", property(lambda _: ("env",))),
    "unbooked": (context_restore, "_unbooked", lambda *_: iter(["it was broken for the test"])),
    "programs": (kernel, "missing_programs", lambda _: ("cgroup/bind4",)),
    "address": (context, "give_address", refuse),
    "limits": (context_restore, "settle", refuse),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_failed_restore_leaves_nothing_and_can_be_repeated(
    one: Agent, pair: Addresses, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    one.group.dump()
    with capturing() as capture:
        with monkeypatch.context() as patch:
            patch.setattr(*BROKEN[broken])
            with pytest.raises(CkptError):
                one.group.restore()
        assert (context.names(), host_has(pair.v4, pair.v6), len(locks())) == ((), [False, False], 1)
        assert not context.has_floor()
        one.group.restore()
        assert one.do("1 + 1") == 2
    assert capture.betrayals(pair.v4, pair.v6) == []


def test_ports_of_a_set_and_the_kernels_own_choices_come_back(
    start: Starter, stack: ExitStack, pair: Addresses
) -> None:
    """One address with two ports of TCP, another with all: what was chosen from the ephemeral ports is of no range."""
    second = start.segment.addresses()
    addresses = (f"{pair.v4}/24:{PORT}-{PORT + 1}/tcp", f"{second.v4}/24")
    one = agent(start, stack, pair, addresses=addresses)
    peer = stack.enter_context(start.segment.listen("10.77.0.2", 90))
    one.make("client", V4, TCP, f"bind(('{pair.v4}', 0))", "connect(('10.77.0.2', 90))")
    accepted = stack.enter_context(peer.accept()[0])
    one.make("any", V4, UDP, "bind(('', 0))")
    one.make("named", V4, UDP, f"bind(('{pair.v4}', 0))")
    before = one.names("client", "any"), one.do("named.getsockname()")
    for _ in range(ROUNDS):
        one.group.round_trip()
        assert (one.names("client", "any"), one.do("named.getsockname()")) == before
        accepted.sendall(b"down")
        assert one.do("client.recv(9).decode()") == "down"
        one.do("client.sendall(b'up')")
        assert accepted.recv(9) == b"up"
        one.make("probe", V4, TCP)
        assert one.do(f"probe.bind(('{pair.v4}', 80))") == "EADDRNOTAVAIL"
        one.do("probe.bind(('', 80))")
        assert one.do("probe.getsockname()") == ["0.0.0.0", 80]
        one.do("probe.close()")


def test_restore_where_another_context_has_the_port_is_refused(
    start: Starter, stack: ExitStack, pair: Addresses
) -> None:
    """It shares the second address, of which no socket is bound to that port: only the books have it."""
    second = start.segment.addresses()
    one = agent(start, stack, pair, addresses=(f"{pair.v4}/24", f"{second.v4}/24"))
    one.group.dump()
    settings: dict[str, Any] = {"addresses": (f"{second.v4}/24", f"{pair.v4}/24")}
    other = start(python("context_agent.py", PORT), isolation=Isolation.IPSET, **settings)
    other.wait_for_log("ready")
    with pytest.raises(RefusedError, match=f"the context {other.target} has this port"):
        one.group.restore()
    stop_group(str(other.target), timeout=0)
    one.group.restore()
    assert one.do("1 + 1") == 2


def test_restore_where_the_kernel_chooses_other_ports_is_refused(
    start: Starter, stack: ExitStack, pair: Addresses
) -> None:
    one = agent(start, stack, pair, addresses=(f"{pair.v4}/24:{PORT}/tcp",))
    one.make("client", V4, UDP, "connect(('10.77.0.2', 9))")
    port = one.do("client.getsockname()[1]")
    one.group.dump()
    place = Path("/proc/sys/net/ipv4/ip_local_port_range")
    before = place.read_text()
    place.write_text("20000 20100")
    try:
        with pytest.raises(RefusedError, match=f":{port}: the set does not name this port"):
            one.group.restore()
    finally:
        place.write_text(before)
    one.group.restore()
    assert one.do("client.getsockname()[1]") == port


def test_restore_of_an_earlier_image_takes_the_lock_of_the_later_one_away(one: Agent, pair: Addresses) -> None:
    """Either image brings the group back, and nothing may silence it then."""
    one.group.dump(leave_running=True)
    first = one.group.image
    one.connection.close()
    open_ones = ["ss", "-Htn", "state", "established", "state", "close-wait", "sport", "=", f":{PORT}"]
    wait_for(lambda: not run(*open_ones), "the agent has closed it as well")
    one.group.dump()
    assert locks() != ()
    one.group.image = first
    one.group.restore(tcp_close=True)
    assert (locks(), held.held()) == ((), ())
    with connected(one.group.segment, ExitStack(), pair.v4) as connection:
        assert Agent(one.group, connection).do("1 + 1") == 2


def test_inspect_shows_the_set_of_an_image(start: Starter, one: Agent, pair: Addresses) -> None:
    one.group.dump(leave_running=True)
    ckpt = [sys.executable, "-c", "from ckpt.cli.main import main; main()"]
    said = run(*ckpt, "inspect", str(one.group.image))
    shown = next(line for line in said.splitlines() if line.startswith("set "))
    bridge = start.segment.bridge
    assert shown.split(maxsplit=1)[1] == f"{pair.v4}/24 on {bridge} by ckpt, {pair.v6}/64 on {bridge} by ckpt"
