"""Workers on a deterministic virtual clock: the same algorithm files, any number of them."""

from mpimomentum.simulator.clock import Clock
from mpimomentum.simulator.simulation import Simulation
from mpimomentum.simulator.worker import VirtualWorker

__all__ = ["Clock", "Simulation", "VirtualWorker"]
