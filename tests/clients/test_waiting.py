"""A command that waits for a service says so once, and then every ten seconds how long it goes on."""

import logging

from paragone.transport import RETRIED
from paragone.waiting import in_few_words


def test_of_many_tries_the_first_one_is_said_and_then_one_in_ten_seconds(caplog):
    logger, now = logging.getLogger("paragone"), 0.0
    caplog.set_level(logging.WARNING, "paragone")
    with in_few_words(lambda: now):
        for number in range(100):
            now = number / 4
            logger.warning(RETRIED, number + 1, 0.25, 60 - now, "connection refused")
        logger.warning("another matter")
    logger.warning(RETRIED, 1, 0.25, 60.0, "after it")
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for up to 60 s: connection refused",
        "still waiting, for up to 50 s more",
        "still waiting, for up to 40 s more",
        "another matter",
        "try 1 failed, the next one in 0.25 s (60 s left): after it",
    ]
