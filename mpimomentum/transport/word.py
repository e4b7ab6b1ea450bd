"""The word that guards an inbox."""

from __future__ import annotations

import enum


class Word(enum.IntEnum):
    """State of an inbox: the low 4 bits of its word; claimant and generation lie above."""

    FREE = 0
    CLAIMED = 1
    FULL_AVERAGE = 2
    FULL_ADD = 3

    def by(self, rank: int, generation: int) -> int:
        """Return the word that says who put the inbox into this state."""
        return (generation << 28) | (rank << 4) | self

    @staticmethod
    def state(word: int) -> int:
        """Return the state alone."""
        return word & 0xF

    @staticmethod
    def claimant(word: int) -> int:
        """Return the rank that put the inbox into its state."""
        return word >> 4 & 0xFFFFFF

    @staticmethod
    def generation(word: int) -> int:
        """Return the claimant's count of claims."""
        return word >> 28
