"""The numbers that stand for sysctls: where two are equal, so are the files."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from ckpt.kernel import devconf, netns, rtnl, sysctl
from tests.net.spaces import assert_equal, fresh, restored, shell

TREES = ("net/ipv4/conf", "net/ipv6/conf", "net/ipv4/neigh", "net/ipv6/neigh")


def files(tree: str, link: str) -> dict[str, str]:
    """Each file of the link that can be read and written, as it reads. To be called inside the namespace."""
    found = {}
    for path in sorted(Path("/proc/sys", tree, link).iterdir()):
        if path.stat().st_mode & 0o600 == 0o600:
            try:
                found[path.name] = path.read_text().rstrip("\n")
            except OSError:
                continue  # stable_secret, unset
    return found


@pytest.mark.parametrize("tree", TREES)
def test_marks_differ_wherever_a_file_was_changed(tree: str, group: int) -> None:
    shell("ip link add v0 type veth peer v1", group)
    with netns.entered(group):
        names = files(tree, "v0")
        changed = []
        for name, text in names.items():
            before = devconf.read_marks(group)[tree, "v0"]
            path = Path("/proc/sys", tree, "v0", name)
            try:
                path.write_text(str(int(text) ^ 1 if int(text) < 2 else int(text) + 100))
            except OSError:
                continue  # not every value is taken
            if files(tree, "v0")[name] != text:
                changed.append(name)
                now = devconf.read_marks(group)[tree, "v0"]
                assert name not in now or now[name] != before[name], name
            path.write_text(text)
    assert len(set(before) & set(changed)) > len(names) / 2
    # What has no mark is read file by file, for each link: there must not be many of them.
    assert len(set(names) - set(before)) < 8


def test_read_all_is_what_the_files_say(group: int) -> None:
    shell("ip link add v0 type veth peer v1; ip link add d0 type veth peer d1 mtu 1000; ip link set v0 up", group)
    shell("sysctl -qw net.ipv6.conf.v0.hop_limit=7 net.ipv4.neigh.v1.retrans_time_ms=1004", group)
    shell("sysctl -qw net.ipv4.conf.default.rp_filter=2; ip link add e0 type veth peer e1", group)
    found = sysctl.read_all(group)
    with netns.entered(group):
        expected = {
            f"{tree}/{link.name}/{name}": text
            for tree in TREES
            for link in Path("/proc/sys", tree).iterdir()
            for name, text in files(tree, link.name).items()
        }
    assert {key: value for key, value in found.items() if key.startswith(TREES)} == expected


PLAIN = ("core", "ipv4", "ipv6", "mpls", "netfilter", "unix", "sctp", "vrf")
OF_LINKS = ("conf", "neigh")


def changed(path: Path) -> str:
    """Give the file another number, or numbers; what it says then, or nothing where no other is taken."""
    try:
        before = path.read_text().split()
        for step in (1, -1, 2, 60):
            with contextlib.suppress(OSError):
                path.write_text(" ".join(str(int(word) + step) for word in before))
            if path.read_text().split() != before:
                return path.read_text()
    except (OSError, ValueError):
        pass  # not to be read, or no number
    return ""


def test_copy_has_every_sysctl_of_a_namespace_as_it_was() -> None:
    """Whatever can be set, also what tracks connections; the links' own are tried elsewhere, a few at a time."""
    nft = "nft 'add table ip x; add chain ip x y { type filter hook input priority 0; }; add rule ip x y ct state new'"
    with fresh() as space:
        shell(f"ip link set lo up; {nft}", space)
        with netns.entered(space):
            files = [path for tree in PLAIN for path in Path("/proc/sys/net", tree).rglob("*") if path.is_file()]
            plain = [path for path in files if not set(OF_LINKS) & set(path.parts) and path.stat().st_mode & 0o200]
            wanted = {path: text for path in sorted(plain) if (text := changed(path))}
            # Some change with others.
            wanted = {path: path.read_text() for path in wanted}
        with restored(rtnl.read_network(space)) as copy, netns.entered(copy):
            found = {path: path.read_text() for path in wanted}
    assert_equal(found, wanted)
    assert len(wanted) > 100
    assert {"nf_conntrack_udp_timeout", "tcp_keepalive_time", "fib_multipath_hash_policy"} <= {
        one.name for one in wanted
    }
