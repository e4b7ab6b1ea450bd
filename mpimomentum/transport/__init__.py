"""A Worker on MPI; the only package that imports mpi4py."""

from mpimomentum.transport.surviving_worker import SurvivingWorker
from mpimomentum.transport.worker import MPIWorker

__all__ = ["MPIWorker", "SurvivingWorker"]
