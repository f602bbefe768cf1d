"""Teams of a namespace as records: the options of each, as the ``team`` family of generic netlink has them.

Values are text: numbers as digits, switches as ``1`` and ``0``, programs as hexadecimal digits; ``NAME[NUMBER]`` is one
of an array. Ports that options name are numbers, as in the kernel. A team that is run by ``teamd`` has no more than
these in the kernel; what that daemon knows beside them is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamPort:
    """One port of a team."""

    ifname: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """One team, with its ports in their order."""

    ifname: str
    options: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[TeamPort, ...] = ()
