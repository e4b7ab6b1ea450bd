"""What the runtime raises for the user to read."""


class BadInput(ValueError):
    """What was asked for cannot be run; the message names the value and the remedy."""


class Stopped(Exception):  # no error: the run goes on another time
    """A run was asked to stop and has saved itself; the message says how to go on. Exit code 85."""


class RunFailed(RuntimeError):  # in the user's words
    """The run cannot come to a result; the message names the cause and the remedy. Exit code 1."""
