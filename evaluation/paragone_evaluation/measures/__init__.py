"""Measures of agreement with people: pure functions on numpy arrays.

Letters: n judged pairs, R distinct responses, K responses of one group, B resamples, C clusters. Arguments of one name
mean the same everywhere, and are arrays of n unless a docstring says otherwise:

* ``logit``: the model's log-odds that the first response is preferred, after its temperature.
* ``outcome``: 1 where people preferred the first, 0 where they preferred the second, ½ for a tie.
* ``strength``: −3 … 3, positive for the first.
* ``first_length``, ``second_length``: in characters.
* ``cluster``: number of the cluster that a row is resampled with; ``resampler`` draws the clusters.
* ``score`` [K] is the model's, ``human`` [K] people's; ``predicted`` is a rating by the model, ``rated`` by people.
* ``bins``: of equal width over [½, 1].

Every measure raises ``ValueError`` where arrays differ in length (nothing is broadcast), a value is NaN or infinite, an
outcome is another number, or a cluster is out of range. A ``Raises`` section names what it refuses beyond that.
"""
