"""What all tests share: the lab they run in, ``require`` for what a machine may lack, and random names.

``tests/unit`` runs anywhere; ``tests/net`` and ``tests/criu`` need root and run in the lab (see ``tests/lab.py``).
A test that needs something the machine may lack asks ``require``: missing, it is a skip for a developer and a failure
in CI (``CI=true``), so that no test can silently stop running.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests import lab

# What fails in a module that tests share is to be told as fully as in a test.
pytest.register_assert_rewrite("tests.criu", "tests.hosts", "tests.net")

_NEEDS_LAB = {"net", "criu", "hosts"}
# A process that was just told to end may still be on its way out.
_STRAY_SECONDS = 5.0

_why_no_lab: str | None = "not entered"

# How long an example takes says more about the machine than about what is tested.
settings.register_profile("ckpt", deadline=None)
settings.load_profile("ckpt")


def require(condition: bool, reason: str) -> None:
    """Go on only if ``condition``: otherwise skip with ``reason``, or fail with it where ``CI=true``."""
    __tracebackhide__ = True
    if condition:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"required in CI: {reason}")
    pytest.skip(reason)


def random_name(prefix: str = "t") -> str:
    """A name that nothing else has, short enough for a link (15 bytes), a namespace, a group or an nft table."""
    name = f"{prefix}{secrets.token_hex(4)}"
    lab.given_names.add(name)
    return name


def pytest_configure(config: pytest.Config) -> None:
    """Enter the lab before anything is collected: later there may be threads, which would stay outside."""
    global _why_no_lab
    # In a network of its own a session reaches no machine.
    _why_no_lab = "these tests are for machines" if os.environ.get("CKPT_VM_HOSTS") else lab.enter()


def pytest_report_header(config: pytest.Config) -> str:
    return f"lab: {_why_no_lab or 'own network, mount and PID namespaces'}"


@pytest.fixture(autouse=True)
def _lab_where_needed(request: pytest.FixtureRequest) -> None:
    """Tests that change a network or freeze processes run in the lab or not at all, never on the host."""
    if _NEEDS_LAB.intersection(request.path.relative_to(request.config.rootpath).parts):
        require(_why_no_lab is None, f"no lab: {_why_no_lab}")


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail the session (as an error of its last test) if the tests left links, tables, mounts, cgroups or processes."""
    if _why_no_lab is not None:
        yield
        return
    before, known = lab.traces(), lab.strays()
    yield
    left = sorted(lab.traces() - before)
    strays = _wait_for_strays(known)
    left += sorted(lab.cgroups())
    left += [f"process {pid}: {command}" for pid, command in sorted(strays.items())]
    lab.kill(list(strays))
    assert not left, "the tests left behind:\n  " + "\n  ".join(left)


def _wait_for_strays(known: dict[int, str]) -> dict[int, str]:
    deadline = time.monotonic() + _STRAY_SECONDS
    while True:
        strays = {pid: command for pid, command in lab.strays().items() if pid not in known}
        if not strays or time.monotonic() > deadline:
            return strays
        time.sleep(0.05)


@pytest.fixture
def unique() -> Callable[[str], str]:
    """``unique("br")``: a random name with that prefix."""
    return random_name
