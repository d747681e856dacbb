# SPDX-License-Identifier: MIT
"""The HTTP application: routes, and what becomes of errors and of clients that leave."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from pipeline import __version__
from pipeline.answers import ChatRendering, CompletionRendering, Reason, Rendering
from pipeline.batch_rows import find_row_multiple
from pipeline.chat_template import read_chat_template
from pipeline.completions import Answer, ClientGoneError, Completions, Part, to_api_error
from pipeline.engine import LoadedEngine
from pipeline.errors import PipelineError, UsageError
from pipeline.http_guard import CLIENT_LEFT, LOG_FIELDS, HttpGuard
from pipeline.loaded_file import LoadedFile
from pipeline.metrics import CONTENT_TYPE, Metrics
from pipeline.openai_api import (
    ApiError,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Deleted,
    ErrorBody,
    Model,
    ModelList,
    NamedStateBody,
    StateList,
    StateRequest,
)
from pipeline.prefix_cache import PrefixCache
from pipeline.scheduler import Limits, Scheduler
from pipeline.self_check import SelfCheck
from pipeline.server_settings import ServerSettings
from pipeline.states import StateStore
from pipeline.text_assembly import Piece
from pipeline.tokenizer import Tokenizer
from pipeline.weights import WEIGHT_FILE

if TYPE_CHECKING:
    from pydantic import BaseModel

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be answered"},
    "5XX": {"model": ErrorBody, "description": "The server cannot answer"},
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {}},
        "description": "The answer; with `stream`, server-sent events that end with [DONE]",
    }
}


@dataclass(frozen=True)
class Server:
    """A running model behind its HTTP application.

    Attributes:
        application: The ASGI application; it knows how many requests are in progress.
        scheduler: Runs the model.
        model_name: Name of the model in requests.
        states_folder: Where named states are kept.
    """

    application: HttpGuard
    scheduler: Scheduler
    model_name: str
    states_folder: Path


class _Service:
    """What the routes share."""

    def __init__(self, engine: LoadedEngine, settings: ServerSettings, metrics: Metrics) -> None:
        if engine.tokenizer is None:
            raise UsageError(
                f"{engine.folder} has no tokenizer, so no text can be served",
                fix="convert again with --tokenizer FOLDER",
            )
        manifest = engine.manifest
        self.settings = settings
        self.tokenizer = engine.tokenizer
        self.metrics = metrics
        self.model = Model(
            id=settings.model_name or manifest.model_name,
            created=int(datetime.fromisoformat(manifest.created).timestamp()),
        )
        self.weights = LoadedFile(engine.bundle / WEIGHT_FILE)
        folder = engine.folder.resolve()
        self.store = StateStore(
            settings.states_folder or folder.with_name(f"{folder.name}-states"),
            manifest.architecture,
            manifest.weights_sha256,
            settings.max_states,
        )
        # One prefill call of the engine is a piece: the longest stretch it reads at once.
        cache = PrefixCache(manifest.max_length, settings.prefix_cache_bytes)
        multiple = find_row_multiple(engine.session, manifest.max_batch)
        limits = Limits(
            slots=manifest.max_batch // multiple * multiple,
            row_multiple=multiple,
            queue=settings.max_queue,
            queue_s=settings.max_queue_s,
            request_s=settings.max_request_s,
        )
        self.scheduler = Scheduler(engine.session, cache, limits, metrics)
        self.completions = Completions(
            engine.tokenizer,
            read_chat_template(engine.bundle),
            self.scheduler,
            self.store,
            self.weights,
            self.model.id,
            settings,
        )
        self.self_check = SelfCheck(self.scheduler, engine.tokenizer, manifest.self_test)


async def _service_of(http: Request) -> _Service:
    service: _Service = http.app.state.service
    return service


_Shared = Annotated[_Service, Depends(_service_of)]
_health = APIRouter(tags=["health"])
_api = APIRouter(prefix="/v1", responses=_ERRORS)

# --- health --------------------------------------------------------------------------------


@_health.get("/healthz", responses=_ERRORS)
async def is_alive(service: _Shared) -> dict[str, str]:
    """Whether the process works at all; if not, restart it."""
    if not service.scheduler.is_alive:
        raise ApiError(503, "the worker that runs the model has ended", "worker_ended")
    return {"status": "alive"}


@_health.get("/healthz/model", responses=_ERRORS)
async def is_computing(service: _Shared) -> dict[str, str]:
    """Whether the model computes what it did when its engine was built; if not, restart it."""
    await is_alive(service)
    return {"status": "alive", "model": await service.self_check.run()}


@_health.get("/readyz", responses=_ERRORS)
async def is_ready(service: _Shared) -> dict[str, str]:
    """Whether to send requests here."""
    await is_alive(service)
    if not service.scheduler.is_accepting:
        raise ApiError(503, "the server is stopping", "stopping")
    change = service.weights.change()
    if change == "overwritten":
        raise ApiError(503, "the weight file was written into while in use", "weights_overwritten")
    # What is loaded is the older file, whole and in memory.
    return {"status": "ready", "model": service.model.id, "weights_on_disk": change}


@_health.get("/metrics", response_class=Response)
async def read_metrics(service: _Shared) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


# --- models --------------------------------------------------------------------------------


@_api.get("/models")
async def list_models(service: _Shared) -> ModelList:
    """The model that is served."""
    return ModelList(data=[service.model])


@_api.get("/models/{model}")
async def read_model(model: str, service: _Shared) -> Model:
    """One model."""
    if model != service.model.id:
        raise ApiError(404, f"this server has the model '{service.model.id}'", "model_not_found")
    return service.model


# --- completions ---------------------------------------------------------------------------


@_api.post("/completions", response_model=Completion, responses=_STREAM)
async def complete(body: CompletionRequest, http: Request, service: _Shared) -> Response:
    """Continues a text."""
    answer = await service.completions.complete(body)
    rendering = CompletionRendering(
        *_identity("cmpl", service), has_logprobs=body.logprobs is not None
    )
    return await _respond(http, service, body, answer, rendering)


@_api.post("/chat/completions", response_model=ChatCompletion, responses=_STREAM)
async def chat(body: ChatRequest, http: Request, service: _Shared) -> Response:
    """Continues a conversation."""
    answer = await service.completions.chat(body)
    rendering = ChatRendering(*_identity("chatcmpl", service), has_logprobs=bool(body.logprobs))
    return await _respond(http, service, body, answer, rendering)


def _identity(prefix: str, service: _Service) -> tuple[str, int, str, Tokenizer]:
    return f"{prefix}-{uuid.uuid4().hex}", int(time.time()), service.model.id, service.tokenizer


async def _respond(
    http: Request,
    service: _Service,
    body: CompletionRequest | ChatRequest,
    answer: Answer,
    rendering: Rendering,
) -> Response:
    parts = _watched(http, service, answer)
    if service.settings.logs_prompts:
        http.scope[LOG_FIELDS]["prompt"] = body.model_dump(include={"prompt", "messages"})
    if not body.stream:
        async with aclosing(parts):
            whole = await _whole(answer, parts, rendering)
        return Response(whole.model_dump_json(), media_type="application/json")
    # Until there is something to stream, an error still has a status of its own.
    first = await anext(parts)
    return StreamingResponse(
        _events(answer, first, parts, rendering, includes_usage=body.includes_usage),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _whole(answer: Answer, parts: AsyncIterator[Part], rendering: Rendering) -> BaseModel:
    sums = [Piece() for _ in range(answer.choices)]
    reasons: list[Reason] = ["length"] * answer.choices
    async for part in parts:
        sums[part.index].text += part.piece.text
        sums[part.index].tokens += part.piece.tokens
        if part.reason is not None:
            reasons[part.index] = part.reason
    return rendering.whole(sums, reasons, answer.usage())


async def _events(
    answer: Answer,
    first: Part,
    rest: AsyncGenerator[Part, None],
    rendering: Rendering,
    *,
    includes_usage: bool,
) -> AsyncIterator[bytes]:
    """The server-sent events of a streamed answer."""
    async with aclosing(rest):
        for index in range(answer.choices):
            opening = rendering.opening(index)
            if opening is not None:
                yield _event(opening.model_dump_json())
        try:
            yield _event(_render(rendering, first))
            async for part in rest:
                yield _event(_render(rendering, part))
        except ApiError as error:
            yield _event(json.dumps(error.body()))
            return
        if includes_usage:
            yield _event(rendering.usage(answer.usage()).model_dump_json())
        yield _event("[DONE]")


def _render(rendering: Rendering, part: Part) -> str:
    return rendering.part(part.index, part.piece, part.reason).model_dump_json()


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


async def _watched(http: Request, service: _Service, answer: Answer) -> AsyncGenerator[Part, None]:
    """The parts of an answer, given up when the client leaves; notes for the log at the end."""
    begin = time.monotonic()
    fields = http.scope[LOG_FIELDS]
    leaves = asyncio.create_task(_abandon_when_gone(http, service, answer))
    try:
        async with aclosing(answer.parts(service.scheduler)) as parts:
            async for part in parts:
                fields.setdefault("first_ms", round((time.monotonic() - begin) * 1e3, 1))
                yield part
    finally:
        leaves.cancel()
        usage = answer.usage()
        fields["prompt_tokens"] = usage.prompt_tokens
        fields["completion_tokens"] = usage.completion_tokens
        fields["cached_tokens"] = usage.prompt_tokens_details.cached_tokens


async def _abandon_when_gone(http: Request, service: _Service, answer: Answer) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
    answer.abandon(service.scheduler)


# --- states --------------------------------------------------------------------------------


@_api.post("/states", status_code=201)
async def create_state(body: StateRequest, http: Request, service: _Shared) -> NamedStateBody:
    """Reads a prompt and keeps the state after it under a name."""
    if not body.overwrite and service.store.exists(body.name):
        raise ApiError(
            409, f"there is a state named '{body.name}' already; 'overwrite' replaces it",
            "state_exists", "name",
        )  # fmt: skip
    answer = await service.completions.read(body)
    async with aclosing(_watched(http, service, answer)) as parts:
        async for _ in parts:
            pass
    if answer.saved is None:
        raise ApiError(500, "the state was not saved", "internal_error")
    return NamedStateBody(**answer.saved.model_dump())


@_api.get("/states")
async def list_states(service: _Shared) -> StateList:
    """The states of this model."""
    infos = await asyncio.to_thread(lambda: list(service.store.infos()))
    return StateList(data=[NamedStateBody(**info.model_dump()) for info in infos])


@_api.get("/states/{name}")
async def read_state(name: str, service: _Shared) -> NamedStateBody:
    """What is known of one state."""
    try:
        info = await asyncio.to_thread(service.store.info, name)
    except PipelineError as error:
        raise to_api_error(error) from error
    return NamedStateBody(**info.model_dump())


@_api.delete("/states/{name}")
async def delete_state(name: str, service: _Shared) -> Deleted:
    """Forgets a state."""
    try:
        await asyncio.to_thread(service.store.delete, name)
    except PipelineError as error:
        raise to_api_error(error) from error
    return Deleted(id=name)


# --- errors --------------------------------------------------------------------------------


async def _answer_error(_http: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return JSONResponse(error.body(), error.status, error.headers())


async def _answer_invalid(http: Request, error: Exception) -> Response:
    """What pydantic or the JSON parser found, in one sentence."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"the parameter '{place}' is not known to this server"
    elif place is not None:
        message = f"'{place}': {message}"
    return await _answer_error(http, ApiError(400, message, "invalid_request", place))


async def _answer_http_error(http: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    answer = await _answer_error(http, ApiError(error.status_code, error.detail, "http_error"))
    answer.headers.update(error.headers or {})
    return answer


async def _answer_fault(http: Request, error: Exception) -> Response:
    """A fault of ours; the log has the traceback."""
    return await _answer_error(http, to_api_error(error))


async def _answer_nobody(_http: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


# --- assembly ------------------------------------------------------------------------------


def create_server(
    engine: LoadedEngine, settings: ServerSettings, metrics: Metrics | None = None
) -> Server:
    """Puts an HTTP application around a loaded engine; its scheduler is not started yet.

    Raises:
        UsageError: The engine has no tokenizer.
        CheckpointCorruptError: Its chat template is damaged.
    """
    metrics = metrics or Metrics()
    service = _Service(engine, settings, metrics)
    application = FastAPI(
        title="mamba-orin",
        version=__version__,
        summary="Mamba language models on Jetson Orin Nano",
        # The pages of FastAPI load scripts from the internet, which a board may not reach.
        docs_url=None,
        redoc_url=None,
    )
    application.state.service = service
    application.include_router(_health)
    application.include_router(_api)
    application.add_exception_handler(ApiError, _answer_error)
    application.add_exception_handler(RequestValidationError, _answer_invalid)
    application.add_exception_handler(HTTPException, _answer_http_error)
    application.add_exception_handler(ClientGoneError, _answer_nobody)
    application.add_exception_handler(Exception, _answer_fault)
    guard = HttpGuard(application, settings, metrics, lambda: not service.scheduler.is_accepting)
    return Server(guard, service.scheduler, service.model.id, service.store.folder)
