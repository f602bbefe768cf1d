"""`ckpt run --isolation ipset` and what goes with it: real groups in a host namespace of the test's own."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckpt import clean, context, registry, run
from ckpt.errors import CkptError, ExistsError, NotFoundError, RefusedError, UsageError
from ckpt.kernel import (
    bpf_calls,
    cgroup2,
    context_books,
    context_bounds,
    context_floor,
    context_maps,
    context_places,
    context_steer,
    enter,
    netns,
    outside,
)
from ckpt.kernel import context as kernel
from ckpt.kernel.bpf_object import KINDS
from ckpt.kernel.proc import tree_pids
from ckpt.model.context import MOST_ADDRESSES, Limits
from ckpt.model.groupspec import GroupSpec
from ckpt.model.process import Isolation
from ckpt.registry import GroupEntry
from ckpt.stop import stop_group
from tests.conftest import random_name
from tests.net import context_lab, spaces
from tests.net.context_lab import Agent, Lab, ip

CKPT = (sys.executable, "-c", "from ckpt.cli.main import main; main()")
PATIENCE = 20.0
FIRST, SECOND, OTHER = ip("first", 4), ip("second", 4), ip("other", 4)
FIRST6 = ip("first", 6)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CKPT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CKPT_LOG_DIR", str(tmp_path / "log"))
    return tmp_path / "state"


@pytest.fixture
def place(state: Path) -> Iterator[Lab]:
    """A host without any group; whatever the test leaves is ended, and nothing of contexts may stay."""
    with context_lab.lab(state) as found:
        before = {(one.ifname, one.address) for one in outside.addresses()}
        yield found
        found.end_agents()
        for entry in registry.entries():
            stop_group(entry.name, timeout=0)
        for name in context.names():
            context.discard(name)
        found.stack.close()
        assert not context.has_floor()
        assert {(one.ifname, one.address) for one in outside.addresses()} == before
        assert state / "bpf" not in cgroup2.mount_points("bpf")


def spec(*command: str, **changes: Any) -> GroupSpec:
    plain = GroupSpec(
        name=random_name("g"),
        command=command or ("sleep", "1000"),
        environment=dict(os.environ),
        isolation=Isolation.IPSET,
        addresses=(FIRST,),
        root_may_leave=True,
    )
    return replace(plain, **changes)


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def log_of(entry: GroupEntry) -> str:
    assert entry.log is not None
    return Path(entry.log).read_text()


SERVER = (
    "import socket, sys\n"
    "listener = socket.create_server(('', 80))\n"
    "print('ready', flush=True)\n"
    "while True:\n"
    "    connection, peer = listener.accept()\n"
    "    connection.sendall(NAME)\n"
    "    kept = connection\n"
)


def serving(name: bytes = b"one", **changes: Any) -> GroupEntry:
    entry = run.start_group(spec(*python(SERVER.replace("NAME", repr(name))), **changes))
    eventually(lambda: "ready" in log_of(entry))
    return entry


def says(client: Agent, address: str, port: int = 80) -> str:
    client.do(f"c = socket.create_connection(({address!r}, {port}))")
    return str(client.do("c.recv(100)"))


def test_two_groups_serve_any_on_their_own_addresses(place: Lab) -> None:
    serving(b"one", addresses=(FIRST, SECOND))
    serving(b"other", addresses=(OTHER,))
    for client in (place.at_peer(), place.unconfined()):
        assert [says(client, address) for address in (FIRST, SECOND, OTHER)] == ["one", "one", "other"]


def test_first_process_and_all_below_it_are_in_the_cgroup(place: Lab) -> None:
    entry = run.start_group(spec("sh", "-c", "sleep 1000 & wait"))
    eventually(lambda: len(tree_pids(entry.pid)) == 3)
    assert entry.context == entry.name
    cgroup = context.cgroup_of(entry)
    assert cgroup is not None
    assert set(cgroup2.pids(Path(cgroup))) == set(tree_pids(entry.pid))
    assert (entry.isolation, entry.addresses) == ("ipset", (f"{FIRST}/24",))


def test_exec_runs_in_the_context(place: Lab) -> None:
    entry = run.start_group(spec())
    script = f"import socket; socket.socket().bind(({OTHER!r}, 80))"
    assert enter.run_inside(entry.pid, python(script), cgroup=context.cgroup_of(entry)) == 1
    done = subprocess.run(
        [*CKPT, "exec", entry.name, "--", *python(script)], capture_output=True, text=True, check=False
    )
    assert "Cannot assign requested address" in done.stderr


def test_exec_has_no_more_capabilities_than_the_group(place: Lab) -> None:
    entry = run.start_group(spec())
    done = subprocess.run(
        [*CKPT, "exec", entry.name, "grep", "^Cap[PEB]", "/proc/self/status"],
        capture_output=True,
        text=True,
        check=True,
    )
    values = [int(line.split()[1], 16) for line in done.stdout.splitlines()]
    assert len(values) == 3
    assert not any(value >> bit & 1 for value in values for bit in context_bounds.DROPPED.values())
    with pytest.raises(NotFoundError) as caught:
        context.run_inside(entry, [random_name("nothing")])
    assert caught.value.code == "command-not-executable"


def test_stop_leaves_nothing_of_a_context(place: Lab, state: Path) -> None:
    entry = serving(addresses=(FIRST, FIRST6))
    cgroup = context.cgroup_of(entry)
    report = stop_group(entry.name)
    assert report.signal == "SIGTERM"
    assert cgroup is not None
    assert not Path(cgroup).exists()
    assert context.names() == ()
    assert not context.has_floor()


def test_addresses_that_the_host_lacks_are_put_on_a_link_and_taken_again(place: Lab) -> None:
    missing = ("10.77.0.50/24", "fd77::50/64")
    entry = serving(addresses=missing, link="eth0")
    assert entry.given == tuple(f"eth0 {one}" for one in missing)
    assert says(place.at_peer(), "10.77.0.50") == "one"
    stop_group(entry.name)
    assert not {one.address for one in outside.addresses()} & set(missing)


def refused(error: type[CkptError], code: str, **changes: Any) -> CkptError:
    before = (registry.entries(), [(one.ifname, one.address) for one in outside.addresses()], context.names())
    with pytest.raises(error) as caught:
        run.start_group(spec(**changes))
    assert caught.value.code == code
    after = (registry.entries(), [(one.ifname, one.address) for one in outside.addresses()], context.names())
    assert after == before
    assert registry.operations() == ()
    return caught.value


def test_address_that_the_host_lacks_is_refused_without_a_link(place: Lab) -> None:
    error = refused(NotFoundError, "address-missing", addresses=("10.77.0.50",))
    assert error.hint is not None and "--link" in error.hint


def test_address_that_a_machine_has_is_refused(place: Lab) -> None:
    refused(ExistsError, "address-in-use", addresses=("10.77.0.2/24",), link="eth0")
    refused(NotFoundError, "link-missing", addresses=("10.77.0.50/24",), link=random_name("x"))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"addresses": ()}, "address-needed"),
        ({"addresses": (FIRST, FIRST)}, "address-doubled"),
        ({"addresses": ("127.0.0.1",)}, "address-invalid"),
        ({"addresses": ("10.77.0.11:0",)}, "address-invalid"),
        ({"addresses": ("10.77.0.11:80/sctp",)}, "address-invalid"),
        ({"gateways": ("10.77.0.1",)}, "isolation-network"),
        ({"limits": Limits(nice=40)}, "limit-invalid"),
        ({"isolation": Isolation.NETNS, "addresses": (), "limits": Limits(tasks=4)}, "limits-context"),
    ],
)
def test_spec_that_does_not_fit_together_is_refused(place: Lab, changes: dict[str, Any], code: str) -> None:
    refused(UsageError, code, **changes)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (kernel, "_attach"),
        (bpf_calls, "prog_attach"),
        (bpf_calls, "pin"),
        (context_floor, "cover"),
        (cgroup2, "create"),
        (registry, "add"),
    ],
)
def test_failure_at_any_step_leaves_nothing(
    place: Lab, module: Any, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotFoundError("injected", code="injected")

    with monkeypatch.context() as patched:
        patched.setattr(module, function, fail)
        refused(NotFoundError, "injected", addresses=("10.77.0.50/24", FIRST), link="eth0")
    assert not context.has_floor()


@pytest.mark.parametrize("had_clsact", [False, True])
def test_kernel_without_tcx_steers_by_filters(place: Lab, had_clsact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    attach, query = bpf_calls.prog_attach, bpf_calls.prog_query

    def old_attach(target: int, program: int, attach_type: int, flags: int = 0) -> None:
        if attach_type == KINDS["floor/steer"].attach:
            raise OSError(errno.EINVAL, "Invalid argument")
        attach(target, program, attach_type, flags)

    def old_query(target: int, attach_type: int) -> tuple[int, ...]:
        return () if attach_type == KINDS["floor/steer"].attach else query(target, attach_type)

    monkeypatch.setattr(bpf_calls, "prog_attach", old_attach)
    monkeypatch.setattr(bpf_calls, "prog_query", old_query)
    if had_clsact:
        spaces.shell("tc qdisc add dev eth0 clsact")
    entry = run.start_group(spec(*python(ECHO), addresses=(FIRST, SECOND)))
    eventually(lambda: "ready" in log_of(entry))
    peer = place.at_peer()
    for address in (FIRST, SECOND):
        peer.do(f"c = socket.socket(type=socket.SOCK_DGRAM); c.sendto(b'word', ({address!r}, 7))")
        assert peer.do("c.recv(9)") == "word"
    assert "ckpt_steer" in spaces.shell("tc filter show dev eth0 ingress")
    assert context.report(entry.name).uncovered == ()
    stop_group(entry.name)
    assert spaces.shell("tc filter show dev eth0 ingress") == ""
    assert ("clsact" in spaces.shell("tc qdisc show dev eth0")) is had_clsact


ECHO = (
    "import socket\n"
    "s = socket.socket(type=socket.SOCK_DGRAM)\n"
    "s.bind(('', 7))\n"
    "print('ready', flush=True)\n"
    "while True:\n"
    "    data, peer = s.recvfrom(99)\n"
    "    s.sendto(data, peer)\n"
)


def test_link_that_comes_later_is_seen_to_when_contexts_are_listed(place: Lab) -> None:
    entry = run.start_group(spec(*python(ECHO), addresses=(FIRST, SECOND)))
    eventually(lambda: "ready" in log_of(entry))
    spaces.shell(f"ip link add late0 type veth peer name late1 netns {spaces.path(place.peer)}; ip link set late0 up")
    spaces.shell("ip addr add 10.66.0.2/24 dev late1; ip link set late1 up", place.peer)
    spaces.shell("ip addr add 10.66.0.1/24 dev late0")
    spaces.shell(f"ip route add {SECOND}/32 via 10.66.0.1", place.peer)
    spaces.settle(place.host)
    assert context.report(entry.name).uncovered == ()
    peer = place.at_peer()
    peer.do(f"c = socket.socket(type=socket.SOCK_DGRAM); c.bind(('10.66.0.2', 0)); c.sendto(b'word', ({SECOND!r}, 7))")
    assert peer.do("c.recvfrom(9)[0]") == "word"
    spaces.shell("ip link delete late0")


def steered(place: Lab) -> set[str]:
    """The links at whose ingress there is a program."""
    with netns.entered(place.host):
        return {link.ifname for link in outside.links() if context_steer.is_attached(link.ifindex)}


def test_links_have_the_program_only_while_a_set_has_several_addresses(place: Lab) -> None:
    """And never at the ports of a bridge: what comes in there comes in at the bridge as well."""
    spaces.shell(
        "ip link add br0 type bridge; ip link add port0 type veth peer name port1; ip link set port0 master br0"
    )
    entry = run.start_group(spec("sleep", "1000", addresses=(FIRST,)))
    assert steered(place) == {"lo"}
    context.change(entry.name, add=[SECOND])
    assert steered(place) == {"lo", "eth0", "br0", "port1"}
    other = run.start_group(spec("sleep", "1000", addresses=(OTHER,)))
    assert steered(place) == {"lo", "eth0", "br0", "port1"}
    stop_group(entry.name, timeout=0)
    assert steered(place) == {"lo"}
    stop_group(other.name, timeout=0)
    assert steered(place) == set()
    spaces.shell("ip link delete br0; ip link delete port0")


# -- ports -------------------------------------------------------------------------------------------------------------


def test_two_groups_share_one_address_with_different_ports(place: Lab) -> None:
    script = (
        "import socket\n"
        "for port in (80, 443):\n"
        "    try:\n"
        "        listener = socket.create_server(('ADDRESS', port))\n"
        "    except OSError as error:\n"
        "        print(port, error.errno)\n"
        "    else:\n"
        "        kept = listener\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    kept.accept()[0].sendall(b'NAME')\n"
    )
    for name, ports, address in (("web", "80-89/tcp", FIRST), ("tls", "443/tcp", "")):
        text = script.replace("ADDRESS", address).replace("NAME", name)
        entry = run.start_group(spec(*python(text), addresses=(f"{FIRST}:{ports}", f"{FIRST}:53/udp")))
        eventually(lambda entry=entry: "ready" in log_of(entry))  # type: ignore[misc]
    peer = place.at_peer()
    assert [says(peer, FIRST, port) for port in (80, 443)] == ["web", "tls"]


def test_port_outside_the_range_is_refused_and_any_leaves_the_address_out(place: Lab) -> None:
    made = place.context(f"{FIRST}:80-89/tcp", SECOND)
    agent, peer = place.inside(made), place.at_peer()
    agent.do("s = socket.socket()")
    assert agent.fails(f"s.bind(({FIRST!r}, 90))") == "EADDRNOTAVAIL"
    agent.do("u = socket.socket(type=socket.SOCK_DGRAM)")
    assert agent.fails(f"u.bind(({FIRST!r}, 80))") == "EADDRNOTAVAIL"
    agent.do("s.bind(('', 90)); s.listen()")
    assert agent.do("s.getsockname()[0]") == "0.0.0.0"
    peer.do(f"socket.create_connection(({SECOND!r}, 90))")
    assert peer.fails(f"socket.create_connection(({FIRST!r}, 90))") == "ECONNREFUSED"
    agent.do("s = socket.create_server(('', 85))")
    for address in (FIRST, SECOND):
        peer.do(f"socket.create_connection(({address!r}, 85))")
    peer.do("s = socket.create_server(('10.77.0.2', 7))")
    agent.do("c = socket.create_connection(('10.77.0.2', 7))")  # from an ephemeral port
    assert agent.do("c.getsockname()[0]") == FIRST


# -- bsdjail's limits --------------------------------------------------------------------------------------------------


def test_limits_hold_and_cannot_be_lifted(place: Lab) -> None:
    script = (
        "import json, os, resource, sys, time\n"
        "made = 0\n"
        "try:\n"
        "    while made < 50:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(1000)\n"
        "        made += 1\n"
        "except OSError as error:\n"
        "    failed = error.errno\n"
        "lifted = []\n"
        "for number in (resource.RLIMIT_DATA, resource.RLIMIT_MEMLOCK):\n"
        "    try:\n"
        "        resource.setrlimit(number, (1 << 40, 1 << 40))\n"
        "        lifted.append(number)\n"
        "    except (OSError, ValueError):\n"
        "        pass\n"
        "try:\n"
        "    os.nice(-20)\n"
        "except OSError:\n"
        "    pass\n"
        "limits = [resource.getrlimit(n)[1] for n in (resource.RLIMIT_DATA, resource.RLIMIT_MEMLOCK)]\n"
        "print(json.dumps([made, failed, limits, lifted, os.nice(0)]), flush=True)\n"
        "time.sleep(1000)\n"
    )
    limits = Limits(tasks=5, nice=5, data=512 << 20, memlock=65536)
    entry = run.start_group(spec(*python(script), limits=limits))
    eventually(lambda: log_of(entry).endswith("]\n") or print(log_of(entry)))
    made, failed, values, lifted, nice = json.loads(log_of(entry))
    assert (made, failed) == (4, 11)  # with the command itself five, then EAGAIN
    assert (values, lifted, nice) == ([512 << 20, 65536], [], 5)
    assert os.getpriority(os.PRIO_PROCESS, entry.pid) == 5
    stop_group(entry.name, timeout=0)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/ckpt-*{entry.name}"))


# -- changing the set --------------------------------------------------------------------------------------------------


def test_added_address_is_answered_on_by_who_has_bound_any(place: Lab) -> None:
    entry, peer = serving(addresses=(FIRST,)), place.at_peer()
    assert peer.fails(f"socket.create_connection(({SECOND!r}, 80))") == "ECONNREFUSED"
    report = context.change(entry.name, add=[SECOND])
    assert report.members == (f"{FIRST}/24", f"{SECOND}/24")
    assert registry.get(entry.name).addresses == report.members
    assert [says(peer, address) for address in (FIRST, SECOND)] == ["one", "one"]


def test_full_set_is_replaced_as_a_whole(place: Lab) -> None:
    sets = [[f"10.77.{third}.{last}" for last in range(100, 100 + MOST_ADDRESSES)] for third in (0, 1)]
    script = "\n".join(f"ip addr add {address}/24 dev eth0" for addresses in sets for address in addresses)
    spaces.shell(script)
    entry, peer = run.start_group(spec(addresses=tuple(sets[0]))), place.at_peer()
    report = context.change(entry.name, add=sets[1], remove=sets[0])
    assert report.members == tuple(f"{address}/24" for address in sets[1])
    agent = place.inside(kernel.read(entry.name))
    agent.do("s = socket.create_server(('', 80))")
    for address in (sets[1][0], sets[1][-1]):
        peer.do(f"socket.create_connection(({address!r}, 80))")
    spaces.shell(script.replace("ip addr add", "ip addr del"))


def test_added_ports_of_an_address_are_answered_on_too(place: Lab) -> None:
    entry, peer = serving(addresses=(FIRST, f"{SECOND}:443/tcp")), place.at_peer()
    assert peer.fails(f"socket.create_connection(({SECOND!r}, 80))") == "ECONNREFUSED"
    report = context.change(entry.name, add=[f"{SECOND}:80/tcp"])
    assert report.members == (f"{FIRST}/24", f"{SECOND}/24:443/tcp", f"{SECOND}/24:80/tcp")
    assert says(peer, SECOND) == "one"
    stop_group(entry.name)
    assert place.books() == []


def test_address_whose_port_is_taken_cannot_be_added(place: Lab) -> None:
    entry = serving(addresses=(FIRST,))
    serving(addresses=(OTHER,))
    before = place.books()
    with pytest.raises(ExistsError) as caught:
        context.change(entry.name, add=[SECOND, OTHER])
    assert (caught.value.code, caught.value.brief) == (
        "address-in-use",
        f"{OTHER} cannot be added: its port 80 is taken",
    )
    assert place.books() == before
    assert context.report(entry.name).members == (f"{FIRST}/24",)


def test_address_in_use_is_removed_only_by_force_and_its_connections_end(place: Lab) -> None:
    entry, peer = serving(addresses=(FIRST, SECOND)), place.at_peer()
    peer.do(f"k = socket.create_connection(({FIRST!r}, 80)); k.recv(9)")
    assert says(peer, SECOND) == "one"
    with pytest.raises(RefusedError) as caught:
        context.change(entry.name, remove=[SECOND])
    assert caught.value.code == "address-in-use"
    assert caught.value.details is not None and f"tcp established {SECOND}:80" in caught.value.details
    context.change(entry.name, remove=[SECOND], force=True)
    assert peer.fails("c.recv(9)") == "ECONNRESET"
    assert peer.fails(f"socket.create_connection(({SECOND!r}, 80))") == "ECONNREFUSED"
    assert says(peer, FIRST) == "one"


def test_address_that_only_any_answers_on_is_removed_without_force(place: Lab) -> None:
    entry, peer = serving(addresses=(FIRST, SECOND)), place.at_peer()
    context.change(entry.name, remove=[SECOND])
    assert peer.fails(f"socket.create_connection(({SECOND!r}, 80))") == "ECONNREFUSED"
    context.change(entry.name, add=[SECOND])
    assert says(peer, SECOND) == "one"
    stop_group(entry.name)


@pytest.mark.parametrize(
    ("error", "code", "changes"),
    [
        (NotFoundError, "address-missing", {"remove": [OTHER]}),
        (NotFoundError, "address-missing", {"add": ["10.1.2.3"]}),
        (UsageError, "address-needed", {"remove": [FIRST]}),
        (UsageError, "address-doubled", {"add": [FIRST]}),
    ],
)
def test_change_that_cannot_be_is_refused(
    place: Lab, error: type[CkptError], code: str, changes: dict[str, list[str]]
) -> None:
    entry = run.start_group(spec())
    with pytest.raises(error) as caught:
        context.change(entry.name, **changes)  # type: ignore[arg-type]
    assert caught.value.code == code
    assert context.report(entry.name).members == (f"{FIRST}/24",)


def test_context_that_is_not_there_is_not_found(place: Lab) -> None:
    with pytest.raises(NotFoundError) as caught:
        context.report(random_name("x"))
    assert caught.value.code == "context-missing"


def test_command_lists_shows_and_changes(place: Lab) -> None:
    entry = serving(addresses=(FIRST, FIRST6))

    def said(*arguments: str) -> Any:
        done = subprocess.run([*CKPT, "--json", "context", *arguments], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    (listed,) = said()
    assert (listed["name"], listed["members"]) == (entry.name, [f"{FIRST}/24", f"{FIRST6}/64"])
    assert sorted(listed["processes"]) == sorted(tree_pids(entry.pid))
    assert [(one["protocol"], one["state"], one["local"]) for one in said(entry.name)["sockets"]] == [
        ("tcp", "listen", {"address": FIRST, "port": 80, "scope": 0})
    ]
    assert said(entry.name, "--add", SECOND, "--remove", FIRST6)["members"] == [f"{FIRST}/24", f"{SECOND}/24"]
    text = subprocess.run([*CKPT, "context", entry.name], capture_output=True, text=True, check=True).stdout
    assert f"{FIRST}:80" in text


def test_entered_process_is_confined_but_for_the_sockets_it_had(place: Lab) -> None:
    entry, agent = run.start_group(spec()), place.unconfined()
    agent.do(f"import subprocess; old = socket.create_server(({OTHER!r}, 80))")
    agent.do("child = subprocess.Popen(['sleep', '1000'])")
    try:
        report = context.enter(entry.name, agent.pid)
        assert set(report.processes) == {agent.pid, agent.do("child.pid")} == set(report.privileged)
        assert [str(one) for one in report.free] == [f"tcp listen {OTHER}:80"]
        assert set(context.report(entry.name).processes) >= set(report.processes)
        agent.do("s = socket.socket()")
        assert agent.fails(f"s.bind(({SECOND!r}, 80))") == "EADDRNOTAVAIL"
        assert agent.fails(f"s.bind(({FIRST!r}, 80))") == ""
    finally:
        agent.do("child.kill(); child.wait()")


def test_process_that_has_left_is_named(place: Lab) -> None:
    entry = serving()
    (child,) = set(tree_pids(entry.pid)) - {entry.pid}
    assert context.report(entry.name).strayed == ()
    cgroup2.enter(cgroup2.root(), child)
    assert context.report(entry.name).strayed == (child,)
    done = subprocess.run([*CKPT, "context", entry.name], capture_output=True, text=True, check=True)
    assert f"PID {child} of {entry.name} has left the context" in done.stderr


def test_process_of_another_namespace_cannot_enter(place: Lab) -> None:
    entry, peer = run.start_group(spec()), place.at_peer()
    with pytest.raises(RefusedError) as caught:
        context.enter(entry.name, peer.pid)
    assert caught.value.code == "context-namespace"


# -- what a crash leaves -----------------------------------------------------------------------------------------------


def test_clean_removes_what_a_killed_ckpt_left(place: Lab, state: Path) -> None:
    """Killed with the context made and no first process yet: the cgroup, the programs, ::1, an address on a link."""
    name = random_name("g")
    script = (
        "import os, signal\n"
        "from ckpt.cli.main import main\n"
        "from ckpt.kernel import spawn\n"
        "def starting(first):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "spawn.starting = starting\n"
        "main()\n"
    )
    arguments = ["run", "--name", name, "--isolation", "ipset", "--root-may-leave", "--address", "10.77.0.50/24"]
    arguments += ["--link", "eth0", "true"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert context.names() == (name,)
    found = {(one.kind, one.subject) for one in clean.clean(dry_run=True)}
    assert {("context", name), ("address", "10.77.0.50/24")} <= found
    clean.clean()
    assert context.names() == ()
    assert not context.has_floor()
    assert "10.77.0.50/24" not in {one.address for one in outside.addresses()}
    assert clean.clean() == ()


def test_clean_leaves_contexts_of_running_groups_alone(place: Lab) -> None:
    entry = serving()
    assert clean.clean() == ()
    assert says(place.at_peer(), FIRST) == "one"
    os.kill(entry.pid, signal.SIGKILL)
    eventually(lambda: not entry.alive)
    clean.clean()
    assert context.names() == ()


def test_clean_removes_half_a_context(place: Lab) -> None:
    name = random_name("c")
    cgroup2.create(context_places.cgroup_of(name))
    assert [(one.kind, one.subject) for one in clean.clean()] == [("context", name)]
    assert context.names() == ()


def booked(port: int, number: int, *, address: str = FIRST, protocol: int = socket.IPPROTO_TCP) -> str:
    """Write an entry into the books that no socket has made; what it is called."""
    key = context_maps.KEY.pack(context_maps.address_bytes(address), port, protocol, 0)
    value = context_maps.CLAIM.pack(1, number, 0, context_maps.address_bytes(FIRST))
    with context_floor.opened() as floor:
        assert floor is not None
        bpf_calls.map_update(floor.books, key, value, bpf_calls.NOEXIST)
    (found,) = (one for one in context_books.claims() if one.port == port)
    return str(found)


def test_clean_strikes_what_the_books_have_of_no_socket(place: Lab) -> None:
    entry = serving(addresses=(FIRST, SECOND))
    made = kernel.read(entry.name)
    agent = place.inside(made)
    # Not every kernel lists a socket that is bound and nothing else.
    agent.do("bound = socket.socket(); bound.bind(('', 81))")
    agent.do("datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); datagrams.bind(('::', 81))")
    agent.do("chosen = socket.socket(type=socket.SOCK_DGRAM); chosen.bind(('', 0))")
    # Disconnected (AF_UNSPEC), it has lost its port, and its entry has not.
    agent.do("import ctypes; ctypes.CDLL(None).connect(chosen.fileno(), bytes(16), 16)")
    assert agent.do("chosen.getsockname()[1]") == 0
    before = place.books()
    assert clean.clean() == ()
    leaked = {booked(443, made.number), booked(444, made.number % 99 + 1), booked(53, made.number, protocol=17)}
    assert agent.fails(f"socket.create_server(({FIRST!r}, 443))") == "EADDRINUSE"
    found = clean.clean(dry_run=True)
    assert {(one.kind, one.subject, one.done) for one in found} == {("booking", one, True) for one in leaked}
    assert len(place.books()) == len(before) + 3
    assert {one.subject for one in clean.clean()} == leaked
    assert (place.books(), clean.clean()) == (before, ())
    assert agent.fails(f"socket.create_server(({FIRST!r}, 443))") == ""
    assert says(place.at_peer(), SECOND) == "one"


@pytest.mark.parametrize("moment", ["context_books.enter", "kernel.change"])
def test_clean_ends_a_change_whose_ckpt_was_killed(place: Lab, moment: str) -> None:
    """Its group stands still, and the books have what is not of its set: of the new address, or of the old one."""
    entry = serving(addresses=(FIRST, OTHER))
    before = place.books()
    script = (
        "import os, signal, sys\n"
        "from ckpt import context\n"
        "from ckpt.kernel import context as kernel, context_books\n"
        f"done = {moment}\n"
        "def killed(*arguments):\n"
        "    done(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{moment} = killed\n"
        "context.change(sys.argv[1], add=[sys.argv[2]], remove=[sys.argv[3]])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, entry.name, SECOND, OTHER], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(place.books()) > len(before)
    assert (context_places.cgroup_of(entry.name) / "cgroup.freeze").read_text() == "1\n"
    assert [one.kind for one in clean.clean()].count("booking") == 1
    assert clean.clean() == ()
    kept = SECOND if moment == "kernel.change" else OTHER
    assert registry.get(entry.name).addresses == (f"{FIRST}/24", f"{kept}/24")
    assert [says(place.at_peer(), address) for address in (FIRST, kept)] == ["one", "one"]
    stop_group(entry.name)
    assert place.books() == []


# -- what is said ------------------------------------------------------------------------------------------------------


def test_libraries_of_the_commands_choice_are_for_the_command_alone(place: Lab) -> None:
    """The first process keeps its capabilities: nothing may be loaded into it."""
    variables = dict(os.environ) | {"LD_LIBRARY_PATH": "/nonexistent"}
    entry = run.start_group(spec("sh", "-c", "echo $LD_LIBRARY_PATH; sleep 1000", environment=variables))
    eventually(lambda: log_of(entry) == "/nonexistent\n")
    assert b"LD_LIBRARY_PATH" not in Path(f"/proc/{entry.pid}/environ").read_bytes()


def test_run_says_what_a_context_does_not_hide(place: Lab) -> None:
    done = subprocess.run(
        [*CKPT, "run", "--isolation", "ipset", "--root-may-leave", "--address", FIRST, "--wait", "--", "true"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "can see every address" in done.stderr
