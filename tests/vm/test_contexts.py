"""IP-set contexts on kernels of other machines: the table of semantics, what is tried of the kernel, and the ways out.

`scripts/test --vm-matrix` has these run on each Debian's kernel. A session there is like any other (see test_kinds).
"""

from __future__ import annotations

import os
import re

import pytest

from tests.vm.machines import CHECKOUT, Host
from tests.vm.test_kinds import NO_FALLBACKS, PYTEST

SECONDS = 3000

MATRIX = os.environ.get("CKPT_VM_MATRIX")


@pytest.mark.skipif(not MATRIX, reason="only in the matrix: scripts/test --vm-matrix")
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("tests", ["test_context.py", "test_context_probe.py", "test_context_holes.py"])
def test_contexts_are_what_they_are_on_every_kernel(
    hosts: list[Host], capsys: pytest.CaptureFixture[str], tests: str
) -> None:
    machine = hosts[0]
    machine.sh(f"{NO_FALLBACKS}=2")
    try:
        done = machine.run(f"cd {CHECKOUT} && {PYTEST} -rs tests/net/{tests}", timeout=SECONDS)
    finally:
        machine.sh(f"{NO_FALLBACKS}=0")
    assert done.status == 0, done.out + done.err
    counted = re.findall(r"^(?:\d+ of \d+: .*|SKIPPED .*|\d+ passed.*)", done.out, re.MULTILINE)
    assert counted
    if tests == "test_context.py":
        assert "96 of 96: " in counted[0]
    with capsys.disabled():
        print(f"\nLinux {machine.sh('uname -r').strip()}, {tests}:", *counted, sep="\n  ")
