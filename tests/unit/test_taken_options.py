"""What a kernel did not take of a link's options, and what it need not have taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.kernel.rtnl_taken import untaken
from ckpt.model.network import Link

VXLAN = Link(ifname="x0", kind="vxlan", options={"id": "5", "localbypass": "1", "reserved_bits": "f7ffffff000000ff"})
PORT = Link(ifname="p0", kind="veth", master="br1", port_options={"cost": "7", "backup_nhid": "5", "learning": "1"})


def test_what_is_there_is_taken() -> None:
    assert list(untaken(VXLAN, VXLAN)) == []


def test_another_value_is_told() -> None:
    now = replace(VXLAN, options={**VXLAN.options, "id": "6"})
    assert list(untaken(VXLAN, now)) == ["id is 6 and not 5"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"localbypass": "0"}, ["localbypass 0 is not known to this kernel"]),
        ({"localbypass": "1"}, []),  # a kernel without it does so always
        ({"label_policy": "0"}, []),
        ({"label_policy": "1"}, ["label_policy 1 is not known to this kernel"]),
        ({"gbp": "1", "reserved_bits": "77000000000000ff"}, []),
        (
            {"reserved_bits": "f7ffffff00000000"},
            ["reserved_bits f7ffffff00000000 is not known to this kernel"],
        ),
    ],
)
def test_an_option_that_a_kernel_lacks_is_told_where_it_says_something(
    options: dict[str, str], told: list[str]
) -> None:
    now = {name: value for name, value in options.items() if name == "gbp"}
    found = untaken(replace(VXLAN, options=options), replace(VXLAN, options=now))
    assert list(found) == told


def test_options_of_a_port_are_looked_for_once_it_has_joined() -> None:
    bare = replace(PORT, port_options={"cost": "7"})
    assert list(untaken(PORT, replace(bare, master=""), master_kind="bridge")) == []
    assert list(untaken(PORT, bare, master_kind="bridge")) == ["backup_nhid 5 is not known to this kernel"]


def test_limit_that_a_kernel_lacks_is_told_where_it_was_changed() -> None:
    link = Link(ifname="x0", kind="veth", limits={"gso_max_segs": 65535, "gro_ipv4_max_size": 70000})
    assert list(untaken(link, Link(ifname="x0", kind="veth"))) == ["gro_ipv4_max_size is 65536 and not 70000"]
