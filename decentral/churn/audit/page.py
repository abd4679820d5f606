"""report.html: one self-contained page that shows a run under faults, and what did not hold."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from string import Template
from typing import TYPE_CHECKING

from decentral.churn.audit.page_script import SCRIPT, STYLE

if TYPE_CHECKING:
    from decentral.churn.audit.report import Report

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>churn, seed $seed: $verdict</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>$style</style></head><body>
<h1>Churn, seed $seed: <span class="$mood">$verdict</span></h1>
<p class="dim">$says</p>
<div id="facts">$facts</div>
$violations
<h2>Peers, rounds and faults</h2>
<div id="bar"><button id="in">+</button><button id="out">−</button><button id="fit">fit</button>
<span class="dim">Ctrl+wheel zooms, drag pans, point at anything for details</span></div>
<div id="view"><div id="names"></div><div id="time"></div></div>
<p id="legend"></p>
<div id="charts"><div><h2>Goodput</h2><div id="curve"></div></div>
<div><h2>Recovery</h2><div id="recovery"></div>
<p class="dim">from a fault that left a quorum to the next commit, beyond a round's period</p></div>
</div>
<h2>Leaks</h2>
<p>$leaks</p>
<h2>What the verdict rests on</h2>
<p>$checked</p>
<div id="tip"></div>
<script type="application/json" id="data">$data</script>
<script>$script</script>
</body></html>
""")


def page(report: Report) -> str:
    """The page as text: no file and no network beside it."""
    broken = sum(report.counts.values())
    return PAGE.substitute(
        seed=escape(str(report.seed)),
        verdict=f"{broken} violation{'s' if broken > 1 else ''}" if broken else "all held",
        mood="bad" if broken else "good",
        says=escape(report.verdict),
        facts="".join(
            f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>"
            for name, value in _facts(report)
        ),
        violations=_violations(report),
        leaks=escape(_leaks(report)),
        checked=escape(_checked(report)),
        data=_data(report),
        style=STYLE,
        script=SCRIPT,
    )


def _facts(report: Report) -> Iterable[tuple[str, str]]:
    recovery, good = report.recovery_s, report.goodput
    yield "peers", str(report.peers)
    yield "duration", f"{report.seconds:.0f} s"
    yield "rounds committed", f"{report.rounds:,}"
    yield "rounds undone", str(report.undone)
    yield "lineages", str(report.lineages)
    yield "faults", str(sum(report.faults.values()))
    yield "longest commit gap with a quorum", f"{report.longest_commit_gap_s:.2f} s"
    if recovery["count"]:
        yield "recovery p50", f"{recovery['p50']:.2f} s"
        yield "recovery p99", f"{recovery['p99']:.2f} s"
        yield "recovery at most", f"{recovery['max']:.2f} s"
    if good.ratio is not None:
        yield "goodput of an undisturbed run's", f"{good.ratio:.1%}"
    yield "useful samples per second", f"{good.samples_per_s:.1f}"


def _violations(report: Report) -> str:
    if not report.violations:
        return ""
    rows = []
    for one in report.violations:
        at = None if one.at is None else one.at - report.began_at
        place = f' data-at="{at:.3f}"' if at is not None else ""
        when = f"{at:.2f} s" if at is not None else "–"
        cells = (when, one.invariant, one.peer or "", one.says)
        rows.append(f"<tr{place}>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    more = sum(report.counts.values()) - len(rows)
    if more:
        rows.append(f'<tr><td colspan="4">and {more} more</td></tr>')
    return (
        '<h2 class="bad">Violations</h2><div id="wrong"><table><thead><tr><th>time</th>'
        "<th>invariant</th><th>peer</th><th>what</th></tr></thead><tbody>"
        + "\n".join(rows)
        + "</tbody></table></div>"
    )


def _leaks(report: Report) -> str:
    leaks = report.leaks
    judged = f"{leaks['judged']} of {leaks['processes']} processes lived long enough to be judged"
    words = [
        f"{what} of {one['peer']} went from {one['first']:.0f} to {one['last']:.0f} in "
        f"{one['seconds']:.0f} s"
        for what, one in leaks["worst"].items()
        if one is not None
    ]
    trends = [
        f"{what} {one['per_hour']:+.0f} ({one['growing']:.0%} of {one['processes']} processes grew)"
        for what, one in leaks["trends"].items()
        if one["processes"]
    ]
    found = f"{judged}; {len(leaks['found'])} leak(s)."
    if words:
        found += f" Most growth: {'; '.join(words)}."
    return found + (f" Median growth per hour: {'; '.join(trends)}." if trends else "")


def _checked(report: Report) -> str:
    checked = dict(report.checked)
    unchecked = checked.pop("sums_unchecked")
    parts = [f"{value:,} {name.replace('_', ' ')}" for name, value in checked.items()]
    parts += [f"{many} sums not checked: {why}" for why, many in unchecked.items()]
    return "; ".join(parts) + f"; a healthy quorum for {report.healthy_s:.0f} s."


def _data(report: Report) -> str:
    """Everything that is drawn; no `<` is left, so that no text can end the script element."""
    good = report.goodput
    data = {
        **asdict(report.records),
        "goodput": [
            round(good.began_at - report.began_at, 3),
            good.bin_s,
            good.calm_samples_per_s,
            good.curve,
        ],
        "violations": [
            [None if one.at is None else round(one.at - report.began_at, 3), one.invariant,
             one.says, one.peer or ""]
            for one in report.violations
        ],
    }  # fmt: skip
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
