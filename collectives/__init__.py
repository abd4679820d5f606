"""Collective operations on bandwidth-starved, mortal networks: groups, plans, codecs.

`reference` (numpy, slow, for tests) is not imported here.
"""

from decentral.collectives.call import Call
from decentral.collectives.codecs import CODECS
from decentral.collectives.cost import Choice
from decentral.collectives.group import Group
from decentral.collectives.network import Network
from decentral.collectives.plan import Plan
from decentral.collectives.schedules import SCHEDULES
from decentral.collectives.work import Stats, Work

__all__ = ["CODECS", "SCHEDULES", "Call", "Choice", "Group", "Network", "Plan", "Stats", "Work"]
