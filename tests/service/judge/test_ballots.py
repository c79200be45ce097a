"""From the votes of two orders to log-odds and intervals, and the bytes of a ballot."""

import math

import pytest

from paragone_service.judge.ballots import Ballot, BallotCodec, ballot_key, jeffreys, log_odds, pack


def logs(p):
    return math.log(p), math.log(1 - p)


def test_votes_of_both_orders_count_together_with_half_a_vote_more_for_each():
    # Shown first the first response wins 2 of 3, shown second 1 of 3: 3 votes of 6.
    assert log_odds(Ballot(3, 2, 1), Ballot(3, 2, 1), kind="votes", symmetrise="mean-logit") == 0
    assert log_odds(Ballot(1, 1, 0), Ballot(1, 0, 1), kind="votes", symmetrise="mean-logit") == pytest.approx(
        math.log(2.5 / 0.5)
    )
    assert log_odds(Ballot(1, 1, 0), None, kind="votes", symmetrise="none") == pytest.approx(math.log(1.5 / 0.5))


def test_log_probabilities_are_averaged_as_logits_or_as_probabilities():
    forward, backward = Ballot(1, *logs(0.9)), Ballot(1, *logs(0.4))
    mean_logit = log_odds(forward, backward, kind="logprobs", symmetrise="mean-logit")
    assert mean_logit == pytest.approx((math.log(0.9 / 0.1) + math.log(0.6 / 0.4)) / 2)
    mean_probability = log_odds(forward, backward, kind="logprobs", symmetrise="mean-probability")
    assert 1 / (1 + math.exp(-mean_probability)) == pytest.approx((0.9 + 0.6) / 2)
    assert log_odds(forward, None, kind="logprobs", symmetrise="none") == pytest.approx(math.log(9))
    sure = Ballot(1, 0.0, -2000.0)
    assert log_odds(sure, Ballot(1, -2000.0, 0.0), kind="logprobs", symmetrise="mean-probability") == 2000


def test_grades_differ_in_points():
    assert log_odds(Ballot(2, 7.5, 0), Ballot(2, 4, 0), kind="grades", symmetrise="mean-logit") == 3.5


@pytest.mark.parametrize("kind", ["votes", "logprobs", "grades"])
@pytest.mark.parametrize("symmetrise", ["mean-logit", "mean-probability"])
def test_swapped_responses_have_exactly_the_negative(kind, symmetrise):
    one, other = Ballot(7, 2.3, 4.7), Ballot(7, 0.1, 6.9)
    if kind == "logprobs":
        one, other = Ballot(1, *logs(0.123)), Ballot(1, *logs(0.77))
    there = log_odds(one, other, kind=kind, symmetrise=symmetrise)
    assert there == -log_odds(other, one, kind=kind, symmetrise=symmetrise) != 0


def test_an_interval_is_that_of_jeffreys():
    # Brown, Cai and DasGupta's table of n = 10, x = 3: [.093, .606]; the ends stay open where a side has no vote.
    assert jeffreys(3, 7) == pytest.approx((0.093, 0.606), abs=1e-3)
    low, high = jeffreys(0, 6)
    assert (low, high) == (0.0, pytest.approx(0.33, abs=0.02))
    assert jeffreys(6, 0) == (pytest.approx(1 - high), 1.0)


def test_a_ballot_survives_its_bytes_and_a_damaged_one_is_found_out():
    codec = BallotCodec()
    ballot = Ballot(2, 1.5, 0.5, pack(["because…", "ß" * 30_000]))
    value = codec.encode(ballot)
    assert codec.decode(value) == ballot
    said = codec.decode(value).rationales
    assert said[0] == "because…"
    assert len(said[1]) == 16_385
    damaged = [b"", value[:5], b"\x00" + value[1:], codec.encode(Ballot(1, math.nan, 0)), codec.encode(Ballot(0, 1, 0))]
    assert codec.sound([value, *damaged]) == [True] + [False] * len(damaged)


def test_order_and_principle_are_part_of_a_key():
    one, other = b"1" * 16, b"2" * 16
    keys = {
        ballot_key(b"judge..1", [one, other], None),
        ballot_key(b"judge..1", [other, one], None),
        ballot_key(b"judge..1", [one, other], "be kind"),
        ballot_key(b"judge..2", [one, other], None),
        ballot_key(b"judge..1", [one], None),
    }
    assert len(keys) == 5
    assert {len(key) for key in keys} == {24}
