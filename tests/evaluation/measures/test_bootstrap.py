"""Clustered bootstrap: against a loop that puts rows together again."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, pearsonr
from sklearn.metrics import roc_auc_score

from paragone_evaluation.measures.bootstrap import Estimate, Resampler
from paragone_evaluation.measures.calibration import expected_calibration_error
from paragone_evaluation.measures.paired import compare_models


@pytest.fixture
def rows():
    draw = np.random.default_rng(5)
    cluster = draw.integers(0, 7, 300)
    logit = draw.normal(size=300) + 0.3 * cluster
    return logit, draw.choice([0, 0.5, 1], 300), cluster


def rebuilt(resampler, cluster):
    """Yield the row numbers of every resample, as a slow bootstrap would draw them."""
    for counts in resampler.counts.astype(int):
        yield np.concatenate(
            [np.repeat(np.flatnonzero(cluster == number), count) for number, count in enumerate(counts)]
        )


def ends(values):
    return tuple(np.percentile([value for value in values if np.isfinite(value)], (2.5, 97.5)))


def test_the_interval_of_a_mean_is_that_of_a_slow_bootstrap(rows):
    logit, _, cluster = rows
    resampler = Resampler(7, resamples=200, seed=1)
    found = resampler.mean(logit, cluster)
    assert found.value == pytest.approx(logit.mean(), abs=1e-12)
    slow = ends([logit[drawn].mean() for drawn in rebuilt(resampler, cluster)])
    assert (found.low, found.high) == pytest.approx(slow, abs=1e-6)


def test_the_interval_of_the_calibration_error_is_that_of_a_slow_bootstrap(rows):
    logit, outcome, cluster = rows
    resampler = Resampler(7, resamples=100, seed=2)
    found = resampler.calibration_error(logit, outcome, cluster, bins=5)
    slow = ends(
        [expected_calibration_error(logit[drawn], outcome[drawn], bins=5) for drawn in rebuilt(resampler, cluster)]
    )
    assert found.value == expected_calibration_error(logit, outcome, bins=5)
    assert (found.low, found.high) == pytest.approx(slow, abs=1e-6)


def test_the_interval_of_a_correlation_is_that_of_a_slow_bootstrap(rows):
    logit, outcome, cluster = rows
    resampler = Resampler(7, resamples=100, seed=3)
    found = resampler.pearson(logit, outcome, cluster)
    slow = ends([pearsonr(logit[drawn], outcome[drawn]).statistic for drawn in rebuilt(resampler, cluster)])
    assert found.value == pytest.approx(pearsonr(logit, outcome).statistic, abs=1e-9)
    assert (found.low, found.high) == pytest.approx(slow, abs=1e-6)


def test_every_resample_draws_as_many_clusters_as_there_are():
    assert (Resampler(13, resamples=50).counts.sum(axis=1) == 13).all()
    # More clusters than fit into one piece of the draw.
    assert (Resampler(50_000, resamples=90).counts.sum(axis=1) == 50_000).all()


def test_many_clusters_give_the_interval_of_independent_rows():
    draw = np.random.default_rng(0)
    values = (draw.random(4000) < 0.7).astype(float)
    found = Resampler(4000, resamples=500, seed=1).mean(values, np.arange(4000))
    error = np.sqrt(0.7 * 0.3 / 4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_clusters_widen_the_interval_of_rows_that_repeat_each_other():
    values = np.repeat(np.random.default_rng(0).random(20) < 0.5, 50).astype(float)
    by_row = Resampler(1000, resamples=300).mean(values, np.arange(1000))
    by_cluster = Resampler(20, resamples=300).mean(values, np.repeat(np.arange(20), 50))
    assert by_cluster.high - by_cluster.low > 4 * (by_row.high - by_row.low)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another(rows):
    logit, _, cluster = rows
    one, two, three = (Resampler(7, resamples=50, seed=seed).mean(logit, cluster) for seed in (1, 1, 2))
    assert one == two != three


def test_one_cluster_has_no_interval():
    found = Resampler(1, resamples=20).mean([1.0, 0.0], [0, 0])
    assert found.value == 0.5
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize(("credit", "cases"), [(1.0, 15), (0.0, 15), (1.0, 2)])
def test_a_share_of_all_or_none_has_the_exact_interval_of_as_many_cases(credit, cases):
    cluster = np.repeat(np.arange(cases), 3)  # three rows of each, which are no more cases
    found = Resampler(cases + 4).share(np.full(len(cluster), credit), cluster)
    exact = binomtest(round(credit * cases), cases).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose((found.value, found.low, found.high), (credit, exact.low, exact.high), atol=1e-12)


def test_any_other_share_has_the_interval_of_its_mean():
    cluster = np.repeat(np.arange(10), 2)
    for earned in (np.arange(20) % 3 == 0, np.full(20, 0.5)):
        assert Resampler(10).share(earned, cluster) == Resampler(10).mean(earned, cluster)


def test_resamples_without_any_row_are_left_out_of_the_interval():
    found = Resampler(2).estimate(0.5, [0.4, np.nan, 0.6])
    assert 0.4 <= found.low < found.high <= 0.6


def test_impossible_clusters_are_refused():
    with pytest.raises(ValueError, match="at least one of each"):
        Resampler(0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\)"):
        Resampler(2).mean([1.0], [2])
    with pytest.raises(ValueError, match=r"must be \[n, m\]"):
        Resampler(2).totals([[1.0], [2.0]], [0])


def test_a_model_compared_with_itself_differs_by_exactly_nothing(rows):
    logit, outcome, cluster = rows
    found = compare_models(logit, logit, outcome, cluster, Resampler(7, resamples=50))
    assert found["accuracy_difference"] == Estimate(0.0, 0.0, 0.0)
    assert (found["nll_difference"].value, found["brier_difference"].value) == (0.0, 0.0)
    assert (found["better_share"], found["agreement"]) == (0.5, 1.0)


def test_a_paired_difference_has_a_narrower_interval_than_the_two_models_alone():
    draw = np.random.default_rng(2)
    cluster = np.repeat(np.arange(40), 25)
    hard = np.repeat(draw.normal(scale=2, size=40), 25)
    outcome = np.ones(1000)
    one, two = hard + 0.6 + draw.normal(size=1000) * 0.1, hard + draw.normal(size=1000) * 0.1
    resampler = Resampler(40, resamples=300)
    alone = resampler.mean((one > 0).astype(float), cluster)
    found = compare_models(one, two, outcome, cluster, resampler)
    gain = found["accuracy_difference"]
    assert gain.value == pytest.approx((one > 0).mean() - (two > 0).mean())
    assert gain.high - gain.low < 0.7 * (alone.high - alone.low)
    assert found["only_first_right"] - found["only_second_right"] == pytest.approx(1000 * gain.value)
    assert found["better_share"] > 0.9


def test_two_models_cannot_be_compared_on_ties():
    with pytest.raises(ValueError, match="no pair is decided"):
        compare_models([1.0], [2.0], [0.5], [0], Resampler(1))


@pytest.mark.parametrize("clusters", [15, 200])  # a matrix between the clusters, and all rows
def test_the_interval_of_an_auc_is_that_of_whole_resamples_ties_included(clusters):
    draw = np.random.default_rng(0)
    positive = (draw.random(240) < 0.4).astype(float)
    value = (positive + draw.normal(size=240)).round(1)
    cluster = draw.integers(0, clusters, 240)
    resampler = Resampler(clusters, resamples=100, seed=2)
    found = resampler.auc(value, positive, cluster)
    assert found.value == pytest.approx(roc_auc_score(positive, value), abs=1e-6)
    slow = []
    for counts in resampler.counts:
        rows = np.repeat(np.arange(240), counts[cluster].astype(int))
        slow.append(roc_auc_score(positive[rows], value[rows]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(slow, (2.5, 97.5))), abs=1e-6)


def test_an_auc_of_one_side_alone_is_none():
    for rows in ([], [1.0, 1.0]):
        found = Resampler(2, resamples=10).auc([0.5] * len(rows), rows, [0] * len(rows))
        assert math.isnan(found.value)
        assert math.isnan(found.low)
