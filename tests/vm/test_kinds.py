"""What kernels of other machines have: each kind of link is copied there, the services of IPVS too, and counted."""

from __future__ import annotations

import re

import pytest

from tests.vm.machines import CHECKOUT, Host

# There it is a session like any other, in a lab of its own. To rewrite the assertions of all that is imported would
# take an emulated processor minutes: what they saw is among the variables that are shown.
PYTEST = (
    "env -u CKPT_VM_HOSTS /opt/ckpt/venv/bin/python -m pytest"
    " -q -p no:cacheprovider --timeout=600 --assert=plain --showlocals"
)
IPVS = "tests/net/test_filtering.py::test_ipvs_services_made_again_look_equal"
# Links that drivers of tunnels make in every namespace would be taken for what a test has left behind.
NO_FALLBACKS = "sysctl -w net.core.fb_tunnels_only_for_init_net"


def test_every_kind_of_link_that_the_machine_has_is_copied(
    hosts: list[Host], capsys: pytest.CaptureFixture[str]
) -> None:
    machine = hosts[0]
    machine.sh(f"{NO_FALLBACKS}=2")
    try:
        done = machine.run(f"cd {CHECKOUT} && {PYTEST} tests/net/test_every_kind.py {IPVS}", timeout=800)
    finally:
        machine.sh(f"{NO_FALLBACKS}=0")
    assert done.status == 0, done.out + done.err
    counted = re.findall(r"^(?:links|lacked|IPVS).*", done.out, re.MULTILINE)
    kinds = counted[1].split(", ")
    assert len(kinds) > 25
    with capsys.disabled():
        print(f"\nLinux {machine.sh('uname -r').strip()} copied {len(kinds)} kinds of links:", *counted, sep="\n  ")
