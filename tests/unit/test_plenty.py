"""Records made in plenty are those that their own class makes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from ckpt.model.network import Address, Counterpart, Link, Route
from ckpt.model.plenty import in_plenty, replacing


def test_record_made_in_plenty_is_of_the_class_and_equal() -> None:
    made = in_plenty(Route)(destination="10.0.0.0/24", gateway="10.9.0.1", metrics={"mtu": 1400})
    assert type(made) is Route
    assert made == Route(destination="10.0.0.0/24", gateway="10.9.0.1", metrics={"mtu": 1400})
    assert made.family == 4


def test_record_made_in_plenty_is_frozen_and_hashable() -> None:
    made = in_plenty(Address)(ifname="v0", address="10.0.0.1/24")
    with pytest.raises(FrozenInstanceError):
        made.address = "10.0.0.2/24"  # type: ignore[misc]
    assert hash(made) == hash(Address(ifname="v0", address="10.0.0.1/24"))


def test_records_made_in_plenty_share_no_default() -> None:
    make = in_plenty(Route)
    assert make(destination="::/0").metrics is not make(destination="::/0").metrics


def test_record_made_in_plenty_without_a_field_that_it_needs_is_refused() -> None:
    with pytest.raises(TypeError, match="destination"):
        in_plenty(Route)(gateway="10.9.0.1")  # type: ignore[call-arg]


def test_replacing_is_what_dataclasses_do() -> None:
    link = Link(ifname="v0", kind="veth", ifindex=7, counterpart=Counterpart(ifname="v1"), options={"a": "1"})
    changed = replacing(Link)(link, mtu=1400, channels={"rx": 2})
    assert changed == replace(link, mtu=1400, channels={"rx": 2})
    assert type(changed) is Link
    assert link.mtu == 0
