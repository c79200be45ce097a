"""One trace from the client's program over the service to the engine's server."""

import httpx2
import pytest

from paragone import AsyncClient, ParagoneError
from paragone_models import load_model
from paragone_models.spec import ModelSpec
from paragone_service.app import create_app
from paragone_service.config import Settings
from paragone_service.engine.vllm import open_vllm
from paragone_service.tracing import make_tracer
from tests.clients.oracle import listening
from tests.service.conftest import make_model, make_tokenizer

export = pytest.importorskip("opentelemetry.sdk.trace.export", reason="needs paragone[tracing]")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
sdk = pytest.importorskip("opentelemetry.sdk.trace")
trace = pytest.importorskip("opentelemetry.trace")

OURS = {"paragone", "program"}

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def exporter():
    """Everything that ended; the program's provider, as OpenTelemetry keeps one a process."""
    kept = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    yield kept
    # The process keeps the provider, and one that is shut down warns at each span of the tests that follow.
    kept.shutdown()
    kept.clear()


@pytest.fixture
def spans(exporter):
    exporter.clear()
    # FastAPI makes spans of its own where the program has a provider; a server that is one process has none.
    return lambda: [span for span in exporter.get_finished_spans() if span.instrumentation_scope.name in OURS]


async def ask(app, *calls):
    """Ask through the client, inside a span of the program."""
    async with app.router.lifespan_context(app), AsyncClient(transport=httpx2.ASGITransport(app=app)) as client:
        with trace.get_tracer("program").start_as_current_span("program"):
            for call in calls:
                await call(client)


async def test_client_service_and_batch_are_one_trace(hosted, spans):
    app = create_app(Settings(), hosted, tracer=trace.get_tracer("paragone"))
    await ask(app, lambda client: client.prefer("a secret prompt", "secret one", "secret two", model="bt"))
    by_id = {span.context.span_id: span for span in spans()}
    (batch,) = [span for span in by_id.values() if span.name == "batch"]
    names = []
    span = batch
    while span is not None:
        names.append(span.name)
        span = by_id.get(span.parent.span_id) if span.parent else None
    assert names == ["batch", "POST /v1/preferences", "POST /v1/preferences", "program"]
    assert len({span.context.trace_id for span in by_id.values()}) == 1
    assert batch.attributes["paragone.model"] == "bt"
    server = by_id[batch.parent.span_id]
    assert server.attributes["http.route"] == "/v1/preferences"
    assert server.attributes["http.response.status_code"] == 200
    assert "secret" not in "".join(span.to_json() for span in by_id.values())


async def test_a_refusal_is_named_by_its_code_and_repeats_nothing(hosted, spans):
    app = create_app(Settings(), hosted, tracer=trace.get_tracer("paragone"))
    with pytest.raises(ParagoneError):
        await ask(app, lambda client: client.prefer("p", "a", "b", model="secret"))
    (server,) = [span for span in spans() if span.kind is trace.SpanKind.SERVER]
    assert server.attributes["paragone.code"] == "unknown_model"
    assert server.attributes["http.response.status_code"] == 404
    assert "secret" not in server.to_json()


async def test_an_engine_elsewhere_gets_the_trace_of_the_batch(tmp_path, spans):
    sent = []

    def engine(request):
        if request.url.path != "/health":
            sent.append(request.headers.get("traceparent"))
        return httpx2.Response(400)

    spec = ModelSpec(kind="bradley-terry", dimension=1, pooling="last", max_length=256)
    folder = make_model(tmp_path / "last", spec, make_tokenizer(), 3)
    model = load_model(folder, name="last", device="cpu", elsewhere=True)
    vllm = open_vllm(model, ["http://engine"], transport=httpx2.MockTransport(engine))
    app = create_app(Settings(), {"last": model}, engines={"last": vllm}, tracer=trace.get_tracer("paragone"))
    with pytest.raises(ParagoneError):
        await ask(app, lambda client: client.prefer("p", "a", "b"))
    (batch,) = [span for span in spans() if span.name == "batch"]
    assert [one[:-2] for one in sent] == [f"00-{batch.context.trace_id:032x}-{batch.context.span_id:016x}-"]


async def test_without_traces_there_are_no_spans_of_the_service(hosted, spans):
    await ask(create_app(Settings(), hosted), lambda client: client.prefer("p", "a", "b", model="bt"))
    assert [span.name for span in spans()] == ["POST /v1/preferences", "program"]


def test_a_collector_gets_the_spans():
    got = []

    def collect(request):
        got.append(request.url.path)
        return httpx2.Response(200)

    with listening(collect) as url:
        tracer = make_tracer(f"{url}/v1/traces")
        tracer.start_span("one").end()
        tracer.span_processor.force_flush()
        tracer.span_processor.shutdown()
    assert got == ["/v1/traces"]
    assert make_tracer(None) is None
