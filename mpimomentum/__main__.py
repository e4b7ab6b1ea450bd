"""``python -m mpimomentum``."""

from mpimomentum.cli import main

if __name__ == "__main__":
    main()
