"""What differs between two checkpoints: matched by what objects are, quiet about what differs by nature."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt import sections
from ckpt.cli import main, status
from ckpt.diff import Change, Difference, FieldChange, diff, name_of, whole
from ckpt.image import Writer
from ckpt.model.checkpoint import Checkpoint, CriuNotes, Group
from ckpt.model.host import HostFacts
from ckpt.model.network import (
    LOOPBACK,
    Address,
    ConntrackEntry,
    Counterpart,
    FlowTuple,
    Link,
    Neighbour,
    Network,
    NftTable,
    Route,
    Rule,
)
from ckpt.model.process import FileKind, Isolation, Memory, Thread
from ckpt.model.socket import Endpoint, Owner
from ckpt.records import dataclass
from tests.unit import group_facts

ETH0 = Link(ifname="eth0", kind="veth", ifindex=2, mtu=1500, counterpart=Counterpart(ifname="ckpt1", ifindex=9))
FLOW = FlowTuple(source="10.0.0.2", destination="10.0.0.9", source_port=40000, destination_port=80)
BACK = FlowTuple(source="10.0.0.9", destination="10.0.0.2", source_port=80, destination_port=40000)
ENTRY = ConntrackEntry(original=FLOW, reply=BACK, protocol=6, status=14, timeout=100)
TABLE = "table inet f {\n\tchain c {\n\t\ttcp dport 80 counter packets 3 bytes 180 accept\n\t}\n}\n"
NETWORK = Network(
    links=(LOOPBACK, ETH0),
    addresses=(Address(ifname="eth0", address="10.0.0.2/24"), Address(ifname="eth0", address="10.0.0.3/24")),
    routes=(Route(destination="0.0.0.0/0", ifname="eth0", gateway="10.0.0.1"),),
    rules=(Rule(family=4, priority=100),),
    neighbours=(Neighbour(ifname="eth0", address="10.0.0.9", mac="02:00:00:00:00:09"),),
    sysctls={"net/ipv4/ip_forward": "1", "net/ipv4/tcp_ecn": "2"},
    nftables=(NftTable(family="inet", name="f", text=TABLE),),
    conntrack=(ENTRY,),
    complete=True,
)
CHECKPOINT = Checkpoint(
    group=Group(name="web", isolation=Isolation.NETNS, root_pid=71, pid_namespace=True),
    source=HostFacts(hostname="one", machine="x86_64", kernel="6.1"),
    processes=(
        group_facts.process(71, ns_pids=(71, 1)),
        group_facts.process(
            72, ns_pids=(72, 2), ppid=71, files=(group_facts.file(), group_facts.file(FileKind.SOCKET, "socket:[500]"))
        ),
    ),
    sockets=(group_facts.socket(owners=(Owner(pid=72, fd=3, ns_pid=2),)),),
    network=NETWORK,
    criu=CriuNotes(),
)


def with_network(**changes: Any) -> Checkpoint:
    return replace(CHECKPOINT, network=replace(NETWORK, **changes))


def changed(after: Checkpoint, before: Checkpoint = CHECKPOINT) -> list[str]:
    """The differences, each in short: section, sign and name, and the paths of fields."""
    signs = {Change.ADDED: "+", Change.REMOVED: "-", Change.CHANGED: "~"}
    found = diff(before, after)
    return [" ".join([item.section, signs[item.change] + item.name, *(f.field for f in item.fields)]) for item in found]


def test_diff_of_equal_checkpoints_is_empty() -> None:
    assert diff(CHECKPOINT, CHECKPOINT, everything=True) == ()
    assert diff(CHECKPOINT, replace(CHECKPOINT, group=replace(CHECKPOINT.group))) == ()


def test_diff_does_not_mind_the_order_of_objects() -> None:
    turned = with_network(links=(ETH0, LOOPBACK), addresses=NETWORK.addresses[::-1])
    assert diff(CHECKPOINT, replace(turned, processes=CHECKPOINT.processes[::-1])) == ()


def test_diff_gives_a_changed_field_before_and_after() -> None:
    after = with_network(links=(LOOPBACK, replace(ETH0, mtu=1400)))
    fields = (FieldChange(field="mtu", before=1500, after=1400),)
    assert diff(CHECKPOINT, after) == (Difference(section="links", name="eth0", change=Change.CHANGED, fields=fields),)


def test_diff_gives_a_new_object_whole() -> None:
    new = Address(ifname="lo", address="10.0.0.2/24")
    (found,) = diff(CHECKPOINT, with_network(addresses=(*NETWORK.addresses, new)))
    assert found == Difference(section="addresses", name="10.0.0.2/24 dev lo", change=Change.ADDED, after=new)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"links": (ETH0,)}, ["links -lo"]),
        ({"links": (LOOPBACK, replace(ETH0, kind="macvlan"))}, ["links ~eth0 kind"]),
        ({"links": (LOOPBACK, replace(ETH0, options={"b": "1"}))}, ["links ~eth0 options[b]"]),
        (
            {"links": (LOOPBACK, replace(ETH0, counterpart=Counterpart(ifname="ckpt2")))},
            ["links ~eth0 counterpart.ifname"],
        ),
        ({"links": (LOOPBACK, replace(ETH0, counterpart=None))}, ["links ~eth0 counterpart"]),
        ({"addresses": NETWORK.addresses[1:]}, ["addresses -10.0.0.2/24 dev eth0"]),
        (
            {"routes": (replace(NETWORK.routes[0], gateway="10.0.0.9"),)},
            ["routes ~0.0.0.0/0 gateway"],
        ),
        (
            {"routes": (replace(NETWORK.routes[0], table=7, priority=5),)},
            ["routes -0.0.0.0/0", "routes +0.0.0.0/0 table 7 metric 5"],
        ),
        ({"rules": ()}, ["rules -ipv4 priority 100"]),
        ({"neighbours": ()}, ["neighbours -10.0.0.9 dev eth0"]),
        (
            {"sysctls": {"net/ipv4/ip_forward": "0", "net/ipv4/tcp_sack": "0"}},
            ["sysctls ~net/ipv4/ip_forward value", "sysctls -net/ipv4/tcp_ecn", "sysctls +net/ipv4/tcp_sack"],
        ),
        ({"nftables": (NftTable(family="ip", name="f", text=TABLE),)}, ["nftables -inet f", "nftables +ip f"]),
        ({"conntrack": (replace(ENTRY, mark=7),)}, ["conntrack ~protocol 6 10.0.0.2:40000 to 10.0.0.9:80 mark"]),
        ({"complete": False}, ["network ~network complete"]),
    ],
)
def test_diff_of_a_network_names_the_object(changes: dict[str, Any], expected: list[str]) -> None:
    assert changed(with_network(**changes)) == expected


def test_diff_of_a_table_is_by_line() -> None:
    text = TABLE.replace("\t}\n", "\t\tdrop\n\t}\n")
    (found,) = diff(CHECKPOINT, with_network(nftables=(NftTable(family="inet", name="f", text=text),)))
    assert [line for line in found.fields[0].lines if line[0] in "+-"] == ["+\t\tdrop"]


def test_diff_of_objects_with_one_name_leaves_out_those_that_are_equal() -> None:
    hops = [Route(destination="2001:db8::/64", ifname=name) for name in ("a", "b", "c")]
    before = with_network(routes=(hops[0], hops[1], hops[2]))
    assert diff(before, with_network(routes=(hops[2], hops[0])))[0].before == hops[1]
    assert diff(before, with_network(routes=(hops[2], hops[0], hops[1]))) == ()


def _holds(record: object, field: dataclasses.Field[object]) -> bool:
    value = getattr(record, field.name)
    return bool(value) and value != field.default


def test_diff_with_a_group_without_network_removes_all_of_it() -> None:
    found = diff(CHECKPOINT, replace(CHECKPOINT, network=None))
    assert {item.change for item in found} == {Change.REMOVED}
    assert {item.section for item in found} == {
        field.name
        for field in dataclasses.fields(Network)
        if field.name not in ("unread", "complete") and _holds(CHECKPOINT.network, field)
    }


def test_diff_leaves_out_what_differs_by_nature() -> None:
    root, child = CHECKPOINT.processes
    moved = group_facts.file(mount_id=9, inode=77, position=100, size=7)
    after = replace(
        CHECKPOINT,
        source=HostFacts(hostname="two", machine="x86_64", kernel="6.1"),
        group=replace(CHECKPOINT.group, root_pid=900),
        processes=(
            replace(root, pid=900, ns_pids=(900, 1), ppid=33, start_time=5, memory=Memory(rss=4), state="R"),
            replace(
                child,
                pid=901,
                ns_pids=(901, 2),
                ppid=900,
                namespaces={kind: 100 + number for kind, number in child.namespaces.items()},
                files=(moved, replace(moved, kind=FileKind.SOCKET, path="socket:[9]")),
                threads=(Thread(tid=901, name="sleep", state="R", ns_ids=(901, 72)),),
            ),
        ),
        sockets=(
            replace(CHECKPOINT.sockets[0], inode=9, netns=3, accept_queue=2, owners=(Owner(pid=901, fd=3, ns_pid=2),)),
        ),
        network=replace(
            NETWORK,
            links=(LOOPBACK, replace(ETH0, counterpart=Counterpart(ifname="ckpt1", ifindex=77))),
            conntrack=(replace(ENTRY, timeout=9),),
            nftables=(NftTable(family="inet", name="f", text=TABLE.replace("3 bytes 180", "4 bytes 240")),),
        ),
    )
    after = replace(after, processes=(replace(after.processes[0], namespaces=after.processes[1].namespaces),
                                      after.processes[1]))  # fmt: skip
    assert changed(after) == []
    shown = {item.section for item in diff(CHECKPOINT, after, everything=True)}
    assert shown == {"group", "source", "processes", "sockets", "links", "conntrack", "nftables"}


@pytest.mark.parametrize(
    ("before", "after", "differs"),
    [(None, None, False), (100, 90, False), (100, None, True), (None, 100, True), (1, 0, True)],
)
def test_diff_of_a_lifetime_is_whether_there_is_one(before: int | None, after: int | None, differs: bool) -> None:
    sides = [
        with_network(addresses=(replace(NETWORK.addresses[0], preferred_lifetime=one),)) for one in (before, after)
    ]
    expected = ["addresses ~10.0.0.2/24 dev eth0 preferred_lifetime"] if differs else []
    assert changed(sides[1], sides[0]) == expected


def test_diff_of_processes_calls_them_as_they_call_themselves() -> None:
    child = replace(CHECKPOINT.processes[1], ppid=1, files=(group_facts.file(path="/tmp/y"),))
    expected = ["processes ~PID 2 ppid files[3].path files[3]"]
    after = replace(CHECKPOINT, processes=(CHECKPOINT.processes[0], child))
    assert changed(after) == expected
    assert diff(CHECKPOINT, after)[0].fields[0] == FieldChange(field="ppid", before=1, after=0)


def test_diff_of_processes_sees_one_move_into_a_namespace_of_its_own() -> None:
    root, child = CHECKPOINT.processes
    after = replace(CHECKPOINT, processes=(root, replace(child, namespaces={**child.namespaces, "net": 99})))
    assert changed(after) == ["processes ~PID 2 namespaces[net]"]


def test_diff_of_sockets_goes_by_descriptor() -> None:
    socket = CHECKPOINT.sockets[0]
    moved = replace(socket, local=Endpoint(address="10.0.0.2", port=81))
    assert changed(replace(CHECKPOINT, sockets=(moved,))) == ["sockets ~PID 2 fd 3 local.port"]
    other = replace(socket, owners=(Owner(pid=72, fd=4, ns_pid=2),))
    expected = ["sockets -PID 2 fd 3", "sockets +PID 2 fd 4"]
    assert changed(replace(CHECKPOINT, sockets=(other,))) == expected


def test_names_that_hold_numbers_stand_in_their_order() -> None:
    links = tuple(replace(ETH0, ifname=f"eth{number}") for number in (10, 9, "²", "1" * 5000))
    found = [item.name for item in diff(with_network(links=()), with_network(links=links))]
    assert found == ["eth9", "eth10", "eth" + "1" * 5000, "eth²"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """A record that nobody has told `diff` of."""

    handle: int
    kind: str
    limit: int = 0
    parts: tuple[Address, ...] = ()
    settings: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WiderNetwork(Network):
    """A network as a later ckpt may have it."""

    novelties: tuple[Novelty, ...] = ()
    table: NftTable | None = None


def test_diff_compares_records_that_it_does_not_know() -> None:
    one = Novelty(handle=1, kind="fq", parts=NETWORK.addresses, settings={"quantum": 1})
    two = replace(one, limit=5, parts=NETWORK.addresses[1:], settings={"quantum": 2})
    sides = [
        replace(CHECKPOINT, network=WiderNetwork(novelties=novelties, links=(LOOPBACK,)))
        for novelties in ((one,), (two, Novelty(handle=2, kind="fq")))
    ]
    assert name_of(one) == "handle 1 fq"
    assert changed(sides[1], sides[0]) == [
        "novelties ~handle 1 fq limit parts[10.0.0.2/24 dev eth0] settings[quantum]",
        "novelties +handle 2 fq",
    ]


# -- any two ---------------------------------------------------------------------------------------------------------

IFNAMES = st.sampled_from(["lo", "eth0", "eth1", "eth10"])
SMALL = st.integers(0, 2)
LINKS = st.builds(
    Link,
    ifname=IFNAMES,
    kind=st.sampled_from(["veth", "bridge"]),
    mtu=SMALL,
    flags=st.lists(st.sampled_from(["up", "noarp"]), unique=True).map(tuple),
    options=st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["0", "1"])),
    counterpart=st.none() | st.builds(Counterpart, ifname=IFNAMES, ifindex=SMALL),
)
ADDRESSES = st.builds(
    Address,
    ifname=IFNAMES,
    address=st.sampled_from(["10.0.0.1/8", "10.0.0.2/8"]),
    peer=st.sampled_from(["", "10.0.0.9/32"]),
    valid_lifetime=st.none() | SMALL,
)
ROUTES = st.builds(
    Route, destination=st.sampled_from(["::/0", "fd00::/8"]), ifname=IFNAMES, priority=SMALL, expires=st.none() | SMALL
)
TABLES = st.builds(
    NftTable, family=st.just("inet"), name=st.sampled_from("fg"), text=st.text("ab\n", max_size=6).map("x\n".__add__)
)


def several(of: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=4).map(tuple)


NETWORKS = st.none() | st.builds(
    Network,
    links=several(LINKS),
    addresses=several(ADDRESSES),
    routes=several(ROUTES),
    sysctls=st.dictionaries(st.sampled_from(["net/a", "net/b"]), st.sampled_from(["0", "1"])),
    nftables=several(TABLES),
)
PROCESSES = st.builds(
    group_facts.process,
    st.integers(70, 73),
    name=st.sampled_from(["a", "b"]),
    ppid=st.integers(69, 73),
    namespaces=st.fixed_dictionaries({"net": SMALL, "mnt": SMALL}),
)
CHECKPOINTS = st.builds(
    lambda network, processes: replace(CHECKPOINT, network=network, processes=processes), NETWORKS, several(PROCESSES)
)


def mirrored(differences: Sequence[Difference]) -> list[Difference]:
    turned = {Change.ADDED: Change.REMOVED, Change.REMOVED: Change.ADDED, Change.CHANGED: Change.CHANGED}
    return [
        replace(
            item,
            change=turned[item.change],
            before=item.after,
            after=item.before,
            fields=tuple(replace(field, before=field.after, after=field.before) for field in item.fields),
        )
        for item in differences
    ]


def without_lines(differences: Sequence[Difference]) -> list[Difference]:
    """Of two ways to align lines a line diff takes one, and not always the same in both directions."""
    return [replace(item, fields=tuple(replace(field, lines=()) for field in item.fields)) for item in differences]


@given(CHECKPOINTS, st.booleans())
def test_diff_of_any_checkpoint_with_itself_is_empty(checkpoint: Checkpoint, everything: bool) -> None:
    turned = replace(checkpoint, processes=checkpoint.processes)
    assert diff(checkpoint, turned, everything=everything) == ()


@given(CHECKPOINTS, CHECKPOINTS, st.booleans())
def test_diff_of_any_two_mirrors_the_other_way(one: Checkpoint, other: Checkpoint, everything: bool) -> None:
    there, back = diff(one, other, everything=everything), diff(other, one, everything=everything)
    assert without_lines(mirrored(there)) == without_lines(back)


def unordered(checkpoint: Checkpoint) -> Any:
    """All of ``checkpoint`` but the order of its objects, and that it may say nothing of a network."""
    network = checkpoint.network or Network()
    values = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}
    parts = {name: Counter(map(whole, value)) if isinstance(value, tuple) else value for name, value in values.items()}
    return parts, Counter(map(whole, checkpoint.processes)), whole(replace(checkpoint, network=None, processes=()))


@given(CHECKPOINTS, CHECKPOINTS)
def test_diff_of_everything_is_empty_for_equal_ones_alone(one: Checkpoint, other: Checkpoint) -> None:
    assert (diff(one, other, everything=True) == ()) == (unordered(one) == unordered(other))


def test_diff_of_two_of_one_name_ignores_the_order_of_mappings() -> None:
    namespaces = {"net": 1, "mnt": 2}
    turned = dict(reversed(namespaces.items()))
    before = replace(
        CHECKPOINT, processes=(group_facts.process(71, namespaces=namespaces), group_facts.process(71, name="other"))
    )
    after = replace(
        CHECKPOINT, processes=(group_facts.process(71, name="other"), group_facts.process(71, namespaces=turned))
    )
    assert diff(before, after, everything=True) == ()


# -- the command -----------------------------------------------------------------------------------------------------


def image(path: Path, checkpoint: Checkpoint) -> str:
    with path.open("wb") as out, Writer(out) as writer:
        sections.write(writer, checkpoint)
        writer.finish()
    return str(path)


def test_command_of_equal_images_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (image(tmp_path / name, CHECKPOINT) for name in ("one.ckpt", "other.ckpt"))
    assert main.invoke(["diff", one, other]) == 0
    assert capsys.readouterr().out == "no differences\n"


def test_command_shows_differences_by_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TABLE.replace("accept", "drop")
    after = with_network(
        links=(LOOPBACK, replace(ETH0, mtu=1400, flags=("up",), alias="\x1b[2J")),
        addresses=(NETWORK.addresses[0], Address(ifname="lo", address="10.0.0.9/32", scope="host")),
        sysctls={**NETWORK.sysctls, "net/ipv4/tcp_ecn": "1"},
        nftables=(
            NftTable(family="inet", name="f", text=text),
            NftTable(family="ip", name="g", text="table ip g {\n}"),
        ),
    )
    one, other = image(tmp_path / "one.ckpt", CHECKPOINT), image(tmp_path / "other.ckpt", after)
    assert main.invoke(["diff", one, other]) == 14
    assert capsys.readouterr().out.splitlines() == [
        "links:",
        "  ~ eth0",
        "      mtu: 1500 → 1400",
        "      flags: multicast up → up",
        '      alias: "" → \\x1b[2J',
        "addresses:",
        "  - 10.0.0.3/24 dev eth0",
        "  + 10.0.0.9/32 dev lo",
        "      scope host",
        "sysctls:",
        "  ~ net/ipv4/tcp_ecn",
        "      value: 2 → 1",
        "nftables:",
        "  ~ inet f",
        "      text:",
        "        @@ -1,5 +1,5 @@",
        "         table inet f {",
        "            chain c {",
        "        -       tcp dport 80 counter packets … bytes … accept",
        "        +       tcp dport 80 counter packets … bytes … drop",
        "            }",
        "         }",
        "  + ip g",
        "      text:",
        "        +table ip g {",
        "        +}",
    ]


def test_command_gives_json_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = with_network(links=(replace(ETH0, mtu=1400),))
    one, other = image(tmp_path / "one.ckpt", CHECKPOINT), image(tmp_path / "other.ckpt", after)
    assert main.invoke(["diff", one, other, "--json"]) == 14
    shown = json.loads(capsys.readouterr().out)
    assert (shown["before"], shown["after"], shown["equal"]) == (one, other, False)
    eth0, lo = shown["differences"]
    assert (eth0["section"], eth0["name"], eth0["change"]) == ("links", "eth0", "changed")
    assert eth0["fields"] == [{"field": "mtu", "before": 1500, "after": 1400, "lines": []}]
    assert (lo["change"], lo["before"]["kind"], lo["after"]) == ("removed", "loopback", None)


def test_command_ends_as_no_error_does() -> None:
    assert status.DIFFERENT not in {number for number, _, _ in status.table()}
    assert f"\n  {status.DIFFERENT}: `ckpt diff`" in status.epilog()
