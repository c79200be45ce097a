"""The rules of a group as pure functions: who votes, what each is told, and what is stored comes back as it was."""

import numpy as np
import pytest

from paragone.codes import ErrorCode
from paragone_models.comparator import Comparator
from paragone_models.shaping import Measures
from paragone_service.cohorts.by_vectors import vector_tables
from paragone_service.cohorts.contest import Standing
from paragone_service.cohorts.groups import Entered, Group, Head, Member, check_entry, group_key, incomplete
from paragone_service.http.errors import ServiceError

REWARDS = Comparator(kind="bradley-terry", dimension=1, temperature=1e-3)
TERMS = {"prompt": "p", "size": "4"}


def head(**changes):
    fields = {"birth": "b", "attempt": 0, "size": 4, "until": 10.0, "on_missing": "fail", "terms": TERMS}
    return Head(**{**fields, **changes})


def scored(*values):
    return Member(b"d", np.array(values, dtype=np.float32).tobytes())


def standing_of(group, references=(), **wanted):
    slots, tables = vector_tables(group, REWARDS, np.array(references, dtype=np.float32).reshape(-1, 1))
    return Standing.of(group, slots, tables, **wanted)


def test_a_masked_member_does_not_vote():
    # NeMo-RL #4061: of rewards 1, 1, 0, 0 the second is masked; the rest's advantages are those of a group of three.
    members = {0: scored(1), 1: Member(b"d", None, error=("response_too_long", "…")), 2: scored(0), 3: scored(0)}
    standing = standing_of(Group(head(), "whole", members), signal="reward")
    assert standing.slots == [0, 2, 3]
    advantages = standing.tables.rewards - standing.tables.rewards.mean()
    assert advantages == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert standing.signal == [1, 0, 0]
    assert standing.win_rates == pytest.approx([(0.5 + 1 + 1) / 3, 1 / 3, 1 / 3])
    assert [standing.rank(place) for place in range(3)] == [1, 2, 2]
    assert standing.row(0, 4) == [0.5, None, 1.0, 1.0]
    assert not standing.left_alone


def test_one_who_is_left_alone_is_told_apart_from_a_group_of_one():
    alone = standing_of(Group(head(), "closed", {2: scored(1)}), signal="rank")
    assert alone.left_alone
    assert alone.signal is None
    assert not standing_of(Group(head(size=1), "whole", {0: scored(1)})).left_alone


def test_references_are_a_mean_of_probabilities():
    standing = standing_of(Group(head(size=1), "whole", {0: scored(1)}), [0.0, 2.0], signal="anchor")
    assert standing.reference_win_rate(0) == 0.5
    assert standing.signal == [0.5]


def test_numbers_that_overflow_are_an_error():
    members = {slot: scored(np.inf) for slot in range(2)}
    with pytest.raises(ServiceError, match="too large"):
        standing_of(Group(head(size=2), "whole", members))


@pytest.mark.parametrize(
    ("wanted", "kept", "kept_digest", "expected"),
    [
        (head(), head(), b"d", None),
        (head(), head(attempt=1), None, ErrorCode.COHORT_SUPERSEDED),
        (head(), head(terms={**TERMS, "prompt": "q"}), None, ErrorCode.COHORT_CONFLICT),
        (head(), head(), b"e", ErrorCode.COHORT_CONFLICT),
        (head(), head(), None, ErrorCode.COHORT_INCOMPLETE),
    ],
)
def test_who_may_join(wanted, kept, kept_digest, expected):
    entered = Entered(kept, "open", kept_digest, None)
    if expected is None:
        check_entry(wanted, 3, b"d", entered)
        return
    with pytest.raises(ServiceError) as refused:
        check_entry(wanted, 3, b"d", entered)
    assert refused.value.code is expected


def test_what_is_missing_is_named_and_a_long_list_is_cut():
    group = Group(head(size=1024), "closed", {0: scored(1)})
    message = incomplete(group, 0).message
    assert message.startswith("1023 of 1024 members were not there at the group's deadline: slots 1, 2, 3,")
    assert len(message) < 300


@pytest.mark.parametrize(
    "member",
    [
        Member(b"digest", np.array([1.5, -3e-9], dtype=np.float32).tobytes(), 7, False, Measures(3, 40, 0.25)),
        Member(b"\n\x00", b"\n\n a text \n"),
        Member(b"digest", None, error=("invalid_request", "a lone surrogate")),
    ],
)
def test_a_member_comes_back_from_its_bytes(member):
    back = Member.from_bytes(member.to_bytes())
    assert back == member


def test_a_head_comes_back_from_its_bytes():
    assert Head.from_bytes(head(until=1 / 3).to_bytes()) == head(until=1 / 3)


def test_tenants_and_names_do_not_share_a_key():
    assert len({group_key(None, "a"), group_key("a", "a"), group_key("a", "b"), group_key(None, "b")}) == 4
