"""The recursion of streaming PCA in numpy, many runs at a time (no simulator: that is tied to it).

v_{k+1} = v_k + μ(v_k − v_{k−1}) + η (I − v_d v_dᵀ) X_k X_kᵀ v_d, d = k − tau, v_{−i} = v_0 = e_1.
"""

from __future__ import annotations

import numpy as np


def iterates(eigenvalues, lr, settings, runs, steps, seed):
    """Yield v after every step, shape (settings, runs, dim); a setting is (mu, tau).

    All settings see the same stream, X ~ N(0, diag(eigenvalues)), another one for each run.
    """
    rng = np.random.default_rng(seed)
    mu = np.array([m for m, _ in settings])[:, None, None]
    tau = np.array([t for _, t in settings])
    each, length = np.arange(len(settings)), max(tau) + 1
    history = np.zeros((length, len(settings), runs, len(eigenvalues)))
    history[..., 0] = 1
    v = before = history[0].copy()
    for k in range(steps):
        X = rng.standard_normal((runs, len(eigenvalues))) * np.sqrt(eigenvalues)
        history[k % length] = v
        stale = history[np.maximum(k - tau, 0) % length, each]
        along = (stale * X).sum(-1, keepdims=True)
        v, before = v + mu * (v - before) + lr * (X * along - stale * along**2), v
        yield v
