"""A capacity plan on paper: how long a billion responses take, what they put into Redis, and what has to be carried.

Nothing is run. What is measured elsewhere stands in ``MEASURED``; what a GPU does of its peak is an assumption until
somebody measured it (``benchmarks/gpu.py``), and is an option.

    t   tokens that run for a response         P/K + R, the prompt once for its K siblings
    F   operations of a token                  2 N, of a dense decoder of N parameters; attention is left out
    r   responses a second that are computed   G · u · peak / (F · t)
    s   responses a second in all              r / (1 − h), with a share h from the cache
    c   cores of the service                   r · reading a response + (s − r) · answering one from the cache
    n   bytes to an engine and back, computed  4 (P + R) + 24 and 4 H, the prompt sent with each sibling
    m   bytes in Redis                         responses · bytes of an entry

    python benchmarks/capacity.py [--parameters 8e9] [--hidden 4096] [--prompt 500] [--response 300] [--siblings 8] \
[--hits 0.5] [--peak 989e12] [--utilisation 0.4] [--responses 1e9]
"""

import argparse
from dataclasses import dataclass

GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Measured:
    """What was measured on two cores of an Intel Xeon (``cached_s``: of an AMD EPYC), and where.

    Attributes:
        reading_s: processor time of the service for a response that is computed, at most: benchmarks/dialects.py, whose
            texts of 60 words run through a model of 0.3 million parameters, forward included.
        cached_s: processor time for a response from the cache: benchmarks/serving_cached.py, two responses a pair.
        entry_bytes: of a general preference model with d = 8, sealed: benchmarks/redis_memory.py.
        redis_keys: keys that one Redis reads a second, 1,024 at a time: the same.
    """

    reading_s: float = 1 / 800
    cached_s: float = 2 / (2 * 83_328)
    entry_bytes: float = 209
    redis_keys: float = 1024 / 2.5e-3


MEASURED = Measured()


@dataclass(frozen=True)
class Workload:
    """What is asked for, and with what.

    Attributes:
        parameters: N of the backbone.
        hidden: H, the size of a hidden state.
        prompt: P, tokens.
        response: R, tokens.
        siblings: K, responses to one prompt.
        hits: h, the share of responses that is known already.
        peak: operations a second of a GPU, dense, in the dtype that is used.
        utilisation: u, what of it is reached.
        responses: how many in all.
    """

    parameters: float = 8e9
    hidden: int = 4096
    prompt: int = 500
    response: int = 300
    siblings: int = 8
    hits: float = 0.5
    peak: float = 989e12
    utilisation: float = 0.4
    responses: float = 1e9

    @property
    def tokens(self) -> float:
        """Tokens that run for a response which is computed."""
        return self.prompt / self.siblings + self.response

    def computed(self, gpus: int) -> float:
        """Return the responses that so many GPUs compute in a second."""
        return gpus * self.utilisation * self.peak / (2 * self.parameters * self.tokens)

    def answered(self, gpus: int) -> float:
        """Return the responses answered in a second, those from the cache included."""
        return self.computed(gpus) / (1 - self.hits)

    def cores(self, gpus: int) -> float:
        """Return the cores that the service needs for them."""
        computed, answered = self.computed(gpus), self.answered(gpus)
        return computed * MEASURED.reading_s + (answered - computed) * MEASURED.cached_s

    def engine_bytes(self, gpus: int) -> float:
        """Return the bytes a second between the service and engines on other hosts, both ways."""
        each = 4 * (self.prompt + self.response) + 24 + 4 * self.hidden
        return self.computed(gpus) * each

    def redis_bytes(self) -> float:
        """Return what Redis keeps of all responses that were computed."""
        return self.responses * (1 - self.hits) * MEASURED.entry_bytes

    def redis_load(self, gpus: int) -> float:
        """Return how many Redis servers reads and writes keep busy: one key read and at most one written each."""
        return (self.answered(gpus) + self.computed(gpus)) / MEASURED.redis_keys


def table(workload: Workload) -> str:
    """Return the plan as a table in Markdown, a column for each number of GPUs."""
    hours = [workload.responses / workload.answered(gpus) / 3600 for gpus in GPUS]
    rows = {
        "responses computed a second": [f"{workload.computed(gpus):,.0f}" for gpus in GPUS],
        "responses answered a second": [f"{workload.answered(gpus):,.0f}" for gpus in GPUS],
        f"hours for {workload.responses:.0e} responses": [f"{one:,.1f}" for one in hours],
        "cores of the service, at most": [f"{workload.cores(gpus):.1f}" for gpus in GPUS],
        "MB/s to engines elsewhere and back": [f"{workload.engine_bytes(gpus) / 1e6:,.1f}" for gpus in GPUS],
        "Redis servers kept busy": [f"{workload.redis_load(gpus):.3f}" for gpus in GPUS],
        "GB in Redis at the end": [f"{workload.redis_bytes() / 1e9:,.0f}"] * len(GPUS),
    }
    head = [
        "| | " + " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS) + " |",
        "|---" * (1 + len(GPUS)) + "|",
    ]
    return "\n".join([*head, *(f"| {name} | {' | '.join(values)} |" for name, values in rows.items())])


def main() -> None:
    """Print the plan of a workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = Workload()
    for name in ("parameters", "peak", "utilisation", "hits", "responses"):
        parser.add_argument(f"--{name}", type=float, default=getattr(usual, name))
    for name in ("hidden", "prompt", "response", "siblings"):
        parser.add_argument(f"--{name}", type=int, default=getattr(usual, name))
    print(table(Workload(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
