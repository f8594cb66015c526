"""What handlers share: the service, its settings, and the helpers built from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.decoding import Decoder
from api.estimate import Estimator
from api.metrics import Metrics
from api.streams import Streams
from jobs import JobService, Settings


@dataclass(frozen=True)
class Context:
    """Everything that lives as long as the app.

    Attributes:
        settings: of the service.
        service: store, blobs and all behind them.
        decoder: renders .nif files in child processes.
        estimator: guesses seconds and bytes.
        metrics: what is counted.
        streams: events as they happen.
    """

    settings: Settings
    service: JobService
    decoder: Decoder
    estimator: Estimator
    metrics: Metrics
    streams: Streams


async def context_of(request: Request) -> Context:
    """Return the app's context. Not blocking: FastAPI would send a plain function to a thread."""
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


Shared = Annotated[Context, Depends(context_of)]
