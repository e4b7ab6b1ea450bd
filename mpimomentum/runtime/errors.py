"""What the runtime raises for the user to read."""


class BadInput(ValueError):
    """What was asked for cannot be run; the message names the value and the remedy."""
