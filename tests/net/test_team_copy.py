"""The oracle for teams: what ``teamnl`` shows of one and its ports is equal in a copy."""

from __future__ import annotations

import pytest

from ckpt.model.travel import cannot_travel
from tests.net.oracle import assert_copy_equal, need
from tests.net.spaces import shell

PORTS = """ip link add pa address 02:00:00:00:00:0a type veth peer name wa; ip link set wa up
    ip link add pb address 02:00:00:00:00:0b type veth peer name wb; ip link set wb up
    ip link set pb master te0; ip link set pa master te0; ip link set te0 up
    index() { ip -o link show $1 | cut -d: -f1; }
    """
TEAMS = {
    "without-mode": "ip link add te0 type team; ip link set te0 alias empty",
    "round-robin": f"""ip link add te0 index 70 address 02:00:00:00:00:0c type team
        teamnl te0 setoption mode roundrobin; {PORTS} teamnl te0 setoption notify_peers_count 3""",
    "broadcast": f"ip link add te0 type team; teamnl te0 setoption mode broadcast; {PORTS}",
    "active-backup": f"""ip link add te0 type team; teamnl te0 setoption mode activebackup; {PORTS}
        teamnl te0 -p pa setoption priority 5; teamnl te0 -p pa setoption queue_id 2
        teamnl te0 setoption activeport $(index pa); teamnl te0 -p pb setoption enabled false
        teamnl te0 -p pa setoption user_linkup_enabled true; teamnl te0 -p pa setoption user_linkup true""",
    "load-balancing": f"""ip link add te0 type team; teamnl te0 setoption mode loadbalance; {PORTS}
        teamnl te0 setoption lb_tx_method hash_to_port_mapping; teamnl te0 setoption lb_stats_refresh_interval 70
        teamnl te0 -a 5 setoption lb_tx_hash_to_port_mapping $(index pb)""",
    "vlan-on-team": f"""ip link add te0 type team; teamnl te0 setoption mode roundrobin; {PORTS}
        ip link add link te0 name vl5 type vlan id 5; ip link set vl5 up; ip addr add 10.5.0.1/24 dev vl5""",
}
COMMANDS = ("ip -j -d link", "teamnl te0 options | grep -v _stats", "teamnl te0 ports", "ip -j addr")


@pytest.mark.parametrize("what", TEAMS)
def test_copy_of_team_is_equal(group: int, what: str) -> None:
    need(TEAMS[what], "teams, or teamnl")
    shell(TEAMS[what], group)
    network = assert_copy_equal(group, COMMANDS)
    lost = [] if what == "without-mode" else ["team-port-address"]
    assert [found.code for found in cannot_travel(network)] == lost
