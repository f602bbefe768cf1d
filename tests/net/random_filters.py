"""What is drawn for packets to pass in the namespaces of ``random_spaces``: traffic control, rulesets and sets.

As in ``random_parts``, every line must succeed. Rules match addresses for documentation only: what the kernel itself
sends would move their counters.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.net.random_spaces import TC, Dice, Draft, Slot, has


def draw_traffic(dice: Dice, draft: Draft) -> None:
    """Disciplines with their classes, hooks, and filters of both."""
    for link in dice.some(draft.links, 4):
        choices = [choice for choice, (probe, _) in _DISCIPLINES.items() if has(f"tc qdisc add dev v0 root {probe}")]
        choice = dice.one([*choices, "htb"] if has("tc qdisc add dev v0 root htb") else choices)
        handle = dice.number(1, 0xFFF)
        if choice == "htb":
            _draw_htb(dice, draft, link, handle)
        elif choice == "mq" and link.queues < 2:
            continue
        else:
            text = _DISCIPLINES[choice][1].format(a=dice.number(2, 999), b=dice.number(2, 60), c=dice.number(2, 9))
            draft.rest.append((TC, f"qdisc add dev {link.name} root handle {handle:x}: {text}"))
    if has("tc qdisc add dev v0 clsact; tc filter add dev v0 ingress prio 5 protocol ip u32 match ip sport 9 0xffff"):
        for link in dice.some(draft.links, 2):
            draft.rest.append((TC, f"qdisc add dev {link.name} clsact"))
            _draw_filters(dice, draft, link, dice.one(["ingress", "egress"]), "flowid 1:1")


# Each with what shows whether the kernel has it, and with room for three numbers.
_DISCIPLINES = {
    "pfifo": ("pfifo", "pfifo limit {a}"),
    "bfifo": ("bfifo", "bfifo limit {a}000"),
    "tbf": ("tbf rate 1mbit burst 5k limit 9k", "tbf rate {a}kbit burst {b}00b limit {a}000"),
    "tbf-peak": (
        "tbf rate 1mbit burst 5k limit 9k",
        "tbf rate {a}kbit burst {b}00b latency {b}ms peakrate 2{a}kbit mtu 1540",
    ),
    "stab": ("pfifo", "stab linklayer atm overhead {c} mtu 2048 mpu 53 pfifo"),
    "mq": ("pfifo", "mq"),
    "fq_codel": ("fq_codel", "fq_codel limit {a} flows 64 target {c}ms quantum {a}"),
    "sfq": ("sfq", "sfq perturb {c} limit 99"),
    "prio": ("prio", "prio bands 4"),
    "netem": ("netem", "netem delay {b}ms limit {a} loss {c}%"),
}


def _draw_htb(dice: Dice, draft: Draft, link: Slot, handle: int) -> None:
    def line(text: str) -> None:
        draft.rest.append((TC, text))

    line(f"qdisc add dev {link.name} root handle {handle:x}: htb default {dice.number(0, 99)} r2q {dice.number(1, 99)}")
    classes = [f"{handle:x}:"]
    for number in range(1, dice.number(1, 5)):
        parent = dice.one(classes)
        rate = f"rate {dice.number(9, 99999)}kbit ceil {dice.number(1, 40)}gbit"
        more = dice.one(["", "burst 5k cburst 7k", f"prio {dice.number(0, 7)}", "quantum 3000", "mpu 64 overhead 14"])
        line(f"class add dev {link.name} parent {parent} classid {handle:x}:{number:x} htb {rate} {more}")
        classes.append(f"{handle:x}:{number:x}")
        if dice.chance(2):
            # A class with a leaf becomes no parent.
            leaf = classes.pop()
            line(
                f"qdisc add dev {link.name} parent {leaf} handle {0x1000 + number:x}: pfifo limit {dice.number(1, 99)}"
            )
    _draw_filters(dice, draft, link, f"parent {handle:x}:", f"flowid {handle:x}:1")


def _draw_filters(dice: Dice, draft: Draft, link: Slot, place: str, target: str) -> None:
    if not has(
        "tc qdisc add dev v0 root handle 1: htb; tc filter add dev v0 parent 1: protocol ip u32 match ip ttl 9 1"
    ):
        return
    mirred = has("tc actions add action mirred egress mirror dev lo")
    for priority in sorted({dice.number(1, 0xBFFF) for _ in range(dice.number(0, 3))}):
        match = dice.one(
            [
                "protocol ip u32 match ip src 192.0.2.0/24",
                "protocol ip u32 match ip dport 80 0xffff match ip protocol 6 0xff",
                "protocol ipv6 u32 match ip6 dst fd77::/64",
                "protocol all u32 match mark 5 0xff match u32 0 0",
            ]
        )
        what = target
        if mirred and dice.chance(3):
            other = dice.one(draft.links).name
            what = f"action mirred egress {dice.one(['redirect', 'mirror'])} dev {other}"
        draft.rest.append((TC, f"filter add dev {link.name} {place} prio {priority} {match} {what}"))


# One of each kind of thing that tables are drawn with.
_SAMPLE = """nft 'table {family} x {{
    counter c {{ packets 1 bytes 2; }}
    quota q {{ over 1 mbytes used 1 kbytes; }}
    limit l {{ rate 5/second burst 7 packets; }}
    set s {{ type inet_service; flags interval; elements = {{ 1-2 }}; }}
    set d {{ type ipv4_addr . inet_service; flags timeout,dynamic; timeout 5m; size 9; }}
    map m {{ type inet_service : verdict; elements = {{ 1 : accept }}; }}
    chain y {{ type filter hook prerouting priority 0; counter name c quota name q limit name l log group 5; }}
    chain z {{ type filter hook input priority 0; meta mark set 5 iifname v0 tcp dport vmap @m; }}
}}'"""


def draw_nftables(dice: Dice, draft: Draft) -> None:
    """Tables with sets, maps, objects, chains and rules."""
    families = [family for family in ("ip", "ip6", "inet") if has(_SAMPLE.format(family=family))]
    for number in range(dice.number(0, 2) if families else 0):
        family = dice.one(families)
        draft.rest.append(("nft -f -", "\n".join(_table(dice, family, number, draft))))
    links = [link for link in draft.links if link.kind == "veth"]
    hook = "nft 'add table netdev x; add chain netdev x y { type filter hook ingress device \"v0\" priority 0; }'"
    if dice.chance(2) and links and has(hook):
        text = f'table netdev early {{ chain in {{ type filter hook ingress device "{dice.one(links).name}" priority '
        draft.rest.append(("nft -f -", f"{text}{dice.number(-99, 99)}; }}; }}"))


def _table(dice: Dice, family: str, number: int, draft: Draft) -> Iterator[str]:
    kind, addresses = ("ipv6_addr", "fd77::{:x}") if family == "ip6" else ("ipv4_addr", "192.0.2.{}")
    word = "ip6" if family == "ip6" else "ip"
    size = dice.one([1, 7, 60])
    members = ", ".join(addresses.format(host) for host in range(1, size + 1))
    low, high = dice.number(1, 9999), dice.number(10001, 60000)
    yield f"table {family} random{number} {{"
    yield f"counter seen {{ packets {dice.number(0, 99)} bytes {dice.number(0, 1 << 40)}; }}"
    yield f"quota much {{ over {dice.number(1, 99)} mbytes used {dice.number(1, 999)} kbytes; }}"
    yield f"limit slow {{ rate {dice.number(1, 99)}/second burst {dice.number(5, 9)} packets; }}"
    yield f"set members {{ type {kind}; {dice.one(['', 'counter;', 'size 999;'])} elements = {{ {members} }}; }}"
    yield f"set spans {{ type inet_service; flags interval; elements = {{ {low}-10000, {high}-60001 }}; }}"
    yield f"set both {{ type {kind} . inet_service; elements = {{ {addresses.format(7)} . {low} }}; }}"
    if dice.chance(5):
        yield f"set empty {{ type {kind}; flags timeout,dynamic; timeout {dice.number(1, 99)}h; size 99; }}"
    yield f"map ways {{ type inet_service : verdict; elements = {{ {low} : accept, {high} : jump other }}; }}"
    yield f"map marks {{ type {kind} : mark; elements = {{ {addresses.format(9)} : {dice.number(0, 1 << 31)} }}; }}"
    yield f"chain other {{ counter packets {low} bytes {high}; }}"
    hook = dice.one(["input", "output", "forward", "prerouting", "postrouting"])
    yield f"chain base {{ type filter hook {hook} priority {dice.number(-300, 300)}; policy accept;"
    rules = [
        f"{word} saddr @members counter packets 7 bytes 99 drop",
        f"tcp dport @spans {word} daddr {addresses.format(3)} counter name seen drop",
        f'tcp dport vmap @ways comment "{dice.one(["a b", "$c", "é;"])}"',
        f"meta mark set {word} saddr map @marks",
        f'{word} saddr . tcp dport @both limit name slow log prefix "x y " group {dice.number(1, 9)}',
        f'iifname "{dice.one(draft.links).name}" {word} saddr {addresses.format(5)} quota name much drop',
        f"{word} daddr {{ {addresses.format(1)}, {addresses.format(99)} }} tcp flags syn / syn,rst accept",
        f"{word} saddr {addresses.format(8)} tcp dport {{ 1, 2, {low}-10000 }} mark set 0x{low:x}",
    ]
    yield from dice.some(rules, 5)
    yield "}; }"


def draw_ip_sets(dice: Dice, draft: Draft) -> None:
    """Sets of ipset; no times, which run."""
    if not has("ipset create one hash:ip") or not dice.chance(3):
        return
    lines = []
    for number in range(dice.number(1, 3)):
        options = dice.one(["", "counters", "comment", "maxelem 99"])
        lines.append(f"create set{number} hash:ip family inet {options}")
        lines += [f"add set{number} 192.0.2.{host}" for host in range(dice.number(0, 9))]
    draft.rest.append(("ipset restore", "\n".join(lines)))
