"""What a bridge keeps in IFLA_INFO_DATA, and what it keeps of each of its ports in IFLA_INFO_SLAVE_DATA."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt.kernel.rtnl_codecs import BE16, MAC, RAISED_BITS, U8, U16, U32, U64, Table

BRIDGE: Table = {
    1: ("forward_delay", U32),
    2: ("hello_time", U32),
    3: ("max_age", U32),
    4: ("ageing_time", U32),
    5: ("stp_state", U32),
    6: ("priority", U16),
    7: ("vlan_filtering", U8),
    8: ("vlan_protocol", BE16),
    9: ("group_fwd_mask", U16),
    10: ("root_id", None),
    11: ("bridge_id", None),
    12: ("root_port", None),
    13: ("root_path_cost", None),
    14: ("topology_change", None),
    15: ("topology_change_detected", None),
    16: ("hello_timer", None),
    17: ("tcn_timer", None),
    18: ("topology_change_timer", None),
    19: ("gc_timer", None),
    20: ("group_addr", MAC),
    22: ("mcast_router", U8),
    23: ("mcast_snooping", U8),
    24: ("mcast_query_use_ifaddr", U8),
    25: ("mcast_querier", U8),
    26: ("mcast_hash_elasticity", None),  # a constant of 16 since Linux 5.1
    27: ("mcast_hash_max", U32),
    28: ("mcast_last_member_cnt", U32),
    29: ("mcast_startup_query_cnt", U32),
    30: ("mcast_last_member_intvl", U64),
    31: ("mcast_membership_intvl", U64),
    32: ("mcast_querier_intvl", U64),
    33: ("mcast_query_intvl", U64),
    34: ("mcast_query_response_intvl", U64),
    35: ("mcast_startup_query_intvl", U64),
    36: ("nf_call_iptables", U8),
    37: ("nf_call_ip6tables", U8),
    38: ("nf_call_arptables", U8),
    39: ("vlan_default_pvid", U16),
    40: ("pad", None),
    41: ("vlan_stats_enabled", U8),
    42: ("mcast_stats_enabled", U8),
    43: ("mcast_igmp_version", U8),
    44: ("mcast_mld_version", U8),
    45: ("vlan_stats_per_port", U8),
    46: ("multi_boolopt", RAISED_BITS),
    47: ("mcast_querier_state", None),
    48: ("fdb_n_learned", None),
    49: ("fdb_max_learned", U32),
}

BRIDGE_PORT: Table = {
    1: ("state", None),
    2: ("priority", U16),
    3: ("cost", U32),
    4: ("mode", U8),
    5: ("guard", U8),
    6: ("protect", U8),
    7: ("fast_leave", U8),
    8: ("learning", U8),
    9: ("unicast_flood", U8),
    10: ("proxyarp", U8),
    11: ("learning_sync", U8),
    12: ("proxyarp_wifi", U8),
    13: ("root_id", None),
    14: ("bridge_id", None),
    15: ("designated_port", None),
    16: ("designated_cost", None),
    17: ("id", None),
    18: ("no", None),
    19: ("topology_change_ack", None),
    20: ("config_pending", None),
    21: ("message_age_timer", None),
    22: ("forward_delay_timer", None),
    23: ("hold_timer", None),
    25: ("multicast_router", U8),
    26: ("pad", None),
    27: ("mcast_flood", U8),
    28: ("mcast_to_ucast", U8),
    29: ("vlan_tunnel", U8),
    30: ("bcast_flood", U8),
    31: ("group_fwd_mask", U16),
    32: ("neigh_suppress", U8),
    33: ("isolated", U8),
    34: ("backup_port", U32),
    35: ("mrp_ring_open", None),
    36: ("mrp_in_open", None),
    37: ("mcast_eht_hosts_limit", U32),
    38: ("mcast_eht_hosts_cnt", None),
    39: ("locked", U8),
    40: ("mab", U8),
    41: ("mcast_n_groups", None),
    42: ("mcast_max_groups", U32),
    43: ("neigh_vlan_suppress", U8),
    44: ("backup_nhid", U32),
}

BRIDGE_PORT_NUMBER = 18

PORT_NUMBER = 18

LACKED: Mapping[str, str] = {
    "vlan_protocol": "33024",
    "vlan_default_pvid": "1",
}
"""What a bridge does in a kernel that does not know an option, where that is not the same as 0."""

LACKED_BY_PORTS: Mapping[str, str] = {
    "mcast_eht_hosts_limit": "512",
    "mcast_flood": "1",
    "bcast_flood": "1",
    "unicast_flood": "1",
    "learning": "1",
    "multicast_router": "1",
}
"""The same of its ports."""
