"""One self-contained page that shows a recorded run: lanes of peers below what happened to them.

Records become JSON inside the page; a small script draws them as SVG at the zoom asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple
from html import escape
from pathlib import Path
from string import Template

from decentral.errors import DiskError
from decentral.simulator.recorder import Recorder
from decentral.simulator.scenarios import Report
from decentral.simulator.trace_script import SCRIPT, STYLE

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>seed $seed: $verdict</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>$style</style></head><body>
<h1>Seed $seed <span class="$mood">$verdict</span></h1>
<p>$facts</p>
<p>Replay: <code>$command</code></p>
$violations
<div id="bar"><button id="in">+</button><button id="out">−</button><button id="fit">fit</button>
<span class="hint">Ctrl+wheel zooms, drag pans, point at anything for details</span>
<span id="legend"></span></div>
<div id="view"><div id="names"></div><div id="time"></div></div>
<h2>Commits</h2>
<table><thead><tr><th>time</th><th>lineage</th><th>slot</th><th>entry</th><th>first known to</th>
</tr></thead><tbody>
$rows
</tbody></table>
<div id="tip"></div>
<script type="application/json" id="data">$data</script>
<script>$script</script>
</body></html>
""")


def trace_page(recorder: Recorder, report: Report, command: str) -> str:
    """The page as text. `command` is what replays the run."""
    broken = len(report.violations)
    facts = (
        f"{report.peers} peers at first, {len(recorder.lanes)} in all; {report.simulated_s:.0f} s, "
        f"{report.events} events, {report.rounds} rounds, longest gap {report.longest_gap_s:.1f} s,"
        f" whole {report.healed_s:.1f} s after the last fault; trace {report.trace_hash}"
    )
    listed = "".join(f"<li>{escape(one)}</li>" for one in report.violations)
    return PAGE.substitute(
        seed=report.seed,
        verdict=f"{broken} violation{'s' if broken > 1 else ''}" if broken else "no violation",
        mood="bad" if broken else "good",
        facts=escape(facts),
        command=escape(command),
        violations=f'<ul class="bad">{listed}</ul>' if listed else "",
        rows="\n".join(_rows(recorder)),
        data=_data(recorder, report),
        style=STYLE,
        script=SCRIPT,
    )


def _rows(recorder: Recorder) -> Iterable[str]:
    for one in recorder.commits:
        cells = (f"{one.at_s:.2f}", one.lineage[:8], str(one.slot), one.says, one.by)
        yield (
            f'<tr class="{one.kind}" data-at="{one.at_s:.2f}">'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )


def _data(recorder: Recorder, report: Report) -> str:
    """Everything that is drawn; no `<` is left, so that no text can end the script element."""
    heals = recorder.heals_at_s
    lineages = list(recorder.parents)
    for lane in recorder.lanes.values():
        lineages += [one.lineage for one in lane if one.lineage not in {"", *lineages}]
    data = {
        "ends": report.simulated_s,
        "heals": None if heals is None else [heals, heals + report.healed_s],
        "lineages": [[one, recorder.parents.get(one, "")] for one in lineages],
        "lanes": {
            name: [astuple(one) for one in lane]
            for name, lane in sorted(recorder.lanes.items(), key=lambda item: int(item[0][1:]))
        },
        "commits": [astuple(one) for one in recorder.commits],
        "strikes": [astuple(one) for one in recorder.strikes],
        "reports": [astuple(one) for one in recorder.reports],
        "violations": recorder.violations,
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def write_page(path: Path, page: str) -> None:
    """DiskError where that does not work."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"{path} could not be written: {error}", phase="trace") from error
