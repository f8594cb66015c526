"""The parts of the OpenAPI document that FastAPI cannot know: forms, files, our problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api import problems
from api.decoding import ImageFormat
from api.fields import JobFields
from api.views import JOB_EXAMPLE
from api.webhook_views import WEBHOOK_EXAMPLES

_REFERENCE = "#/components/schemas/{model}"

DESCRIPTION = """\
Pictures in, small neural networks out. Send a picture, follow its job, download the `.nif` file.

Every failure is an RFC 9457 problem with a stable `code`. Every answer carries `X-Request-ID`;
those to a key with a limit carry `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset`.
"""


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the content of a JSON body; the model becomes a component of the document."""
    _MODELS.append(model)
    name = model.__name__
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=name)}}}


_MODELS: list[type[BaseModel]] = []


def job_form(*, many: bool) -> dict[str, Any]:
    """Return the content of a form with one picture or many, and the fields of a job."""
    schema = JobFields.model_json_schema(ref_template=_REFERENCE)
    properties = {name: _without_null(each) for name, each in schema["properties"].items()}
    # A form carries text; an object travels as JSON in it.
    properties["metadata"] = {
        "type": "string",
        "description": properties["metadata"]["description"],
        "examples": ['{"album": "spring"}'],
    }
    file: dict[str, Any] = {"type": "string", "format": "binary", "description": "The picture."}
    if many:
        file = {"type": "array", "items": file, "minItems": 1, "description": "The pictures."}
    return {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "additionalProperties": False,
                "properties": {"file": file} | properties,
            }
        }
    }


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a form field: what is not given is left out there, not null."""
    kinds: list[dict[str, Any]] = [
        each for each in schema.get("anyOf", []) if each != {"type": "null"}
    ]
    if len(kinds) != 1:
        return schema
    rest: dict[str, Any] = {
        name: each for name, each in schema.items() if name not in ("anyOf", "default")
    }
    return rest | kinds[0]


def decode_form() -> dict[str, Any]:
    """Return the content of a form with a .nif file and how to render it."""
    side = {"type": "integer", "minimum": 1, "maximum": 65535}
    return {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "additionalProperties": False,
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "A .nif file."},
                    "format": {"type": "string", "enum": [each.value for each in ImageFormat]},
                    "width": side,
                    "height": side,
                    "region": {"type": "string", "pattern": "^\\d+,\\d+,\\d+,\\d+$"},
                },
            }
        }
    }


def with_body(*contents: dict[str, Any]) -> dict[str, Any]:
    """Return the extra members of an operation that takes one of these bodies."""
    content: dict[str, Any] = {}
    for each in contents:
        content |= each
    return {"requestBody": {"required": True, "content": content}}


def install(app: FastAPI) -> None:
    """Make ``app`` describe itself completely."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary="Neural image compression as a service",
        description=DESCRIPTION,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    schemas = document["components"]["schemas"]
    for model in _MODELS:
        found = model.model_json_schema(ref_template=_REFERENCE)
        schemas |= found.pop("$defs", {})
        schemas[model.__name__] = found
    schemas["Problem"] = problems.SCHEMA
    # FastAPI drops what is null, also where a value of an example is.
    schemas["JobView"]["example"] = JOB_EXAMPLE
    for name, example in WEBHOOK_EXAMPLES.items():
        schemas[name]["example"] = example
    answer = {"created": True, "deduplicated": False, "replayed": False}
    schemas["SubmittedView"]["example"] = JOB_EXAMPLE | answer
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path in document["paths"].values():
        for operation in path.values():
            _without_fastapi_errors(operation)
    return document


def _without_fastapi_errors(operation: dict[str, Any]) -> None:
    """Remove FastAPI's own 422, which is never sent."""
    content = operation["responses"].get("422", {}).get("content", {})
    if "application/json" in content:
        if len(content) == 1:
            del operation["responses"]["422"]
        else:
            del content["application/json"]
