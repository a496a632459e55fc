"""Names in an artifact folder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.request import job_root
from modelpress.store import layout


def test_the_layout_of_a_trial() -> None:
    """The paths of one trial are those of the contract."""
    root = job_root("default", "digits", "01234567-89ab-cdef-0123-456789abcdef")
    trial = layout.trial_prefix(root, 7)
    assert trial == "default/digits-01234567/trials/00007"
    attempt = layout.attempt_folder(2, "fedcba98-7654")
    assert layout.join(trial, attempt, layout.PROGRAM) == "default/digits-01234567/trials/00007/2-fedcba98/model.pt2"
    assert layout.checkpoint_prefix(trial) == "default/digits-01234567/trials/00007/checkpoint"
    assert layout.dense_prefix(root, "ab" * 32) == f"default/digits-01234567/dense/{'ab' * 32}"
    assert layout.best_folder(7, attempt) == "00007-2-fedcba98"


@given(st.integers(1, 999_999_999), st.text(alphabet="0123456789abcdefXYZ", min_size=1, max_size=40))
def test_attempt_folders_read_back(attempt: int, uid: str) -> None:
    """An attempt folder's name gives its attempt and uid again."""
    assert layout.parse_attempt(layout.attempt_folder(attempt, uid)) == (attempt, uid[:8])


@pytest.mark.parametrize(("attempt", "uid"), [(0, "abc"), (-1, "abc"), (1, ""), (1, "---"), (1, "a/b"), (1, "../x")])
def test_attempts_without_a_folder(attempt: int, uid: str) -> None:
    """An attempt below 1, or a uid that no path can hold, is a mistake of the caller."""
    with pytest.raises(ValueError, match="no attempt folder"):
        layout.attempt_folder(attempt, uid)


@pytest.mark.parametrize("name", ["checkpoint", "0-abc", "01-abc", "1-", "1-abcdefghi", "-1-a", "1-a/b", "1-a\n"])
def test_folders_that_are_no_attempts(name: str) -> None:
    """Other folders below a trial are not taken for attempts."""
    assert layout.parse_attempt(name) is None


@given(st.integers(0, 999_999_999))
def test_trial_folders_read_back(number: int) -> None:
    """A trial folder's name gives its number again, also above 99,999."""
    assert layout.trial_number(layout.trial_prefix("r", number).rpartition("/")[2]) == number


@pytest.mark.parametrize("name", ["7", "0007", "000007", "1234x", "", "00007\n", "-0007"])
def test_folders_that_are_no_trials(name: str) -> None:
    """Only the one spelling of a number is a trial's folder, so that no trial is counted twice."""
    assert layout.trial_number(name) is None


@pytest.mark.parametrize("digest", ["", "short", "a/b/c/d/e", "../../../../x", "x" * 129])
def test_digests_that_name_no_folder(digest: str) -> None:
    """A digest that could leave the folder is a mistake of the caller."""
    with pytest.raises(ValueError, match="not a digest"):
        layout.dense_prefix("r", digest)


def test_joining() -> None:
    """Empty parts vanish, so that an artifact can lie at the root of a store."""
    assert layout.join("", "manifest.json") == "manifest.json"
    assert layout.join("a/", "", "/b", "c") == "a/b/c"
    assert layout.join("") == ""
