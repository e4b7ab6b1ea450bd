"""What the algorithms that mix models have in common."""

from __future__ import annotations

from collections.abc import Mapping

from mpimomentum.codecs import mix
from mpimomentum.worker import Vector


def mixed(weights: Mapping[int, float], vectors: Mapping[int, Vector]) -> Vector:
    """Return sum_j W_ij v_j, added in ascending order of j: the same bits on every transport."""
    ranks = sorted(vectors)
    return mix.mix([vectors[j] for j in ranks], [weights[j] for j in ranks])
