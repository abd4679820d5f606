"""DiPaCo: paths through shared modules (Douillard et al. 2024, arXiv 2403.10616).

grid.py       which paths run through which modules       generic: nothing of text in these
split.py      which parameters of a model are whose        three, nor in flat.py
outer.py      what paths give a module, and its step
phases.py     which round is made from which others
inner.py      a path's own steps
router.py     which document belongs to which path: features.py, clusters.py
program.py    all of it as a program for `decentral.dataflow`
evaluate.py   perplexity, routed (text: `decentral.serving`)
recipe.py     a run that any machine can make, on corpus.py
"""

from __future__ import annotations

from decentral.dipaco.documents import Documents
from decentral.dipaco.grid import Grid
from decentral.dipaco.inner import Inner
from decentral.dipaco.outer import Outer
from decentral.dipaco.program import DiPaCo
from decentral.dipaco.router import Routing
from decentral.dipaco.split import Split, split

__all__ = ["DiPaCo", "Documents", "Grid", "Inner", "Outer", "Routing", "Split", "split"]
