"""The face of ckpt: exit statuses, errors as text and JSON, help, and what is loaded at start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import ckpt
from ckpt import errors, registry
from ckpt.cli import main, ps, render, status
from ckpt.cli.options import Target
from ckpt.errors import CkptError, NotFoundError, RefusedError
from ckpt.model.finding import Finding, Severity
from ckpt.registry import GroupEntry

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CKPT_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested needs root only for what root usually owns, and here nothing is."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make ``ckpt ps`` raise ``error``."""

    @click.command
    def command() -> None:
        raise error

    monkeypatch.setattr(ps, "command", command)


def entry(name: str = "web", pid: int | None = None) -> GroupEntry:
    root = os.getpid() if pid is None else pid
    started = registry.start_time(root) or 0
    return GroupEntry(name=name, pid=root, start_time=started, isolation="netns", command=("nginx", "-g", "x y"))


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]])
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from ckpt.cli.main import invoke\n"
        f"assert invoke({arguments}) == 0\n"
        "heavy = {'pyroute2', 'rich', 'google', 'msgpack', 'zstandard', 'asyncio'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)


def test_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(main.cli, ["--version"])
    assert result.output == f"ckpt {ckpt.__version__}\n"


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(main.cli, [name, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: cli {name} ")
    assert "--json" in result.output


def test_every_option_is_documented() -> None:
    sections = dict(part.split("\n", 1) for part in (DOCS / "commands.md").read_text().split("\n## ")[1:])
    assert list(sections) == list(main.COMMANDS)
    for name, section in sections.items():
        command = main.cli.get_command(click.Context(main.cli), name)
        assert command is not None
        words = [word for option in command.params for word in option.opts if isinstance(option, click.Option)]
        own = set(words) - {"--json", "-v", "--verbose", "--criu"}
        assert sorted(word for word in own if word not in section) == [], name


def test_exit_statuses_are_distinct_and_documented() -> None:
    rows = status.table()
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CkptError)]
    assert [(number, name) for number, name, _ in rows] == sorted((kind.status, kind.__name__) for kind in classes)
    page = (DOCS / "exit-status.md").read_text()
    listed = [line for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert listed[1:] == [f"| {number} | `{name}` | {meaning} |" for number, name, meaning in rows]


def test_invoke_prints_brief_details_and_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, NotFoundError("no such thing", code="thing-missing", details="one\ntwo", hint="look there"))
    assert main.invoke(["ps"]) == 4
    assert capsys.readouterr() == ("", "ckpt: no such thing\n  one\n  two\n  hint: look there\n")


def test_invoke_with_json_prints_the_same_fields(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, NotFoundError("no such thing", code="thing-missing", details="one", hint="look there"))
    assert main.invoke(["--json", "ps"]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {
        "error": {
            "brief": "no such thing",
            "code": "thing-missing",
            "details": "one",
            "hint": "look there",
            "status": 4,
        }
    }


def test_invoke_shows_control_characters_of_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, NotFoundError("no \x1b[2Jthing", code="thing-missing"))
    main.invoke(["ps"])
    assert capsys.readouterr().err == "ckpt: no \\x1b[2Jthing\n"


def test_invoke_lets_a_bug_show_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main.invoke(["ps"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (main.Terminated(signal.SIGTERM), 143),
        (main.Terminated(signal.SIGHUP), 129),
        (RefusedError("no", code="x"), 3),
    ],
)
def test_invoke_returns_a_status_of_its_own(
    error: BaseException, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, error)
    assert main.invoke(["ps"]) == expected


def test_sigterm_unwinds_before_it_ends() -> None:
    script = (
        "import click, os, signal, sys\n"
        "from ckpt.cli import main, ps\n"
        "@click.command\n"
        "def command():\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n"
        "    finally: print('undone', flush=True)\n"
        "ps.command = command\n"
        "sys.exit(main.invoke(['ps']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("undone\n", 143)


@pytest.mark.parametrize(
    ("arguments", "brief"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["ps", "--nonsense"], "No such option '--nonsense'"),
        (["run"], "Missing argument '[--] COMMAND [ARGUMENTS]...'"),
        (
            ["dump", "x", "--compress", "rar"],
            "Invalid value for '--compress': 'rar' is not one of 'zstd', 'lz4', 'none'",
        ),
    ],
)
def test_invoke_of_a_wrong_command_line_is_a_usage_error(
    arguments: list[str], brief: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.invoke([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "usage"
    assert error["brief"].startswith(brief.rstrip("."))


def test_a_json_option_of_the_command_that_is_run_is_not_ours() -> None:
    assert main._own(["run", "--", "x", "--json"]) == ["run"]


def test_commands_that_need_root_say_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for arguments in (
        ["ps"],
        ["run", "true"],
        ["stop", "x"],
        ["dump", "x"],
        ["restore", "x"],
        ["clean"],
        ["logs", "x"],
    ):
        assert main.invoke(["--json", *arguments]) == 7
        assert json.loads(capsys.readouterr().err)["error"]["code"] == "root-needed"


def test_closed_standard_output_is_not_an_error() -> None:
    script = "from ckpt.cli import main; main.main()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script, "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.usefixtures("as_root")
def test_ps_shows_running_and_exited_groups(capsys: pytest.CaptureFixture[str]) -> None:
    registry.add(entry("web"))
    registry.add(GroupEntry(name="old", pid=os.getpid(), start_time=1, isolation="none", command=("sh",)))
    assert main.invoke(["ps"]) == 0
    lines = [line.split(maxsplit=5) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["NAME", "PID", "STATE", "AGE", "ADDRESSES", "COMMAND"]
    assert [line[0:3] for line in lines[1:]] == [
        ["old", str(os.getpid()), "exited"],
        ["web", str(os.getpid()), "running"],
    ]
    assert lines[2][-1].endswith("nginx -g 'x y'")


@pytest.mark.usefixtures("as_root")
def test_ps_shows_a_dump_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    registry.add(entry("web"))
    with registry.Operation("dump", "web"):
        assert main.invoke(["ps", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["state"], shown["command"]) == ("web", "dump", ["nginx", "-g", "x y"])


@pytest.mark.usefixtures("as_root")
def test_stop_of_an_unknown_group_stops_none(capsys: pytest.CaptureFixture[str]) -> None:
    registry.add(GroupEntry(name="old", pid=os.getpid(), start_time=1, isolation="none"))
    assert main.invoke(["stop", "old", "new"]) == 4
    assert registry.find("old") is not None
    assert main.invoke(["stop", "old"]) == 0
    assert registry.find("old") is None
    assert capsys.readouterr().out == "old: had exited already\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "one\ntwo\nthree"),
        (["-n", "2"], "two\nthree"),
        (["-n", "9"], "one\ntwo\nthree"),
        (["-n", "0"], ""),
        (["-f", "-n", "1"], "three"),
    ],
)
@pytest.mark.usefixtures("as_root")
def test_logs_prints_the_last_lines(
    arguments: list[str], expected: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\nthree")
    registry.add(GroupEntry(name="old", pid=os.getpid(), start_time=1, isolation="none", log=str(log)))
    assert main.invoke(["logs", "old", *arguments]) == 0
    assert capfdbinary.readouterr().out.decode() == expected


@pytest.mark.usefixtures("as_root")
def test_logs_counts_lines_across_blocks(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"%07d" % number + b"x" * 1000 + b"\n" for number in range(1000)))
    registry.add(GroupEntry(name="old", pid=os.getpid(), start_time=1, isolation="none", log=str(log)))
    assert main.invoke(["logs", "old", "-n", "300"]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert [int(line[:7]) for line in lines] == list(range(700, 1000))


@pytest.mark.usefixtures("as_root")
def test_logs_of_a_log_that_is_gone_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gone"
    registry.add(GroupEntry(name="old", pid=os.getpid(), start_time=1, isolation="none", log=str(path)))
    assert main.invoke(["logs", "old"]) == 4
    assert capsys.readouterr().err == f"ckpt: the log of old is gone\n  {path}\n"


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize(
    ("content", "status", "code"),
    [(None, 4, "image-missing"), (b"PK\3\4", 6, "image-not-ckpt"), (b"", 6, "image-truncated")],
)
def test_image_commands_refuse_what_is_no_image(
    command: str, content: bytes | None, status: int, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.ckpt"
    if content is not None:
        path.write_bytes(content)
    assert main.invoke(["--json", command, str(path)]) == status
    assert json.loads(capsys.readouterr().err)["error"]["code"] == code


@pytest.mark.parametrize(
    ("text", "target"), [("71", 71), ("web", "web"), ("7up", "7up"), ("-1", "-1"), ("٣", "٣"), ("²", "²")]
)
def test_target_takes_digits_for_a_pid(text: str, target: str | int) -> None:
    assert Target().convert(text, None, None) == target


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10 * 1024, "10 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (1 << 50, "1024 TiB"),
    ],
)
def test_size_reads_well(count: int, shown: str) -> None:
    assert render.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0123, "12.3 ms"), (1.5, "1.50 s"), (90, "2 min"), (7200, "2 h"), (200000, "2 d")]
)
def test_duration_reads_well(seconds: float, shown: str) -> None:
    assert render.duration(seconds) == shown


def test_table_aligns_and_shows_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(("NAME", ">SIZE"), [("a\x1b[31m", 5), ("long name", 12345)])
    assert capsys.readouterr().out == "NAME        SIZE\na\\x1b[31m      5\nlong name  12345\n"


def test_findings_are_shown_gravest_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        Finding(severity=Severity.OK, code="a", subject="tini", reason="there"),
        Finding(severity=Severity.BLOCK, code="b", subject="nft", reason="missing", remedy="install it"),
    ]
    render.findings(found)
    assert capsys.readouterr().out == "block  nft: missing\n       → install it\nok     tini: there\n"


def test_package_offers_its_functions_lazily() -> None:
    script = "import ckpt, sys; loaded = [n in sys.modules for n in ('ckpt.registry',) for _ in (0,)]; ckpt.groups"
    script += "; assert loaded == [False] and 'ckpt.registry' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert set(ckpt.__all__) <= set(dir(ckpt))
    assert all(getattr(ckpt, name) is not None for name in ckpt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ckpt.nonsense
