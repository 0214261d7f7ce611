"""A small logistic model, fitted with numpy alone. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_RIDGE = 1.0
"""Penalty on the squared weights of standardised features; keeps separable labels finite."""
_MOST_STEPS = 100
_ENOUGH = 1e-8


def fit_logistic(
    features: Floats, labels: Floats, counts: Floats | None = None
) -> tuple[float, Floats]:
    """Return the intercept and the weights under which the *labels* are the likeliest.

    Args:
        features: of shape (rows, features).
        labels: of shape (rows,), 1 where the answer was right, else 0.
        counts: of shape (rows,), how many times each row counts; once by default.

    Ridge regression by Newton's method. Features that never vary get the weight 0.
    """
    centre, spread = features.mean(axis=0), features.std(axis=0)
    varies = spread > 1e-12
    scale = np.where(varies, spread, 1.0)
    standard = np.where(varies, (features - centre) / scale, 0.0)
    rows = np.column_stack([np.ones(len(features)), standard])
    solution = _newton(rows, labels, np.ones(len(rows)) if counts is None else counts)
    weights = np.where(varies, solution[1:] / scale, 0.0)
    return float(solution[0] - weights @ centre), weights


def _newton(rows: Floats, labels: Floats, counts: Floats) -> Floats:
    """Return the penalised maximum; the intercept, in the first column, is not penalised."""
    penalty = np.full(rows.shape[1], _RIDGE)
    penalty[0] = 1e-3
    solution = np.zeros(rows.shape[1])
    best = _loss(rows, labels, counts, penalty, solution)
    for _ in range(_MOST_STEPS):
        likely = _logistic(rows @ solution)
        gradient = rows.T @ (counts * (labels - likely)) - penalty * solution
        spread = counts * likely * (1 - likely)
        curvature = (rows * spread[:, None]).T @ rows + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        # Newton overshoots where nearly everything is separated; half a step does not.
        while (loss := _loss(rows, labels, counts, penalty, solution + size * step)) > best:
            size /= 2
            if size < 1e-6:
                return solution
        solution, best = solution + size * step, loss
        if np.abs(size * step).max() < _ENOUGH:
            break
    return solution


def _loss(
    rows: Floats, labels: Floats, counts: Floats, penalty: Floats, solution: Floats
) -> float:
    score = rows @ solution
    likelihood = counts @ (labels * score - np.logaddexp(0, score))
    return float(-likelihood + 0.5 * (penalty * solution) @ solution)


def _logistic(score: Floats) -> Floats:
    values: Floats = 0.5 * (1 + np.tanh(score / 2))
    return values
