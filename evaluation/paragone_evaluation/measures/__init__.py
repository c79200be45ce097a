"""Measures of agreement with people: pure functions on numpy arrays.

Letters used throughout: n judged pairs, R distinct responses, K responses of one group, B resamples, C clusters. A
logit is the model's log-odds that the first response is preferred, after its temperature. An outcome is 1 where people
preferred the first, 0 where they preferred the second, ½ for a tie. A strength is −3 … 3, positive for the first.
"""
