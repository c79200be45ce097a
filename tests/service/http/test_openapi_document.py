"""The OpenAPI document: checked in as it is generated, complete, and true."""

import json
from pathlib import Path

import pytest

from paragone import wire
from paragone.codes import ErrorCode
from paragone_service.http.errors import HTTP_STATUS
from paragone_service.openapi import openapi_json

ROUTES = {
    ("post", "/v1/preferences"): wire.PreferencesAnswer,
    ("post", "/v1/rewards"): wire.RewardsAnswer,
    ("post", "/v1/tournaments"): wire.TournamentsAnswer,
    ("post", "/v1/cohorts"): wire.CohortAnswer,
    ("post", "/v1/references"): wire.ReferenceSet,
    ("get", "/v1/references"): wire.ReferenceSetsAnswer,
    ("get", "/v1/references/{name}"): wire.ReferenceSet,
    ("delete", "/v1/references/{name}"): wire.ReferenceSet,
    ("post", "/v1/tokens"): wire.TokensAnswer,
    ("get", "/v1/models"): wire.ModelsAnswer,
    ("get", "/v1/models/{model}"): wire.ModelInfo,
    ("post", "/v1/models/{model}:load"): wire.ModelInfo,
    ("post", "/v1/models/{model}:unload"): wire.ModelInfo,
    ("post", "/v1/files"): wire.FileAnswer,
    ("post", "/v1/runs"): wire.RunSummary,
    ("get", "/v1/runs"): wire.RunsAnswer,
    ("get", "/v1/runs/{name}"): wire.RunAnswer,
    ("post", "/v1/heads"): wire.HeadAnswer,
    ("get", "/livez"): None,
    ("get", "/readyz"): None,
    ("get", "/metrics"): None,
}
REQUESTS = {
    "/v1/cohorts": wire.CohortRequest,
    "/v1/heads": wire.HeadRequest,
    "/v1/references": wire.ReferencesRequest,
    "/v1/preferences": wire.PreferencesRequest,
    "/v1/rewards": wire.RewardsRequest,
    "/v1/runs": wire.RunReport,
    "/v1/tournaments": wire.TournamentsRequest,
    "/v1/tokens": wire.TokensRequest,
    "/v1/models/{model}:load": wire.LoadRequest,
}


@pytest.fixture(scope="module")
def document():
    return json.loads(openapi_json())


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_the_checked_in_document_is_the_generated_one():
    path = Path(__file__).parents[3] / "docs" / "openapi.json"
    assert path.read_text(encoding="utf-8") == openapi_json(), "python -m paragone_service.openapi > docs/openapi.json"


def test_every_route_is_documented_and_no_other(document):
    assert {(method, path) for method, path, _ in operations(document)} == set(ROUTES)


def test_every_route_has_a_summary_a_description_and_an_example(document):
    for method, path, operation in operations(document):
        assert operation["summary"], path
        assert operation["description"], path
        content = operation["responses"]["200"]["content"]
        (answer,) = content.values()
        assert "example" in answer, path
        answered = ROUTES[method, path]
        if answered is not None:
            assert answer["schema"] == {"$ref": f"#/components/schemas/{answered.__name__}"}
            answered.model_validate(answer["example"])


def test_every_request_has_its_schema_and_an_example_that_it_accepts(document):
    for path, request in REQUESTS.items():
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{request.__name__}"}
        request.model_validate(content["example"])
        assert document["components"]["schemas"][request.__name__]["additionalProperties"] is False


def test_documented_errors_have_the_status_of_the_table(document):
    documented = set()
    for _, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if status == "200":
                continue
            content = response["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/ErrorBody"}, path
            for code, example in content["examples"].items():
                assert HTTP_STATUS[ErrorCode(code)] == int(status), (path, code)
                assert wire.ErrorBody.model_validate(example["value"]).error.code == code
                documented.add(ErrorCode(code))
    # What belongs to no route, or to those of dialects, which have a page of their own.
    elsewhere = {
        ErrorCode.METHOD_NOT_ALLOWED,
        ErrorCode.DIALECT_OFF,
        ErrorCode.REFERENCE_REQUIRED,
    }
    assert documented == set(ErrorCode) - elsewhere


def test_every_reference_leads_to_a_schema_and_every_schema_is_used(document):
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    used = {name for name in schemas if f'"#/components/schemas/{name}"' in text}
    assert used == set(schemas)
    assert text.count("#/components/schemas/") == sum(text.count(f'"#/components/schemas/{name}"') for name in schemas)


def test_the_key_is_documented_for_everything_but_health(document):
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["security"] == [{"bearer": []}]
    for _, path, operation in operations(document):
        assert ("security" in operation) == (path in ("/livez", "/readyz")), path
        assert operation.get("security", []) == []
