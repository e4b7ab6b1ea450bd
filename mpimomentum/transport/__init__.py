"""A Worker on MPI; the only package that imports mpi4py."""

from mpimomentum.transport.worker import MPIWorker

__all__ = ["MPIWorker"]
