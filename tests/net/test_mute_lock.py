"""A mute lock: a namespace that has an address and does not even answer for it."""

from __future__ import annotations

from ckpt.kernel import arp, lock
from ckpt.kernel.lock import NetworkLock, Scope
from tests.criu.segment import Segment
from tests.criu.segment import made as made_segment

SECONDS = 0.3


def answers(segment: Segment) -> tuple[bool, bool]:
    """Whether the client answers for its IPv4 and its IPv6 address, as the host asks."""
    return (
        arp.probe(None, segment.bridge, "10.77.0.2", SECONDS) is not None,
        arp.probe(None, segment.bridge, "fd77::2", SECONDS) is not None,
    )


def test_mute_lock_neither_arp_nor_neighbour_discovery_is_answered() -> None:
    with made_segment() as segment:
        assert answers(segment) == (True, True)
        mute = NetworkLock(segment.client, mute=True)
        mute.close(permanent=True)
        assert answers(segment) == (False, False)
        mute.release()
        assert answers(segment) == (True, True)
        assert lock.find(segment.client) == ()
        assert segment.in_client("nft", "list", "tables") == ""


def test_lock_that_is_not_mute_lets_the_namespace_answer_for_its_addresses() -> None:
    with made_segment() as segment, NetworkLock(segment.client) as closed:
        closed.close(permanent=True)
        assert answers(segment) == (True, True)


def test_lock_mutes_the_addresses_of_its_scope_and_no_others() -> None:
    with made_segment() as segment:
        segment.in_client("ip", "addr", "add", "10.77.0.3/24", "dev", "eth0")
        segment.in_client("ip", "addr", "add", "fd77::3/64", "dev", "eth0", "nodad")
        scope = Scope(mute=("10.77.0.3", "fd77::3"))
        with NetworkLock(segment.client, scope=scope) as closed:
            closed.close(permanent=True)
            assert answers(segment) == (True, True)
            assert [arp.probe(None, segment.bridge, one, SECONDS) for one in scope.mute] == [None, None]
        assert None not in [arp.probe(None, segment.bridge, one, SECONDS) for one in scope.mute]
        assert segment.in_client("nft", "list", "tables") == ""


def test_remove_takes_both_tables_of_a_mute_lock() -> None:
    with made_segment() as segment:
        mute = NetworkLock(segment.client, mute=True)
        mute.close()
        (name,) = mute.names
        lock.remove(segment.client, name)
        assert segment.in_client("nft", "list", "tables") == ""
