"""The oracle over anything that a script sets: the namespace, as records and as other tools show it, and its copy's."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ckpt.kernel import netns, rtnl
from ckpt.model.network import PAIRED, Network
from tests.net import spaces
from tests.net.spaces import assert_equal, comparable, fresh, restored, settle, shell


def works(script: str) -> bool:
    """Whether ``script`` succeeds in a fresh namespace: what this kernel lacks, it refuses."""
    with fresh() as space, netns.entered(space):
        return subprocess.run(["sh", "-ec", script], capture_output=True, check=False).returncode == 0


def need(script: str, what: str) -> None:
    """Skip where ``script`` fails in a fresh namespace that has a pair of veths, v0 and v1, both up."""
    pair = "ip link set lo up; ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up"
    if not works(f"{pair}\n{script}"):
        pytest.skip(f"this kernel does not have {what}: tested on the machines that do")


def shown_by(space: int, commands: Sequence[str]) -> dict[str, Any]:
    """What these commands print, as JSON where it is, without what cannot be equal; what fails shows why."""
    return {command: _shown(command, space) for command in commands}


# Counters, and what a driver without hardware says of it only where it was asked about.
_COUNTED = re.compile(
    r',"(?:direct_packets_stat|used_hw_stats|not_in_hw|ref|bind|rule_hit|success|packets)":(?:\d+|true|\[[^]]*\])'
)


def _shown(command: str, space: int) -> Any:
    printed = _COUNTED.sub("", shell(f"{command} 2>&1 || true", space))
    try:
        return _set(spaces._clean(json.loads(printed or "[]")))
    except json.JSONDecodeError:
        return printed.splitlines()


def _set(value: Any) -> Any:
    """Without the entries of bridges that were learnt from the wire, and the groups that protocols join."""
    if isinstance(value, dict):
        return {key: _set(item) for key, item in value.items()}
    return [_set(item) for item in value if not is_learnt(item)] if isinstance(value, list) else value


def is_learnt(value: Any) -> bool:
    """Whether a tool shows something that was learnt from the wire, or that a protocol joined."""
    if not isinstance(value, dict):
        return False
    # One that is older than the bridge's ageing time is stale until it is swept away.
    state, flags = value.get("state"), set(value.get("flags", []))
    learnt = "mac" in value and state in ("", "stale") and not {"self", "extern_learn"} & flags
    joined = str(value.get("mac", "")).startswith(("33:33", "01:00:5e")) and "self" in value.get("flags", [])
    return learnt or joined or value.get("state") == "temp"


@contextlib.contextmanager
def copied(group: int) -> Iterator[tuple[Network, int]]:
    """``group`` as records, and its copy; the original's attachment is gone before the copy comes."""
    settle(group)
    network = rtnl.read_network(group)
    for link in network.links:
        if link.counterpart and link.counterpart.place == "caller" and link.kind in PAIRED:
            shell(f"ip link del {link.counterpart.ifname}")
    with restored(network) as copy:
        settle(copy)
        yield network, copy


def assert_copy_equal(group: int, commands: Sequence[str] = ()) -> Network:
    """The copy of ``group`` equals it as records, and in the eyes of ``commands``; returns the records."""
    settle(group)
    before = shown_by(group, commands)
    with copied(group) as (network, copy):
        assert_equal(comparable(rtnl.read_network(copy)), comparable(network))
        assert_equal(shown_by(copy, commands), before)
    return network
