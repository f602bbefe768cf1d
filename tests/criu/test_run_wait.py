"""`ckpt run --wait` while the group that it waits for is dumped and restored, by a real CRIU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ckpt import registry
from ckpt.dump import dump_group
from ckpt.restore import restore_group
from ckpt.run import default_name
from ckpt.stop import stop_group
from tests.criu.groups import wait_for

CKPT = (sys.executable, "-c", "from ckpt.cli.main import main; main()")


def test_waiting_ckpt_ends_with_a_dump_and_leaves_the_restored_group_alone(
    directories: Path, unique: Callable[[str], str]
) -> None:
    name, image = unique("wait"), directories / "x.ckpt"
    waiting = subprocess.Popen(
        [*CKPT, "run", "--name", name, "--wait", "--", "sleep", "1000"], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: registry.find(name) is not None, "it runs")
    dump_group(name, image)
    _, words = waiting.communicate(timeout=60)
    assert (waiting.returncode, words) == (0, f"ckpt: {name} was dumped away; `ckpt restore` brings it back\n")
    restored = restore_group(image)
    assert registry.get(name).pid == restored.pid
    assert stop_group(name).signal == "SIGTERM"


def test_waiting_ckpt_goes_on_when_the_group_is_left_running(directories: Path) -> None:
    name, image = default_name("wait"), directories / "x.ckpt"
    waiting = subprocess.Popen([*CKPT, "run", "--name", name, "--wait", "--", "sleep", "1000"])
    wait_for(lambda: registry.find(name) is not None, "it runs")
    dump_group(name, image, leave_running=True)
    assert waiting.poll() is None
    waiting.terminate()
    assert waiting.wait(60) == 143
