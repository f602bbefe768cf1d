"""How a command ended that a test has run on a host, of whatever kind that is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """Its exit status, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed."""
        return json.loads(self.out)

    @property
    def error(self) -> Mapping[str, Any]:
        """The error that it printed with ``--json``."""
        found: Mapping[str, Any] = json.loads(self.err[self.err.index("{") :])["error"]
        return found
