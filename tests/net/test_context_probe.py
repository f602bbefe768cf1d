"""`ckpt check` and contexts: each feature is tried, and a missing one is named with the Linux that has it."""

from __future__ import annotations

import errno
import lzma
import os
import struct
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt import hostcheck
from ckpt.kernel import bpf_calls, bpf_object, cgroup2, context_probe, context_steer
from ckpt.kernel.bpf_object import Code
from ckpt.model.finding import Finding, Severity
from tests.conftest import random_name
from tests.net import context_lab, spaces


def contexts() -> list[Finding]:
    return [one for one in hostcheck.check_host() if one.code.startswith("context")]


def test_every_feature_is_there_and_tried_without_a_trace() -> None:
    found = list(context_probe.features())
    assert [one.name for one in found if one.failure] == []
    assert {one.name for one in found} >= {
        f"programs of {section}" for section in bpf_object.KINDS if "floor/s" not in section
    }
    assert not bpf_calls.prog_query(1, bpf_object.KINDS["floor/steer"].attach)


def test_programs_for_the_other_byte_order_pass_the_verifier() -> None:
    """Written as this machine's kernel reads instructions. What they would do elsewhere this cannot tell."""
    (path,) = (path for order, path in bpf_object.PATHS.items() if order != sys.byteorder)
    other, own = bpf_object.parse(lzma.decompress(path.read_bytes())), bpf_object.built().order
    turned = replace(other, order=own, programs={name: _turned(code, own) for name, code in other.programs.items()})
    with ExitStack() as stack:
        maps = {name: bpf_calls.map_create(f"ckpt_{name}", shape) for name, shape in turned.maps.items()}
        for descriptor in maps.values():
            stack.callback(os.close, descriptor)
        for name in turned.programs:
            os.close(turned.load(name, maps))


def _turned(code: Code, order: str) -> Code:
    other = "<" if order == ">" else ">"
    instructions = b"".join(
        struct.pack(f"{order}BBhi", opcode, registers >> 4 | (registers & 15) << 4, offset, immediate)
        for opcode, registers, offset, immediate in struct.iter_unpack(f"{other}BBhi", code.instructions)
    )
    return replace(code, instructions=instructions)


def test_check_says_that_contexts_work_and_what_they_do_not_hide() -> None:
    first, *_ = contexts()
    assert (first.severity, first.subject) == (Severity.OK, "IP-set contexts")
    assert "can see every address" in first.reason


@pytest.mark.parametrize("delegated", [True, False])
def test_check_says_whether_root_may_leave(delegated: bool) -> None:
    with context_lab.boundaries(on=delegated):
        said = [one.reason for one in contexts() if one.code == "context-delegation"]
    assert any("out of its context" in one for one in said) is not delegated
    assert any("limit of its tasks" in one for one in said) is any(cgroup2.mount_points("cgroup"))


def test_missing_feature_is_named_with_the_kernel_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    load = bpf_calls.prog_load

    def old_kernel(name: str, kind: int, attach_type: int, code: bytes, license: str) -> int:
        if attach_type == bpf_object.KINDS["cgroup/sock_release"].attach:
            raise OSError(errno.EINVAL, "Invalid argument")
        return load(name, kind, attach_type, code, license)

    monkeypatch.setattr(bpf_calls, "prog_load", old_kernel)
    (finding,) = contexts()
    assert (finding.severity, finding.subject) == (Severity.WARN, "IP-set contexts: programs of cgroup/sock_release")
    assert finding.remedy.startswith("boot Linux 5.9")


def test_missing_ingress_leaves_contexts_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_steer, "attach", lambda *_: False)
    findings = contexts()
    assert [(one.severity, "first address alone" in one.reason) for one in findings][:2] == [
        (Severity.WARN, True),
        (Severity.OK, False),
    ]


@pytest.mark.parametrize(("others", "delegated"), [(True, True), (True, False), (False, True)])
def test_hierarchy_that_is_not_mounted_here_is_mounted_as_others_have_it(
    tmp_path: Path, others: bool, delegated: bool
) -> None:
    """In a mount namespace of the test's own, where it was unmounted; without ``others`` nobody is seen to have it.

    Mounted without a word it would be no boundary any more, for nobody. Where nobody has it, it becomes one.
    """
    place = tmp_path / random_name("c")
    script = (
        "from pathlib import Path\n"
        "from ckpt.errors import CkptError\n"
        "from ckpt.kernel import cgroup2, syscalls\n"
        "for path in list(cgroup2.mount_points('cgroup2')):\n"
        "    syscalls.umount2(str(path), syscalls.MNT_DETACH)\n"
        "try:\n"
        "    cgroup2.root()\n"
        "except CkptError as error:\n"
        "    print(error.code)\n"
        f"print(cgroup2.root(Path({str(place)!r})))\n"
        "print(cgroup2.root())\n"
    )
    (tmp_path / "script").write_text(script)
    own = "unshare --mount" if others else "unshare --mount --pid --fork --mount-proc"
    with context_lab.boundaries(on=delegated and others):
        said = spaces.shell(f"PYTHONPATH={Path(__file__).parents[2]} {own} {sys.executable} {tmp_path / 'script'}")
        assert cgroup2.is_delegated() is delegated
    assert said.split() == ["cgroup2-missing", str(place), str(place)]


def test_process_is_found_in_its_cgroup() -> None:
    path = cgroup2.of_process(os.getpid())
    assert path is not None
    assert path.startswith("/")
