"""Models by name: small ones, of the kind that the papers train."""

from mpimomentum.models.registry import build, names

__all__ = ["build", "names"]
