"""Groups in IP-set contexts, dumped and restored: their streams go on, and they are as confined as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ckpt import context
from ckpt.kernel import outside
from ckpt.model.process import Isolation
from tests.criu.capture import capturing
from tests.criu.context_groups import ROUNDS
from tests.criu.groups import Starter


@pytest.fixture(autouse=True)
def _nothing_of_contexts_stays() -> Iterator[None]:
    before = {(one.ifname, one.address) for one in outside.addresses()}
    yield
    for name in context.names():
        context.discard(name)
    after = {(one.ifname, one.address) for one in outside.addresses() if not one.ifname.startswith("br")}
    assert after == {one for one in before if not one[0].startswith("br")}


def test_round_trip_streams_on_every_address_go_on(start: Starter, stack: ExitStack) -> None:
    pairs = (start.segment.addresses(), start.segment.addresses())
    texts = tuple(text for pair in pairs for text in pair)
    group = start.stream_server(isolation=Isolation.IPSET, addresses=texts)
    plain = [address for pair in pairs for address in (pair.v4, pair.v6)]
    streams = [stack.enter_context(group.stream(address)) for address in plain]
    for stream in streams:
        stream.progress()
    with capturing() as capture:
        for _ in range(ROUNDS):
            group.dump()
            assert context.names() == ()
            group.restore()
            for stream in streams:
                stream.progress()
        assert capture.betrayals(*plain) == []
    for stream in streams:
        stream.finish()
