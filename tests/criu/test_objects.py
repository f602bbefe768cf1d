"""What a process may hold beside connections: each kind of kernel object comes through unharmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.errors import RefusedError
from tests.criu.groups import Starter, python
from tests.criu.postgres import has_sys_resource
from tests.criu.programs.objects import FAMILIES

# Where CAP_SYS_RESOURCE is missing the processes of another user cannot be dumped, and it is said beforehand.
KEPT = sorted(FAMILIES.keys() - (set() if has_sys_resource() else {"credentials"}))


@pytest.mark.parametrize("family", KEPT)
def test_round_trip_keeps(start: Starter, tmp_path: Path, family: str) -> None:
    directory = tmp_path / "objects"
    directory.mkdir()
    group = start(python("objects.py", 7001, directory, *FAMILIES[family]))
    with group.segment.connect(group.addresses.v4, 7001) as control:
        assert control.recv(64) == b"ready\n"
        group.round_trip()
        control.sendall(b"check\n")
        assert control.recv(1 << 16).decode() == "ok"


@pytest.mark.skipif(has_sys_resource(), reason="with CAP_SYS_RESOURCE it is dumped, as is tested above")
def test_dump_of_another_users_process_is_refused_beforehand(start: Starter, tmp_path: Path) -> None:
    group = start(python("objects.py", 7001, tmp_path, "credentials"))
    with group.segment.connect(group.addresses.v4, 7001) as control:
        assert control.recv(64) == b"ready\n"
        with pytest.raises(RefusedError, match="CAP_SYS_RESOURCE") as refused:
            group.dump()
        assert refused.value.code == "capability-missing"
        control.sendall(b"check\n")
        assert control.recv(1 << 16).decode() == "ok"
