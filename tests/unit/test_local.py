"""decentral.local: what it refuses. What it does is in tests/integration/test_local.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from decentral.copies import MARK, Copies, Origin, _how
from decentral.errors import ConfigError
from decentral.local_run import local

CALL = "from decentral.local_run import local; local(2, None, None, None)"


@pytest.mark.parametrize("n", [0, -1, 2.0, "2"])
def test_a_number_of_peers_is_wanted(n):
    with pytest.raises(ConfigError, match="local wants a number of peers"):
        local(n, None, None, None)


def test_a_script_is_wanted():
    done = subprocess.run(
        [sys.executable, "-P"], input=CALL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "not from a prompt or a notebook" in done.stderr


def test_a_mark_without_a_parent_is_named(monkeypatch):
    for mark in ("x", "987654"):
        monkeypatch.setenv(MARK, mark)
        with pytest.raises(ConfigError, match="unset it"):
            Origin.find()
        assert MARK not in os.environ
    assert Origin.find() is None


def test_ends_are_told_in_words():
    assert [_how(status) for status in (3, -9, -11, -64)] == [
        "ended with status 3",
        "was ended by SIGKILL",
        "was ended by SIGSEGV",
        "was ended by SIGRTMAX",
    ]


def test_without_copies_there_is_nothing_to_wait_for():
    copies = Copies()
    copies.start({}, "word", {})
    copies.call("go")
    copies.wait()
    copies.stop()
    assert copies.living == 0 and copies.failures() == {}
