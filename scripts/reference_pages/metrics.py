"""The page of metrics, from the registry of a server that has answered nothing yet."""

from paragone_service.metrics import Metrics

from .markdown import table

__all__ = ["metrics_page"]


def metrics_page() -> str:
    """Return the page: every metric with its kind, its labels and what it counts."""
    collectors = Metrics().registry._collector_to_names  # noqa: SLF001 (nothing public has the labels of an empty one)
    rows = []
    for collector in collectors:
        (family,) = collector.describe() if hasattr(collector, "describe") else collector.collect()
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        suffix = "_total" if family.type == "counter" else ""
        rows.append((f"`{family.name}{suffix}`", family.type, labels, family.documentation))
    return (
        "# Metrics\n\n`GET /metrics` answers in the text format of Prometheus. A histogram has `_bucket`, `_sum` and "
        f"`_count`.\n\n{table(('metric', 'kind', 'labels', 'what it is'), rows)}"
    )
