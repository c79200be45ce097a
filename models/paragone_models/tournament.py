"""What K responses to one prompt say about each other: everything computed from a K×K probability matrix.

K is the number of responses; ``matrix[i, j]`` is P(i preferred to j), float64, with ``matrix + matrix.T`` equal to 1
and 0.5 on the diagonal. No torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog, nnls

__all__ = [
    "Tournament",
    "condorcet_winner",
    "copeland",
    "cyclic_triples",
    "nash",
    "ranking",
    "reference_win_rates",
    "summarise",
    "win_rates",
]

Float64s = NDArray[np.float64]
Solver = Callable[[Float64s, Float64s], Float64s]

# How far P + P^T may be from 1: generous to matrices that went through float32 or JSON.
_SYMMETRY = 1e-6
# A lottery may lose by this much against some response, as a share of the largest payoff: rounding, not play.
_FEASIBLE = 1e-9
# A payoff or probability of the linear program's answer below this is 0.
_TIED = 1e-8
# Responses up to which near-ties are worth the slow solver; beyond, identical rows still share alike.
_SLOW_SOLVER_LIMIT = 24
# Most steps of the linear program, half a second or so for 256 responses; some hundred are usual.
_STEPS = 10_000


@dataclass(frozen=True)
class Tournament:
    """The answer of a K-way tournament.

    Attributes:
        win_rates: mean probability of beating a random member of the group (or of the references). [K]
        ranking: indices by falling win rate, best first; of equal ones the lower index first. [K]
        condorcet_winner: index that beats every other with probability above ½, or None.
        copeland: opponents beaten minus opponents lost to. [K]
        cyclic_triples: number of triples that beat each other in a circle.
        nash: maximal lottery, a probability per response. [K]
        matrix: the probabilities that all of this was computed from. [K, K]
    """

    win_rates: Float64s
    ranking: list[int]
    condorcet_winner: int | None
    copeland: list[int]
    cyclic_triples: int
    nash: Float64s
    matrix: Float64s


def summarise(matrix: ArrayLike, *, against: ArrayLike | None = None) -> Tournament:
    """Return everything that a tournament among K responses shows.

    Args:
        matrix: P(row preferred to column). [K, K]
        against: probabilities against R reference responses; where given, win rates and ranking are against
            these. [K, R]

    Returns:
        The summary; all of it but win rates and ranking is about the group itself.

    Raises:
        ValueError: if ``matrix`` is no probability matrix of K ≥ 1 responses, or ``against`` is not
            one of [K, R] with R ≥ 1.
    """
    table = _checked(matrix)
    rates = win_rates(table) if against is None else reference_win_rates(against, len(table))
    return Tournament(
        win_rates=rates,
        ranking=ranking(rates),
        condorcet_winner=condorcet_winner(table),
        copeland=copeland(table),
        cyclic_triples=cyclic_triples(table),
        nash=nash(table),
        matrix=table,
    )


def win_rates(matrix: ArrayLike) -> Float64s:
    """Return each response's mean probability over the whole group, itself counted as ½.

        win_rate_i = (1/K) sum_j P_ij,  P_ii = 1/2

    Source: Wu et al., SPPO (arXiv 2405.00675), the estimate of P(y ≻ π_t) in §4.

    Args:
        matrix: P(row preferred to column). [K, K]

    Returns:
        Win rates in [1/(2K), 1 - 1/(2K)]. [K]

    Raises:
        ValueError: if ``matrix`` is no probability matrix.
    """
    return np.asarray(_checked(matrix).mean(axis=1))


def reference_win_rates(against: ArrayLike, size: int) -> Float64s:
    """Return each response's mean probability against the references.

    Args:
        against: P(response preferred to reference). [K, R]
        size: K.

    Returns:
        Win rates in [0, 1]. [K]

    Raises:
        ValueError: if ``against`` holds no probabilities of [K, R] with R ≥ 1.
    """
    table = np.asarray(against, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != size or table.shape[1] == 0:
        raise ValueError(f"against must be [{size}, R] with R ≥ 1, not of shape {table.shape}")
    _check_probabilities(table)
    return np.asarray(table.mean(axis=1))


def ranking(rates: ArrayLike) -> list[int]:
    """Return indices by falling rate, best first; of equal ones the lower index first.

    Args:
        rates: one number per response. [K]
    """
    return [int(index) for index in np.argsort(-np.asarray(rates, dtype=np.float64), kind="stable")]


def condorcet_winner(matrix: ArrayLike) -> int | None:
    """Return the index that beats every other response with probability above ½, or None.

    Args:
        matrix: P(row preferred to column). [K, K]

    Raises:
        ValueError: if ``matrix`` is no probability matrix.
    """
    beats = _beats(_checked(matrix))
    winners = np.flatnonzero(beats.sum(axis=1) == len(beats) - 1)
    return int(winners[0]) if len(winners) else None


def copeland(matrix: ArrayLike) -> list[int]:
    """Return opponents beaten minus opponents lost to, per response; ties count for neither.

    Args:
        matrix: P(row preferred to column). [K, K]

    Raises:
        ValueError: if ``matrix`` is no probability matrix.
    """
    # Truth values cannot be subtracted.
    beats = _beats(_checked(matrix)).astype(np.int64)
    return [int(score) for score in beats.sum(axis=1) - beats.sum(axis=0)]


def cyclic_triples(matrix: ArrayLike) -> int:
    """Return how many triples beat each other in a circle (i ≻ j ≻ k ≻ i, each with probability above ½).

        count = trace(B^3) / 3,  B_ij = [P_ij > 1/2]

    Source: Kendall and Babington Smith (1940), the circular triads of paired comparisons, ties counting for neither.

    Args:
        matrix: P(row preferred to column). [K, K]

    Raises:
        ValueError: if ``matrix`` is no probability matrix.
    """
    beats = _beats(_checked(matrix)).astype(np.float64)
    # Every circle is counted from each of its three members.
    return round(float(np.einsum("ij,ji->", beats @ beats, beats)) / 3)


def nash(matrix: ArrayLike) -> Float64s:
    """Return the maximal lottery: the mixture of responses that no response beats with probability above ½.

        x >= 0,  sum_i x_i = 1,  sum_i x_i (P_ij - P_ji) >= 0 for every j

    It is the symmetric Nash equilibrium of the game whose payoff is the preference, the von Neumann winner. Of
    several, the one with the least sum of squares: the most uniform one, unique, and so it treats identical rows
    alike. Source: Fishburn (1984); Dudík et al. (arXiv 1502.06362).

    Args:
        matrix: P(row preferred to column). [K, K]

    Returns:
        Probabilities that sum to 1. [K]

    Raises:
        ValueError: if ``matrix`` is no probability matrix.
        ArithmeticError: if the linear program fails, which a finite matrix never showed.
    """
    table = _checked(matrix)
    # A response that beats all others is the whole lottery.
    winner = condorcet_winner(table)
    if winner is not None:
        return np.asarray(np.eye(len(table))[winner])
    payoff = table - table.T
    scale = np.abs(payoff).max()
    if scale == 0:
        return np.full(len(table), 1.0 / len(table))
    # Ten digits: smaller differences are rounding of the probabilities, and near-ties are what breaks solvers.
    payoff = np.round(payoff / scale, 10)
    # First the exact projection, which nearly always succeeds; then the slower ways.
    everywhere = np.ones(len(payoff), dtype=np.bool_)
    uniform = _most_uniform(payoff, everywhere, _scipy_nnls)
    if uniform is not None:
        return uniform
    vertex = _some_lottery(payoff)
    # What a lottery beats strictly is in no lottery at all (complementary slackness): a smaller problem remains.
    tied, used = vertex @ payoff < _TIED, vertex > _TIED
    only_one = np.array_equal(tied, used) and _nullity(payoff[np.ix_(used, used)]) <= 1
    if not only_one and tied.sum() <= _SLOW_SOLVER_LIMIT:
        uniform = _most_uniform(payoff, tied, _lawson_hanson)
    return uniform if uniform is not None else _alike(payoff, vertex)


def _most_uniform(payoff: Float64s, allowed: NDArray[np.bool_], solve: Solver) -> Float64s | None:
    """Return the maximal lottery of least sum of squares on ``allowed``, [K], or None where rounding kept one from it.

    It is the projection of the vector of ones onto the cone {x >= 0, x^T payoff >= 0}, scaled to sum 1; the projection
    is a non-negative least-squares problem (Lawson and Hanson, Solving Least Squares Problems, chapter 23). Its
    optimality conditions are checked, because a solver that stops early returns a lottery that is not the most uniform.
    """
    size = int(allowed.sum())
    cone = np.vstack([np.eye(size), payoff[allowed].T])
    multipliers = solve(cone.T, -np.ones(size))
    projection = 1.0 + cone.T @ multipliers
    slack = cone @ projection
    if not (
        projection.sum() > 0.5
        and slack.min() >= -_FEASIBLE
        and np.abs(slack * multipliers).max() <= _FEASIBLE * len(payoff)
    ):
        return None
    lottery = np.zeros(len(payoff))
    lottery[allowed] = np.where(projection > _FEASIBLE, projection, 0.0)
    return np.asarray(lottery / lottery.sum())


def _nullity(square: Float64s) -> int:
    return int((np.linalg.svd(square, compute_uv=False) < _FEASIBLE).sum())


def _scipy_nnls(matrix: Float64s, target: Float64s) -> Float64s:
    try:
        return np.asarray(nnls(matrix, target, maxiter=10 * matrix.shape[1])[0])
    except RuntimeError:  # its iteration limit: the slower solver decides
        return np.zeros(matrix.shape[1])


def _lawson_hanson(matrix: Float64s, target: Float64s) -> Float64s:
    """Solve non-negative least squares with a factorisation a step: slower than scipy's, for its failures.

    Returns:
        The minimiser of |matrix x - target| over x >= 0, as far as three rounds per column reach.
    """
    columns = matrix.shape[1]
    solution, passive = np.zeros(columns), np.zeros(columns, dtype=np.bool_)
    for _ in range(3 * columns):
        gradient = np.where(passive, -np.inf, matrix.T @ (target - matrix @ solution))
        entering = int(np.argmax(gradient))
        if gradient[entering] <= 1e-12:
            break
        passive[entering] = True
        while passive.any():
            trial = np.zeros(columns)
            trial[passive] = np.linalg.lstsq(matrix[:, passive], target, rcond=1e-13)[0]
            blocked = passive & (trial <= 0)
            if not blocked.any():
                break
            steps = solution[blocked] / (solution[blocked] - trial[blocked])
            solution = solution + steps.min() * (trial - solution)
            passive &= solution > 1e-15
        solution = np.where(passive, trial, 0.0)
    return solution


def _some_lottery(payoff: Float64s) -> Float64s:
    """Return one maximal lottery, a vertex of the polytope of all of them, by linear programming; [K].

    It maximises the least payoff, whose optimum is 0. That least payoff could be demanded instead; but then nothing
    leads the solver, and on tables of low rank it goes in circles.
    """
    size = len(payoff)
    # Near-degenerate tables are beyond the first ways now and then.
    for method, tolerance in (("highs", 1e-9), ("highs", 1e-7), ("highs-ipm", 1e-7)):
        program = linprog(
            np.append(np.zeros(size), -1.0),
            A_ub=np.column_stack([-payoff.T, np.ones(size)]),
            b_ub=np.zeros(size),
            A_eq=np.append(np.ones(size), 0.0)[None],
            b_eq=[1.0],
            bounds=[(0, None)] * size + [(-1, 1)],
            method=method,
            options={
                "maxiter": _STEPS,
                "primal_feasibility_tolerance": tolerance,
                "dual_feasibility_tolerance": tolerance,
            },
        )
        if program.status == 0:
            break
    else:
        raise ArithmeticError(f"the linear program of the maximal lottery failed: {program.message}")
    lottery = np.clip(program.x[:size], 0.0, None)
    return np.asarray(lottery / lottery.sum())


def _alike(payoff: Float64s, lottery: Float64s) -> Float64s:
    """Return the lottery with its weight shared evenly among identical rows; [K]."""
    # A vertex of the polytope may give one of two identical responses everything.
    _, group, count = np.unique(payoff, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    return np.asarray((np.bincount(group, weights=lottery) / count)[group])


def _beats(table: Float64s) -> NDArray[np.bool_]:
    return table > 0.5


def _checked(matrix: ArrayLike) -> Float64s:
    table = np.asarray(matrix, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.shape[0] == 0:
        raise ValueError(f"a tournament needs a square matrix of at least one response, not shape {table.shape}")
    _check_probabilities(table)
    if np.abs(table + table.T - 1).max() > _SYMMETRY:
        raise ValueError("P[i, j] + P[j, i] must be 1, with 0.5 on the diagonal: this matrix is not symmetrised")
    return table


def _check_probabilities(table: Float64s) -> None:
    if not np.isfinite(table).all() or table.min() < 0 or table.max() > 1:
        raise ValueError("every entry must be a probability in [0, 1]: NaN or a value outside was given")
