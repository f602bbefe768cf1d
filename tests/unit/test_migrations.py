"""What the source's record decides, in every state that it can be found in, and how records are kept."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt import migrations, registry
from ckpt.errors import NotFoundError, RefusedError, StorageError
from ckpt.migrations import Migration, Role, State, Task

GONE = Task(pid=2**22 - 1, start_time=1)
ID = "0123456789ab"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(migrations, "IMAGES", tmp_path)
    return tmp_path


def living() -> Task:
    return Task(pid=os.getppid(), start_time=registry.start_time(os.getppid()) or 0)


def record(
    state: State = State.PREPARED, *, owner: Task = GONE, root: Task | None = GONE, role: Role = Role.SOURCE
) -> Migration:
    made = Migration(id=ID, role=role, state=state, group="web", peer="b", owner=owner, root=root)
    migrations.store(made)
    return made


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize(
    ("state", "go"), [(State.COMMITTED, True), (State.DONE, True), (State.ROLLED_BACK, False)], ids=str
)
def test_decide_what_was_decided_stays(state: State, go: bool, holds: bool) -> None:
    record(state)
    assert migrations.decide(ID, holds=holds)[0] is go
    assert migrations.get(ID).state is state


@pytest.mark.parametrize("holds", [True, False])
def test_decide_prepared_group_that_lives_stays_with_the_source(holds: bool) -> None:
    record(root=living())
    assert migrations.decide(ID, holds=holds)[0] is False
    assert migrations.get(ID).state is State.ROLLED_BACK


def test_decide_prepared_group_that_is_dead_is_committed_to_a_target_that_holds_it() -> None:
    record()
    assert migrations.decide(ID, holds=True)[0] is True
    assert migrations.get(ID).state is State.COMMITTED


def test_decide_prepared_group_that_is_dead_and_held_by_nobody_is_rolled_back() -> None:
    record()
    assert migrations.decide(ID, holds=False)[0] is False
    assert migrations.get(ID).state is State.ROLLED_BACK


def test_decide_of_another_boot_does_not_take_a_pid_for_the_group() -> None:
    migrations.store(replace(record(root=living()), boot="another"))
    assert migrations.decide(ID, holds=True)[0] is True


def test_decide_while_its_ckpt_works_is_refused() -> None:
    record(owner=living(), root=living())
    with pytest.raises(RefusedError) as caught:
        migrations.decide(ID, holds=True)
    assert caught.value.code == "migration-under-way"
    assert migrations.get(ID).state is State.PREPARED


def test_decide_unknown_migration_is_not_found() -> None:
    with pytest.raises(NotFoundError):
        migrations.decide(ID, holds=True)


def test_tell_the_first_verdict_counts() -> None:
    assert migrations.verdict(ID) is None
    migrations.tell(ID, go=True)
    migrations.tell(ID, go=False)
    assert migrations.verdict(ID) is True


def test_forget_removes_the_record_and_its_verdict(place: Path) -> None:
    record(State.READY, role=Role.TARGET)
    migrations.tell(ID, go=False)
    migrations.forget(ID, Role.TARGET)
    assert list((place / "migrations").iterdir()) == []


def test_store_find_is_the_same_record(place: Path) -> None:
    made = replace(record(), tasks=(GONE, living()), image=str(place / "x.ckpt"))
    migrations.store(made)
    assert migrations.find(ID, Role.SOURCE) == made
    assert migrations.migrations() == (made,)
    assert made.whole_image is None
    (place / "x.ckpt").touch()
    assert made.whole_image == place / "x.ckpt"


def test_find_damaged_record_is_told(place: Path) -> None:
    record()
    (place / "migrations" / f"{ID}.source.json").write_text('{"id": 1}')
    with pytest.raises(StorageError) as caught:
        migrations.find(ID, Role.SOURCE)
    assert caught.value.code == "migration-damaged"


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "0123456789AB", "0123456789abc"])
def test_find_what_is_no_id_finds_nothing(name: str) -> None:
    assert migrations.find(name, Role.SOURCE) is None


def test_tell_what_is_no_id_is_refused() -> None:
    with pytest.raises(NotFoundError):
        migrations.tell("../x", go=True)


def test_end_committed_leaves_what_is_not_committed_alone() -> None:
    record(State.ROLLED_BACK, root=living())
    assert migrations.end_committed() == ()
