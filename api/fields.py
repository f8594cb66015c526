"""What a client asks of a job: the fields of forms and JSON bodies, checked."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from api.problems import Problem
from jobs import Parameters
from nifcore.presets import PRESETS

Model = TypeVar("Model", bound=BaseModel)

TARGETS = ("quality", "psnr", "bpp", "max_bytes")
_MAX_WEBHOOK = 2048


class Contradiction(ValueError):
    """Parameters that exclude each other."""


def _from_json_text(value: Any) -> Any:
    """Read the JSON text that a form carries where JSON itself carries an object."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('must be a JSON object like {"name": "value"}') from None
    return value


Preset = Annotated[
    str,
    Field(
        description="A published recipe; it fixes effort and size, so neither can be given.",
        json_schema_extra={"enum": list(PRESETS)},
    ),
]


class Asked(BaseModel):
    """What is asked of the encoder. At most one target, and a preset only alone."""

    model_config = ConfigDict(extra="forbid")

    preset: Preset | None = None
    effort: int | None = Field(None, ge=1, le=9, description="How long to fit; 5 by default.")
    quality: float | None = Field(
        None, ge=1, le=100, description="A scale of rates, 75 (0.45 bits per pixel) by default."
    )
    psnr: float | None = Field(None, ge=5, le=100, description="The least PSNR, in dB.")
    bpp: float | None = Field(
        None, ge=1e-4, le=16, description="The most bits per pixel of the whole file."
    )
    max_bytes: int | None = Field(
        None, ge=1, le=2**40, description="The most bytes of the whole file."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.preset is not None and self.preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(f"preset: unknown preset {self.preset[:80]!r}; there are {known}")
        targets = [name for name in TARGETS if getattr(self, name) is not None]
        if len(targets) > 1:
            raise Contradiction(f"{' and '.join(targets)} exclude each other; give one")
        if self.preset is not None and self.effort is not None:
            raise Contradiction("preset and effort exclude each other; give one")
        if self.preset is not None and targets:
            raise Contradiction(f"a preset has a fixed size; {targets[0]} cannot be given with it")
        return self


class JobFields(Asked):
    """Everything that can be said about a new job, beside its picture."""

    seed: int = Field(0, ge=0, le=2**31 - 1, description="Start of the random numbers.")
    keep_icc: bool = Field(
        False, description="Keep the colour profile in the file instead of converting to sRGB."
    )
    priority: int = Field(5, ge=0, le=9, description="9 is worked on first.")
    metadata: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=512)],
            Annotated[str, Field(max_length=512)],
        ],
        BeforeValidator(_from_json_text),
    ] = Field(
        default={},
        max_length=32,
        description="Your own notes, text to text; in a form as JSON text.",
    )
    webhook: Annotated[str, Field(max_length=_MAX_WEBHOOK)] | None = Field(
        None, description="https:// URL that is told when the job ends."
    )
    deduplicate: bool = Field(
        True, description="Let an earlier job with the same picture and parameters answer."
    )

    def parameters(self) -> Parameters:
        """Return what the encoder is asked."""
        return Parameters(
            **{name: getattr(self, name) for name in Asked.model_fields},
            seed=self.seed,
            keep_icc=self.keep_icc,
        )


class UploadedJob(JobFields):
    """A job on a picture that was uploaded before."""

    upload_id: str = Field(
        min_length=1, max_length=80, description="Id of a `POST /v1/uploads` whose bytes are there."
    )


class EstimateFields(Asked):
    """A picture's size and what would be asked of the encoder."""

    width: int = Field(ge=1, le=65_535, description="In pixels.")
    height: int = Field(ge=1, le=65_535, description="In pixels.")


def refuse(error: ValidationError, place: str) -> Problem:
    """Return the problem that a failed validation amounts to."""
    found = []
    kinds = set()
    for each in error.errors(include_url=False):
        cause = each.get("ctx", {}).get("error")
        if isinstance(cause, Contradiction):
            return Problem("contradictory_parameters", str(cause))
        if each["type"] == "json_invalid":
            return Problem("malformed_request", f"the body is not JSON: {each['msg']}")
        kinds.add(each["type"])
        name = ".".join(str(part) for part in each["loc"])
        found.append({"in": place, "name": name, "message": each["msg"]})
    detail = "; ".join(f"{each['name']}: {each['message']}".strip(": ") for each in found[:5])
    code = "unknown_parameter" if kinds == {"extra_forbidden"} else "invalid_parameter"
    return Problem(code, detail, errors=found)


def from_form(fields: dict[str, str]) -> JobFields:
    """Read the fields of a form; an empty one counts as not given.

    Raises:
        Problem: ``invalid_parameter``, ``unknown_parameter`` or ``contradictory_parameters``.
    """
    try:
        return JobFields.model_validate({name: text for name, text in fields.items() if text})
    except ValidationError as error:
        raise refuse(error, "form") from None


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


def from_json(model: type[Model], body: bytes) -> Model:
    """Read a JSON body; numbers must be numbers there, not text.

    Raises:
        Problem: as :func:`from_form`, or ``malformed_request``.
    """
    try:
        # In JSON 3.0 is a whole number.
        values = json.loads(body, parse_float=_number)
        return model.model_validate_json(json.dumps(values), strict=True)
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Problem("malformed_request", f"the body is not JSON: {error}") from None
    except ValidationError as error:
        raise refuse(error, "body") from None
