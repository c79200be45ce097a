"""The thread that reads texts: in chunks of few characters, so that others' come in between."""

import asyncio
from types import SimpleNamespace

from paragone_models.text.reader import conversation
from paragone_service.scoring.model_io import ReadingThread


class Recorder:
    """A reader that remembers how many conversations it was given at once."""

    def __init__(self):
        self.sizes = []

    def read(self, conversations, *, truncation):
        assert truncation == "prompt"
        self.sizes.append(len(conversations))
        return list(conversations)


def chunks_of(lengths):
    recorder = Recorder()
    thread = ReadingThread("m", SimpleNamespace(reader=recorder))
    conversations = [conversation("p", "x" * length) for length in lengths]
    call = SimpleNamespace(truncation="prompt", timings=SimpleNamespace(tokenize_s=0.0))
    try:
        assert asyncio.run(thread.read(conversations, call)) == conversations
    finally:
        thread.close()
    return recorder.sizes


def test_a_chunk_has_at_most_128_conversations():
    assert chunks_of([10] * 300) == [128, 128, 44]


def test_a_chunk_of_long_texts_has_few_of_them():
    assert chunks_of([100_000] * 5) == [2, 2, 1]


def test_a_text_over_the_size_of_a_chunk_is_read_alone():
    assert chunks_of([10, 500_000, 10, 10]) == [1, 1, 2]


def test_nothing_is_read_of_nothing():
    assert chunks_of([]) == []
