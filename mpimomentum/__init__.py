"""MPI runtime for PyTorch training with momentum when workers do not wait for each other.

Examples
--------
Four virtual workers, one ten times slower, on this machine's one process:

>>> import torch, mpimomentum as mm
>>> run = mm.simulate(
...     mm.ADPSGD(lr=0.1), lambda rank, size: mm.Quadratic(b=torch.ones(3)), size=4,
...     duration_s=200, clock=mm.Clock(slow={0: 10}))
>>> bool((run.mean - 1).abs().max() < 1e-6)
True

The same on MPI ranks: ``mm.run(algorithm, objective, steps=…, worker=mm.init())`` in a script that
``mpirun`` or ``srun`` starts.
"""

import os

import lazy_loader

# What there is stands in __init__.pyi, each name imported when it is first asked for: torch alone
# takes seconds, and the command line must be able to catch signals before that.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Vectors of tens of megabytes come and go every step; in pages of 4 KB each one costs thousands of
# page faults. torch reads this before its first large allocation; a value set by the user stays.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
