"""A run of eight real processes is cut in two, and healed (`decentral bench partition`)."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from decentral.bench import partition
from decentral.bench.lab import why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]


def cut(*args: str) -> tuple[dict[str, Any], dict[str, Any]]:
    parser = argparse.ArgumentParser()
    partition.add_arguments(parser)
    report = partition.measure(parser.parse_args(args))
    return report, report["results"][0]


def test_five_go_on_and_three_wait() -> None:
    report, result = cut("--sides", "5,3", "--cut-s", "12")
    assert report["held"], report
    assert result["first_alone_s"][0] < partition.DETECTION_S + 1, report
    assert result["first_alone_s"][1] is None, report


def test_two_halves_go_on_and_the_one_with_more_work_wins() -> None:
    report, result = cut("--sides", "4,4", "--cut-s", "16")
    assert report["held"], report["notes"]
    assert {"fork", "merge", "superseded"} <= set(result["faults"]) and result["kept"], result
    assert result["rounds_alone"][0] > result["rounds_alone"][1] > 0, report
