"""The routes of reference sets: stored, listed, shown and deleted."""

from fastapi import APIRouter, Request

from paragone.wire import ReferenceSet, ReferenceSetsAnswer, ReferencesRequest
from paragone_service.http.bodies import check_total, read_body
from paragone_service.http.calls import call_of, tenant_of
from paragone_service.http.openapi_document import reference_document, references_document
from paragone_service.references.owners import TextOwner, VectorOwner
from paragone_service.references.sets import Owner, ReferenceSets
from paragone_service.registry import Registry

__all__ = ["reference_routes"]


def reference_routes(registry: Registry, sets: ReferenceSets) -> APIRouter:
    """Return the routes of reference sets."""
    router = APIRouter(tags=["references"])

    @router.post("/v1/references", **references_document(ReferencesRequest, ReferenceSet))
    async def add_references(request: Request) -> ReferenceSet:
        """Store responses to many prompts under a name, in place of what it had before.

        Later requests say `"references": {"set": NAME}`. Of a model that represents responses the representations are
        stored: then only a request's own responses are run through it, and a response that cannot be scored refuses the
        whole set. Of one that reads both responses at once the texts are stored.
        """
        body, _, problems = await read_body(request, ReferencesRequest, "items")
        problems.by_member = True  # so that the message names the response
        source = registry.pair_source(body.model)
        owner: Owner[object] = VectorOwner(registry.find(body.model)) if source is None else TextOwner(source)
        check_total(sum(len(item.responses) for item in body.items))
        call = call_of(request, body.truncation, problems)
        return await sets.add(owner, body.name, body.items, call, ttl_s=body.ttl_s)

    @router.get("/v1/references", **reference_document(ReferenceSetsAnswer))
    async def list_references(request: Request) -> ReferenceSetsAnswer:
        """Answer which sets are stored, by name: those of the key's tenant."""
        return ReferenceSetsAnswer(references=await sets.listed(tenant_of(request)))

    @router.get("/v1/references/{name}", **reference_document(ReferenceSet, named=True))
    async def show_references(request: Request, name: str) -> ReferenceSet:
        """Answer what is stored under a name."""
        return await sets.named(tenant_of(request), name)

    @router.delete("/v1/references/{name}", **reference_document(ReferenceSet, named=True))
    async def delete_references(request: Request, name: str) -> ReferenceSet:
        """Forget a set, and answer what it was."""
        return await sets.delete(tenant_of(request), name)

    return router
