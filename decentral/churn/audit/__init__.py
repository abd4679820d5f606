"""An independent checker: reads what a run's processes wrote down, and shares no code with them.

    logs ─┬▶ history (what was committed: I1) ─▶ agreement I2, contributions I6, samples I7, goodput
          └▶ timeline (who was up) ────────────▶ gaps I3, failures I5
    samples.jsonl ─────────────────────────────▶ leaks I4

`Auditor` runs beside the run, `audit` after it; both end in a `Report`.
"""

from decentral.churn.audit.auditor import Auditor, audit
from decentral.churn.audit.findings import Violation
from decentral.churn.audit.report import Report
from decentral.churn.audit.settings import Settings

__all__ = ["Auditor", "Report", "Settings", "Violation", "audit"]
