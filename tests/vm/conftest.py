"""Tests on machines of their own, with kernels of their own: collected only where CKPT_VM_HOSTS names some.

``scripts/test --vm`` makes them, runs these tests, and removes them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.vm.machines import HOSTS, TEST_SECONDS, Client, Host, Machines
from tests.vm.moving import Group

if not HOSTS:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What an emulator runs takes longer than the other tests may."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session")
def hosts() -> Iterator[list[Host]]:
    """All machines that there are."""
    # The path of a socket has to be short.
    with tempfile.TemporaryDirectory(prefix="vm-", dir="/tmp") as place:
        found = []
        for name in HOSTS:
            host = Host(name, "", Path(place))
            address = host.sh("ip -4 -o address show dev br0").split()[3].partition("/")[0]
            found.append(Host(name, address, Path(place)))
        yield found
        for host in found:
            host.hang_up()


@pytest.fixture(scope="session")
def machines(hosts: list[Host]) -> Machines:
    """Hosts A and B, and the client C."""
    require(len(hosts) > 2, f"two hosts and a client are needed, there is {' and '.join(HOSTS)}")
    return Machines(*hosts[:3])


@pytest.fixture(scope="session")
def _traces(hosts: list[Host]) -> dict[str, list[str]]:
    """What there is on the machines, since the last test looked."""
    return {host.name: host.traces() for host in hosts}


@pytest.fixture(autouse=True)
def _nothing_stays_on_the_machines(hosts: list[Host], _traces: dict[str, list[str]]) -> Iterator[None]:
    """Each test leaves its machines as it found them."""
    before = dict(_traces)
    yield
    _traces |= {host.name: host.traces() for host in hosts}
    left = {name: sorted(set(found) - set(before[name])) for name, found in _traces.items()}
    assert not any(left.values()), f"left behind: {left}"


@pytest.fixture
def run(machines: Machines) -> Iterator[Callable[..., Group]]:
    """``run(…)`` starts a group on A, which is ended wherever it is by then."""
    made: list[Group] = []

    def start(*command: str, **options: object) -> Group:
        group = Group.started(machines, *command, **options)  # type: ignore[arg-type]
        made.append(group)
        return group

    yield start
    for group in made:
        group.end()


@pytest.fixture
def client(machines: Machines) -> Iterator[Callable[..., Client]]:
    """``client(program, …)`` runs one on C; after the test none is left."""
    made: list[Client] = []

    def start(program: str, *words: object) -> Client:
        made.append(Client(machines.c, program, *words))
        return made[-1]

    yield start
    for one in made:
        one.kill()
