"""The route that says what a data file holds."""

import functools

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from paragone.wire import FileAnswer, FileQuery
from paragone_service.api_keys import ApiKey
from paragone_service.files.reading import FileReader
from paragone_service.http.calls import client_gone
from paragone_service.http.errors import from_validation
from paragone_service.http.middleware import SCOPE_KEY
from paragone_service.http.openapi_document import file_document

__all__ = ["file_routes"]


def file_routes(reader: FileReader) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["files"])

    @router.post("/v1/files", **file_document(FileQuery, FileAnswer))
    async def read_file(request: Request) -> Response:
        """Answer what a data file holds and some of its rows: layout, counts, what is left out and why.

        The body is the file, in any layout and container that `paragone data` reads. Nothing of it is kept. The rows of
        one answer take 16 MB at most.
        """
        try:
            query = FileQuery.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise from_validation(error) from None
        gone = functools.partial(client_gone, request)
        key: ApiKey | None = request.scope.get(SCOPE_KEY)
        answer = await reader.read(query, request.stream(), gone, key=key.name if key else None)
        return Response(answer, media_type="application/json")

    return router
