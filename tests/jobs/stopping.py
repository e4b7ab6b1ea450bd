"""The program ``mpimomentum`` with the arguments given; every rank says "pid RANK PID" first.

usage: mpirun -n N python stopping.py train …
"""

from __future__ import annotations

import os

from mpimomentum.__main__ import main
from mpimomentum.runtime.refusal import launched_rank

os.write(1, f"pid {launched_rank()} {os.getpid()}\n".encode())  # in one piece: ranks share it
main()
