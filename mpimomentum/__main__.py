"""The program ``mpimomentum``, and ``python -m mpimomentum``."""

import sys

from mpimomentum.runtime import stop_signal


def main() -> None:
    """Catch the signals that ask a training run to stop, then run the command line."""
    if sys.argv[1:2] != ["train"]:
        run()
        return
    stop_signal.catch()
    try:
        run()
    finally:
        stop_signal.ignore()


def run() -> None:
    """Run the command line."""
    from mpimomentum import cli  # takes seconds, in which a signal would end the process

    cli.main()


if __name__ == "__main__":
    main()
