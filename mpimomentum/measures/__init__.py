"""What a rank counts about its own run while it goes on: bounded in memory, cheap, exact."""

from mpimomentum.measures.histogram import Histogram
from mpimomentum.measures.spans import Spans
from mpimomentum.measures.spread import Spread
from mpimomentum.measures.tally import Tally
from mpimomentum.measures.time_split import Seconds, Spent, TimeSplit
from mpimomentum.measures.traffic import Traffic

__all__ = ["Histogram", "Seconds", "Spans", "Spent", "Spread", "Tally", "TimeSplit", "Traffic"]
