"""What is drawn for the links of ``random_spaces`` to carry: from sysctls to addresses, routes and policies.

Each function appends lines for the tools to a draft. Every line must succeed: what the kernel would refuse is not
drawn, so that a line which fails is a mistake here and not an example that says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.net.random_spaces import BRIDGE, IP, IP6, Dice, Draft, Slot, has, has_vlans, write

_PLAIN = {
    "net/ipv4/ip_forward": ("0", "1"),
    "net/ipv4/tcp_keepalive_time": ("99", "7200"),
    "net/ipv4/ip_local_port_range": ("2000 3000", "32768 60999"),
    "net/ipv4/ping_group_range": ("0 9", "1 0"),
    "net/ipv4/ip_unprivileged_port_start": ("0", "80"),
    "net/ipv4/fib_multipath_hash_policy": ("0", "1", "2"),
    "net/ipv4/tcp_congestion_control": ("reno",),
    "net/ipv4/tcp_rmem": ("4096 70000 900000",),
    "net/ipv4/igmp_max_memberships": ("33",),
    "net/ipv6/bindv6only": ("0", "1"),
    "net/ipv6/flowlabel_state_ranges": ("0", "1"),
    "net/ipv6/route/gc_thresh": ("777",),
    "net/core/somaxconn": ("9", "4096"),
    "net/unix/max_dgram_qlen": ("33",),
}
_CONF4 = {
    "rp_filter": ("0", "1", "2"),
    "arp_ignore": ("0", "1", "2"),
    "log_martians": ("0", "1"),
    "proxy_arp": ("0", "1"),
    "send_redirects": ("0", "1"),
    "forwarding": ("0", "1"),
    "tag": ("77",),
}
_CONF6 = {
    "accept_ra": ("0", "1", "2"),
    "hop_limit": ("33", "255"),
    "forwarding": ("0", "1"),
    "accept_redirects": ("0", "1"),
    "ndisc_notify": ("0", "1"),
    "router_solicitations": ("0", "5"),
    "keep_addr_on_down": ("0", "1"),
}
_NEIGH = {"gc_stale_time": ("61",), "base_reachable_time_ms": ("12345",), "ucast_solicit": ("7",), "proxy_qlen": ("9",)}


def draw_templates(dice: Dice, draft: Draft) -> None:
    """The namespace's own sysctls, and what links will copy; before there are any."""
    draft.templates.append(write("net/ipv6/conf/default/accept_dad", 0))  # detection takes a second and more
    for key in dice.some(list(_PLAIN), 4):
        draft.templates.append(write(key, dice.one(_PLAIN[key])))
    for place in ("default", "all"):
        for version, names in (("ipv4", _CONF4), ("ipv6", _CONF6)):
            for name in dice.some(list(names), 1):
                draft.templates.append(write(f"net/{version}/conf/{place}/{name}", dice.one(names[name])))


def draw_device_sysctls(dice: Dice, draft: Draft) -> None:
    """Sysctls of single links."""
    for link in dice.some(draft.links, 3):
        for tree, names in (("ipv4/conf", _CONF4), ("ipv6/conf", _CONF6), ("ipv4/neigh", _NEIGH)):
            for name in dice.some(list(names), 2):
                draft.rest.append(write(f"net/{tree}/{link.name}/{name}", dice.one(names[name])))


def draw_carried(dice: Dice, draft: Draft) -> None:
    """Addresses, next hops, routes, neighbours on links; rules, policies and groups beside them."""
    for number, link in enumerate(draft.links[:-1], start=draft.place * 40):
        if link.takes_addresses and dice.chance(7):
            _draw_addresses(dice, draft, link, number)
            _draw_routes(dice, draft, link, number)
            _draw_neighbours(dice, draft, link, number)
    _draw_nexthops(dice, draft)
    _draw_loose_routes(dice, draft)
    _draw_rules(dice, draft)
    _draw_policies(dice, draft)
    for link in dice.some([link for link in draft.links if link.kind == "veth"], 1):
        draft.rest.append((IP, f"maddress add 01:02:03:04:05:{dice.number(0, 99):02} dev {link.name}"))


def _draw_addresses(dice: Dice, draft: Draft, link: Slot, number: int) -> None:
    for host in range(2, dice.number(3, 6)):
        label = f"label {link.name[:10]}:{host}" if dice.chance(2) and len(link.name.encode()) < 9 else ""
        choices = ["", "metric 77", "valid_lft 9000 preferred_lft 5000", "noprefixroute"]
        more = [label, dice.one(choices if host > 2 else choices[:3])]
        peer = f"10.{number}.0.{host} peer 10.{number}.9.{host}/32"
        place = peer if dice.chance(1) and host > 2 else f"10.{number}.0.{host}/24"
        brd = "broadcast +" if "peer" not in place and dice.chance(5) else ""
        draft.rest.append((IP, f"address add {place} {brd} {' '.join(more)} dev {link.name}"))
    for host in range(2, dice.number(3, 5)):
        more = ["", "nodad", "noprefixroute", "home", "metric 5", "valid_lft 9000 preferred_lft 0"]
        flags = "" if host == 2 else dice.one(more)
        draft.rest.append((IP, f"address add fd00:{number:x}::{host}/64 {flags} dev {link.name}"))


def _draw_routes(dice: Dice, draft: Draft, link: Slot, number: int) -> None:
    """Through gateways on the link; 10.N.0.2/24 and fd00:N::2/64 are always there, each with its prefix's route."""
    four, six = f"10.{number}.0.{dice.number(200, 250)}", f"fd00:{number:x}::{dice.number(200, 250):x}"
    near, via, via6 = f"dev {link.name}", f"via {four} dev {link.name}", f"via {six} dev {link.name}"
    more = ["", "mtu 1300", "mtu lock 1290 advmss 1200", "initcwnd 20 rto_min 5s", "congctl reno", "realms 3/4"]
    options = [
        f"route add 172.16.{number}.0/24 {via} {dice.one(more)} metric {dice.number(0, 9)}",
        f"route append 172.16.{number}.0/24 {via} metric 99 proto static",
        f"route add 172.17.{number}.0/24 {near} src 10.{number}.0.2 scope link table {dice.one([100, 70000])}",
        f"route add 172.18.{number}.0/24 via 192.0.2.{number + 1} {near} onlink",
        f"route add 172.19.{number}.0/24 via inet6 {six} {near}",
        f"route add 172.20.{number}.0/24 nexthop {via} weight {dice.number(1, 256)} nexthop via 10.{number}.0.199",
        f"route add 172.21.{number}.0/24 {via} tos {dice.one(['0x8', '0x10'])}",
        f"route add multicast 239.{number}.0.0/16 {near}",
        f"route add fd10:{number:x}::/64 {via6} metric {dice.number(1, 9)} {dice.one(['', 'mtu 1400', 'pref high'])}",
        f"route add fd11:{number:x}::/64 {via6} expires 900 proto ra",
        f"route add fd12:{number:x}::/64 nexthop {via6} weight 2 nexthop via fd00:{number:x}::199 {near}",
        f"route add fd13:{number:x}::/64 {near} table {dice.one([7, 70000])}",
    ]
    if has("ip route add 10.30.0.0/16 encap ip id 7 dst 192.0.2.9 dev v0"):
        options.append(f"route add 172.22.{number}.0/24 encap ip id {number} dst 192.0.2.9 ttl 9 {near}")
    if has("ip -6 route add fd08::/64 encap seg6 mode encap segs fd01::1 dev v0"):
        options.append(f"route add fd14:{number:x}::/64 encap seg6 mode encap segs fd01::1,fd01::2 {near}")
    lines = dice.some(options, 6)
    # What is appended would be the first otherwise, which is fine too.
    draft.rest += [(IP, line) for line in lines]


def _draw_neighbours(dice: Dice, draft: Draft, link: Slot, number: int) -> None:
    options = [
        f"neighbour add 10.{number}.0.101 lladdr {dice.mac()} nud permanent dev {link.name}",
        f"neighbour add 10.{number}.0.102 lladdr {dice.mac()} nud noarp dev {link.name}",
        f"neighbour add 10.{number}.0.103 lladdr {dice.mac()} nud permanent protocol 99 dev {link.name}",
        f"neighbour add fd00:{number:x}::101 lladdr {dice.mac()} router nud permanent dev {link.name}",
        f"neighbour add proxy 10.{number}.0.105 dev {link.name}",
        f"neighbour add proxy fd00:{number:x}::105 dev {link.name}",
    ]
    draft.rest += [(IP, line) for line in dice.some(options, 3)]


def _draw_nexthops(dice: Dice, draft: Draft) -> None:
    """Objects by their number, and routes that name them: only on links that work, the kernel wants it so."""
    if not has("ip nexthop add id 1 blackhole") or not dice.chance(5):
        return
    draft.rest.append((IP, "nexthop add id 1 blackhole"))
    ids: list[int] = []
    for link in [one for one in draft.links if one.takes_addresses and one.other is not None and one.other.up]:
        made = f"nexthop add id {len(ids) + 10} {dice.one(['', f'via 198.51.100.{len(ids) + 1} onlink'])}"
        draft.rest.append((IP, f"{made} dev {link.name} proto {dice.one(['static', '99'])}"))
        ids.append(len(ids) + 10)
    if not ids:
        return
    members = "/".join(f"{one},{dice.number(1, 9)}" for one in ids)
    resilient = dice.one(["", "", "type resilient buckets 32 idle_timer 60"])
    draft.rest.append((IP, f"nexthop add id 900 group {members} {resilient}"))
    draft.rest.append((IP, f"route add 172.30.0.0/16 nhid {dice.one([1, *ids, 900])}"))
    if dice.chance(5):
        draft.rest.append((IP, f"route add 172.31.0.0/16 nhid {dice.one(ids)} metric 5"))


def _draw_loose_routes(dice: Dice, draft: Draft) -> None:
    for number in range(dice.number(0, 3)):
        kind = dice.one(["blackhole", "unreachable", "prohibit", "throw"])
        table, metric = dice.one([254, 100, 70000]), dice.number(1, 9)
        prefix = dice.one([f"100.64.{number}.0/24", f"fd20:{number:x}::/48"])
        draft.rest.append((IP, f"route add {kind} {prefix} table {table} metric {metric}"))


def _draw_rules(dice: Dice, draft: Draft) -> None:
    selectors = [
        "from 192.0.2.0/24",
        "to 198.51.100.7",
        "fwmark 0x1/0xff",
        "iif lo",
        "oif nowhere",
        "ipproto tcp sport 10-20 dport 30",
        "uidrange 5-9",
        "not from 203.0.113.0/24",
        "tos 8",
        "tun_id 77",
        "l3mdev",
    ]
    actions = ["lookup 100", "lookup 70000", "blackhole", "prohibit", "unreachable", "goto 32766", "nop"]
    for priority in sorted({dice.number(1, 30000) for _ in range(dice.number(0, 3))}):
        selector, action = dice.one(selectors), dice.one(actions)
        if selector == "l3mdev":
            action = ""
        elif action.startswith("lookup") and dice.chance(3):
            action += f" suppress_prefixlength {dice.number(0, 24)}"
        draft.rest.append((IP, f"rule add {selector} priority {priority} {action}"))
    if dice.chance(2):
        draft.rest.append((IP6, f"rule add from fd77::/16 priority {dice.number(1, 30000)} lookup 100"))


def _draw_policies(dice: Dice, draft: Draft) -> None:
    if not has("ip xfrm policy add src 192.0.2.0/24 dst 192.0.2.9 dir out action block"):
        return
    for number in range(dice.number(0, 2)):
        place = f"src 198.51.100.{number * 16}/28 dst 203.0.113.{number}"
        more = dice.some(["proto tcp", "sport 99", "priority 77", "mark 5 mask 0xff", "if_id 9"], 2)
        if more and more[0] == "sport 99":
            more.insert(0, "proto udp")
        selector = [one for one in more if one.startswith(("proto", "sport"))]
        others = [one for one in more if one not in selector]
        way = dice.one(["in", "out", "fwd"])
        what = dice.one(
            ["action block", f"tmpl src 192.0.2.{number} dst 192.0.2.99 proto esp reqid {number} mode tunnel"]
        )
        draft.rest.append((IP, f"xfrm policy add {place} {' '.join(selector)} dir {way} {' '.join(others)} {what}"))


def draw_bridging(dice: Dice, draft: Draft) -> None:
    """VLANs, forwarding entries and groups of bridges' ports, of bridges, and of links that stand alone."""
    macs = (f"06:00:00:00:00:{number:02x}" for number in range(256))
    for bridge in [link for link in draft.links if link.kind == "bridge"]:
        for link in [bridge, *(one for one in draft.links if one.master == bridge.name)]:
            vlans = list(_draw_vlans(dice, draft, link)) if has_vlans() else []
            if link.master:
                _draw_forwarding(dice, draft, link, macs, vlans)
                if bridge.up and link.up and dice.chance(3):
                    group = dice.one(["239.1.1.1", "ff05::5", "239.1.1.3 src 192.0.2.9", "01:02:03:04:05:06"])
                    draft.rest.append((BRIDGE, f"mdb add dev {bridge.name} port {link.name} grp {group} permanent"))
    for link in dice.some([one for one in draft.links if one.kind in ("veth", "bridge")], 2):
        draft.rest.append((BRIDGE, f"fdb add {next(macs)} dev {link.name} self permanent"))


def _draw_vlans(dice: Dice, draft: Draft, link: Slot) -> Iterator[int]:
    own = "" if link.master else "self"
    for first in sorted({dice.number(2, 4000) for _ in range(dice.number(0, 3))}):
        if dice.chance(4):
            draft.rest.append((BRIDGE, f"vlan add dev {link.name} vid {first}-{first + dice.number(1, 20)} {own}"))
        else:
            flags = dice.one(["", "untagged", "pvid untagged", "pvid"])
            draft.rest.append((BRIDGE, f"vlan add dev {link.name} vid {first} {flags} {own}"))
        yield first
    if dice.chance(1):
        draft.rest.append((BRIDGE, f"vlan add dev {link.name} vid 1 {own}"))
        draft.rest.append((BRIDGE, f"vlan del dev {link.name} vid 1 {own}"))


def _draw_forwarding(dice: Dice, draft: Draft, link: Slot, macs: Iterator[str], vlans: list[int]) -> None:
    for _ in range(dice.number(0, 3)):
        how = dice.one(["static", "permanent", "static sticky", "extern_learn"])
        vlan = f"vlan {dice.one(vlans)}" if vlans and dice.chance(5) else ""
        draft.rest.append((BRIDGE, f"fdb add {next(macs)} dev {link.name} master {how} {vlan}"))
