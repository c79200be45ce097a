"""Intervals of measures that are no means, against resampling the rows themselves."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from paragone_evaluation.measures.bootstrap import Resampler
from paragone_evaluation.measures.intervals import auc_estimate


@pytest.mark.parametrize("clusters", [15, 200])  # a matrix between the clusters, and all rows
def test_the_interval_of_an_auc_is_that_of_whole_resamples_ties_included(clusters):
    draw = np.random.default_rng(0)
    positive = (draw.random(240) < 0.4).astype(float)
    value = (positive + draw.normal(size=240)).round(1)
    cluster = draw.integers(0, clusters, 240)
    resampler = Resampler(clusters, resamples=100, seed=2)
    found = auc_estimate(value, positive, cluster, resampler)
    assert found.value == pytest.approx(roc_auc_score(positive, value), abs=1e-6)
    slow = []
    for counts in resampler.counts:
        rows = np.repeat(np.arange(240), counts[cluster].astype(int))
        slow.append(roc_auc_score(positive[rows], value[rows]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(slow, (2.5, 97.5))), abs=1e-6)


def test_an_auc_of_one_side_alone_is_none():
    for rows in ([], [1.0, 1.0]):
        found = auc_estimate([0.5] * len(rows), rows, [0] * len(rows), Resampler(2, resamples=10))
        assert math.isnan(found.value)
        assert math.isnan(found.low)
