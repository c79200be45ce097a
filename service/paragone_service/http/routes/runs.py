"""The routes of runs: a watcher says how far one is, and the page shows it."""

from fastapi import APIRouter, Request
from pydantic import ValidationError

from paragone.wire import RunAnswer, RunReport, RunsAnswer, RunSummary
from paragone_service.http.bodies import read_values
from paragone_service.http.calls import tenant_of
from paragone_service.http.errors import from_validation
from paragone_service.http.openapi_document import report_document, run_document
from paragone_service.runs import Runs

__all__ = ["run_routes"]


def run_routes(runs: Runs) -> APIRouter:
    """Return the routes of runs."""
    router = APIRouter(tags=["runs"])

    @router.post("/v1/runs", **report_document(RunReport, RunSummary))
    async def report_run(request: Request) -> RunSummary:
        """Keep how far a run is, in place of what was told before under its name.

        `paragone watch RUN --url URL` sends this. 32 runs are kept for each tenant, for a day after their last news, in
        this process: replicas do not share them.
        """
        values = await read_values(request)
        try:
            report = RunReport.model_validate(values)
        except ValidationError as error:
            raise from_validation(error) from None
        return runs.put(tenant_of(request), report)

    @router.get("/v1/runs", **run_document(RunsAnswer))
    async def list_runs(request: Request) -> RunsAnswer:
        """Answer which runs this server was told of, the newest first: those of the key's tenant."""
        return RunsAnswer(runs=runs.listed(tenant_of(request)))

    @router.get("/v1/runs/{name}", **run_document(RunAnswer, named=True))
    async def show_run(request: Request, name: str) -> RunAnswer:
        """Answer all that this server was told of a run, its numbers over time among it."""
        return runs.named(tenant_of(request), name)

    return router
