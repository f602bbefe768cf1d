"""Records and maps: what is written, what is left out, and how what does not fit is named."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.errors import ImageError
from ckpt.image import schema, wire
from ckpt.image.defect import Place

PLACE = Place("a.ckpt")


class Kind(enum.StrEnum):
    VETH = "veth"
    BRIDGE = "bridge"


class Family(enum.IntEnum):
    INET = 2
    INET6 = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    ifname: str
    kind: Kind = Kind.VETH
    mtu: int = 1500
    mac: str | None = None
    up: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    links: tuple[Link, ...]
    family: Family
    frozen: float
    cookie: bytes
    parent: Link | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    by_name: Mapping[str, Link] = field(default_factory=dict)
    cidr: str = "10.0.0.1/8"

    def __post_init__(self) -> None:
        if "/" not in self.cidr:
            raise ValueError("cidr has no /")


FULL: dict[str, object] = {
    "links": [{"ifname": "eth0"}, {"ifname": "br0", "kind": "bridge", "mtu": 9000, "mac": "02:00:00:00:00:01"}],
    "family": 10,
    "frozen": 0.5,
    "cookie": b"\x00\xff",
    "parent": {"ifname": "lo", "up": False},
    "sysctls": {"a": "b"},
    "by_name": {"x": {"ifname": "x"}},
}


def test_decode_of_a_map_gives_the_record_and_encode_the_map() -> None:
    record = schema.decode(Everything, FULL, "network", PLACE)
    assert record == Everything(
        links=(Link(ifname="eth0"), Link(ifname="br0", kind=Kind.BRIDGE, mtu=9000, mac="02:00:00:00:00:01")),
        family=Family.INET6,
        frozen=0.5,
        cookie=b"\x00\xff",
        parent=Link(ifname="lo", up=False),
        sysctls={"a": "b"},
        by_name={"x": Link(ifname="x")},
    )
    assert schema.encode(record) == FULL


def test_encode_leaves_out_fields_that_hold_their_default() -> None:
    assert schema.encode(Link(ifname="eth0", mac=None, mtu=1500)) == {"ifname": "eth0"}


def test_decode_takes_an_int_where_a_float_is_declared() -> None:
    assert schema.decode(Everything, FULL | {"frozen": 3}, "network", PLACE).frozen == 3.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"links": [{"ifname": "a"}, {"ifname": "b", "mtu": "big"}]}, "links[1].mtu: expected int, got str"),
        ({"links": [{"ifname": "a", "mtu": True}]}, "links[0].mtu: expected int, got bool"),
        ({"links": [{"ifname": "a", "up": 1}]}, "links[0].up: expected bool, got int"),
        ({"links": [{"ifname": None}]}, "links[0].ifname: expected str, got nil"),
        ({"links": [{}]}, "links[0].ifname: missing"),
        ({"links": {}}, "links: expected array, got map"),
        ({"links": [[]]}, "links[0]: expected map, got array"),
        ({"links": [{"ifname": "a", "vlan": 4}]}, "links[0].vlan: unknown field"),
        ({"links": [{"ifname": "a", "kind": "vlan"}]}, "links[0].kind: 'vlan' is none of veth, bridge"),
        ({"family": 3}, "family: 3 is none of 2, 10"),
        ({"family": "2"}, "family: expected int, got str"),
        ({"frozen": "soon"}, "frozen: expected float, got str"),
        ({"cookie": "text"}, "cookie: expected bytes, got str"),
        ({"sysctls": {"a": 1}}, "sysctls['a']: expected str, got int"),
        ({"sysctls": {b"a": "1"}}, "sysctls: expected str as a key, got bytes"),
        ({"sysctls": []}, "sysctls: expected map, got array"),
        ({"by_name": {"x": {"ifname": 3}}}, "by_name['x'].ifname: expected str, got int"),
        ({"cidr": "10.0.0.1"}, ": cidr has no /"),
    ],
)
def test_decode_names_the_field_that_does_not_fit(change: dict[str, object], message: str) -> None:
    with pytest.raises(ImageError) as refused:
        schema.decode(Everything, FULL | change, "network", PLACE)
    assert refused.value.code == "image-field"
    phrase = "a.ckpt holds a record that this ckpt does not understand"
    assert str(refused.value) == f"{phrase}: network{'' if message[0] == ':' else '.'}{message}"


@dataclass(frozen=True)
class Ambiguous:
    value: int | str


@dataclass(frozen=True)
class Loose:
    value: list[int]


@pytest.mark.parametrize("record", [Ambiguous, Loose])
def test_decode_of_a_type_that_no_image_holds_is_a_bug(record: type) -> None:
    with pytest.raises(TypeError):
        schema.decode(record, {"value": 1}, "x", PLACE)


def test_encode_of_a_value_that_no_image_holds_is_a_bug() -> None:
    with pytest.raises(TypeError):
        schema.encode(Loose([1]))


_texts = st.text(st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
_links = st.builds(
    Link,
    ifname=_texts,
    kind=st.sampled_from(Kind),
    mtu=st.integers(-(2**63), 2**64 - 1),
    mac=st.none() | _texts,
    up=st.booleans(),
)
_records = st.builds(
    Everything,
    links=st.lists(_links, max_size=4).map(tuple),
    family=st.sampled_from(Family),
    frozen=st.floats(allow_nan=False),
    cookie=st.binary(),
    parent=st.none() | _links,
    sysctls=st.dictionaries(_texts, _texts),
    by_name=st.dictionaries(_texts, _links, max_size=3),
)


@settings(deadline=None)
@given(_records)
def test_record_comes_back_from_msgpack_as_it_went_in(record: Everything) -> None:
    packed = wire.pack(schema.encode(record))
    assert schema.decode(Everything, wire.unpack(packed, PLACE), "record", PLACE) == record


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*FULL, "other"]), _json))
def test_decode_of_any_map_gives_a_record_or_an_image_error(value: dict[str, object]) -> None:
    outcome = _outcome(lambda: schema.decode(Everything, FULL | value, "network", PLACE))
    if isinstance(outcome, ImageError):
        assert outcome.code == "image-field"
        assert str(outcome).startswith("a.ckpt holds a record that this ckpt does not understand: network")
    else:
        assert isinstance(outcome, Everything)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_unpack_of_any_bytes_gives_a_value_or_an_image_error(data: bytes) -> None:
    outcome = _outcome(lambda: wire.unpack(data, PLACE))
    if isinstance(outcome, ImageError):
        assert outcome.code in {"image-malformed", "image-limit"}
    else:
        assert repr(wire.unpack(wire.pack(outcome), PLACE)) == repr(outcome)


def _outcome(act: Callable[[], object]) -> object:
    try:
        return act()
    except ImageError as error:
        return error
