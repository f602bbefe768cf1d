"""What a process may hold beside connections: each kind of kernel object comes through unharmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.criu.groups import Starter, python
from tests.criu.programs.objects import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_keeps(start: Starter, tmp_path: Path, family: str) -> None:
    directory = tmp_path / "objects"
    directory.mkdir()
    group = start(python("objects.py", 7001, directory, *FAMILIES[family]))
    with group.segment.connect(group.addresses.v4, 7001) as control:
        assert control.recv(64) == b"ready\n"
        group.round_trip()
        control.sendall(b"check\n")
        assert control.recv(1 << 16).decode() == "ok"
