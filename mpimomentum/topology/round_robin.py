"""Rounds of pairs in which everyone meets everyone once."""

from __future__ import annotations


def round_robin(n: int) -> list[list[int | None]]:
    """Return rounds in which everyone meets everyone once, by the circle method.

    Returns
    -------
    list of list
        n − 1 rounds, n if that is odd; each says the partner of every rank, None if it has none.
    """
    m = n + n % 2
    rounds = []
    for k in range(m - 1):
        circle = [0, *((k + i) % (m - 1) + 1 for i in range(m - 1))]
        partner: list[int | None] = [None] * n
        for a, b in zip(circle[: m // 2], reversed(circle[m // 2 :]), strict=True):
            if a < n and b < n:
                partner[a], partner[b] = b, a
        rounds.append(partner)
    return rounds
