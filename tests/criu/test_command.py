"""The command: the life of a group by `ckpt` alone, as a program would read it and as a person would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import lab
from tests.criu.groups import python
from tests.criu.segment import Segment
from tests.criu.stream import Stream

CKPT = Path(sys.executable).with_name("ckpt")


def ckpt(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run([CKPT, *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def told(*arguments: object) -> Any:
    """What the command says as JSON."""
    done = ckpt(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_command_life_of_a_group(segment: Segment, directories: Path, unique: Callable[[str], str]) -> None:
    before = lab.traces()
    name, image, addresses = unique("g"), directories / "x.ckpt", segment.addresses()
    network = ["--link", segment.bridge, *(word for address in addresses for word in ("--address", address))]
    assert ckpt("run", "--name", name, *network, "--", *python("stream_server.py")).returncode == 0
    assert ckpt("ps", "--quiet").stdout == f"{name}\n"
    assert ckpt("exec", name, "--", "hostname").stdout == f"{name}\n"
    assert ckpt("exec", name, "--", "sh", "-c", "exit 7").returncode == 7
    with Stream(segment.connect(addresses.v4, 7000)) as stream:
        assert ckpt("logs", name).stdout == "ready\n"
        stream.progress()
        assert ckpt("check", name).returncode == 0
        assert told("dump", name, "-o", image)["connections"] == 1
        assert told("ps") == []
        assert ckpt("verify", image).returncode == 0
        shown = told("inspect", image)["checkpoint"]
        assert shown["group"]["name"] == name
        assert any(one["state"] == "established" for one in shown["sockets"])
        assert addresses.v4 in ckpt("inspect", image).stdout
        assert ckpt("check", image).returncode == 0
        assert ckpt("restore", image, "--dry-run").returncode == 0
        assert told("ps") == []
        assert told("restore", image)["connections"] == 1
        stream.progress()
        stream.finish()
    assert [one["name"] for one in told("ps")] == [name]
    assert ckpt("stop", name).returncode == 0
    assert told("ps") == []
    assert told("clean") == []
    assert lab.traces() == before


@pytest.mark.parametrize("json_asked", [True, False])
def test_command_failure_has_its_exit_status_and_message(directories: Path, json_asked: bool) -> None:
    image = directories / "x.ckpt"
    image.write_text("no image at all")
    done = ckpt("restore", image, *(["--json"] if json_asked else []))
    assert (done.returncode, done.stdout) == (6, "")
    brief, details = f"{image} is not a ckpt image", "header at byte 0: it begins with 6e 6f 20 69 6d 61"
    if json_asked:
        error = {"brief": brief, "code": "image-not-ckpt", "details": details, "hint": None, "status": 6}
        assert json.loads(done.stderr) == {"error": error}
    else:
        assert done.stderr == f"ckpt: {brief}\n  {details}\n"
