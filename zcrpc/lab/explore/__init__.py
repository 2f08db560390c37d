"""A weak-memory explorer: every execution of a small program, under sequential consistency, x86's store buffers, and
C11's views.

`program` what threads are made of · `memory` the models · `search` all executions · `litmus` what it must get right
first · `protocols` the orders that zcrpc's locks rely on, one by one · `python -m zcrpc.lab.explore` runs it all.
"""

from zcrpc.lab.explore.memory import SC, TSO, VIEWS
from zcrpc.lab.explore.search import Exploration, explore

__all__ = ["SC", "TSO", "VIEWS", "Exploration", "explore"]
