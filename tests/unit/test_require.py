"""``require`` must not let a test vanish: what is a skip for a developer is a failure in CI."""

from __future__ import annotations

import pytest

from tests.conftest import random_name, require


def test_require_condition_met_goes_on() -> None:
    require(True, "never said")


def test_require_condition_missing_skips_for_a_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"^needs a moon$"):
        require(False, "needs a moon")


def test_require_condition_missing_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"^required in CI: needs a moon$"):
        require(False, "needs a moon")


def test_random_name_fits_a_link() -> None:
    assert len(random_name("vethXX")) <= 15
    assert random_name() != random_name()
