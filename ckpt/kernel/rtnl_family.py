"""The numbers by which rtnetlink names the families of addresses, and how far an address or a route reaches."""

from __future__ import annotations

INET = {4: 2, 6: 10}
VERSION = {2: 4, 10: 6}

SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_SCOPE_NUMBERS = {name: value for value, name in SCOPES.items()}


def scope_number(name: str) -> int:
    """The number of a scope; one without a name is named by its number."""
    return _SCOPE_NUMBERS[name] if name in _SCOPE_NUMBERS else int(name)
