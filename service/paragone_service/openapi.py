"""The OpenAPI document as it is checked in: ``python -m paragone_service.openapi > docs/openapi.json``."""

import json
import sys

from paragone_service.app import create_app
from paragone_service.config import Settings

__all__ = ["openapi_json"]


def openapi_json() -> str:
    """Return the text of ``docs/openapi.json``; it does not depend on which models are hosted."""
    return json.dumps(create_app(Settings(), {}).openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(openapi_json())
