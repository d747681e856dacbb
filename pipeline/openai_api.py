# SPDX-License-Identifier: MIT
"""Requests and answers in the words of the OpenAI HTTP API, and what of it is spoken here.

A parameter that would change the answer and is not supported is refused, never ignored; its
neutral value is accepted, because clients send those unasked. Beyond OpenAI's there are
`top_k`, and `state` and `save_state`, the names of states (see `states`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipeline.states import NAME_PATTERN, StateInfo

# What OpenAI documents for these fields.
_MOST_STOP_SEQUENCES = 4
_MOST_ALTERNATIVES = 20
_DEFAULT_COMPLETION_TOKENS = 16
# Answers to one HTTP request: prompts times n.
_MOST_PROMPTS = 64
_MOST_CHOICES = 64

# Parameters that are not supported, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none"),
    "tools": (None, []),
}


class ApiError(Exception):
    """Ends a request with an HTTP status and a message in OpenAI's shape.

    Args:
        status: HTTP status code.
        message: What is wrong and what to do about it.
        code: A word for programs.
        param: The parameter that is wrong.
        retry_after_s: When it is worth trying again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        # A message may quote what a client sent, such as half a surrogate pair.
        message = str(self).encode("utf-8", "replace").decode()
        param = self.param and self.param.encode("utf-8", "replace").decode()
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The JSON of every answer that is an error."""

    error: ErrorDetail


# --- requests ------------------------------------------------------------------------------


def _whole_characters(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text and has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from error
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Stop = Annotated[Text, Field(min_length=1, max_length=1000)]
StateName = Annotated[str, Field(pattern=NAME_PATTERN)]


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None


class _Generation(BaseModel):
    """What both kinds of completion have in common."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    n: int | None = Field(default=None, ge=1, le=_MOST_CHOICES)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1 << 31)
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(max_length=_MOST_STOP_SEQUENCES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    state: StateName | None = None
    save_state: StateName | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name in values.keys() & _NEUTRAL.keys():
            if not any(_is_same(values[name], neutral) for neutral in _NEUTRAL[name]):
                raise ValueError(f"the parameter '{name}' is not supported by this server")
        return {name: value for name, value in values.items() if name not in _NEUTRAL}

    @model_validator(mode="after")
    def _check_combinations(self) -> _Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' needs 'stream': true")
        if self.save_state is not None and (self.n or 1) != 1:
            raise ValueError("'save_state' needs 'n': 1, for a state is that of one answer")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop sequences."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a streamed answer ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(_Generation):
    """Body of POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=_MOST_PROMPTS)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]],
            Field(min_length=1, max_length=_MOST_PROMPTS),
        ]
    )
    max_tokens: int | None = Field(default=_DEFAULT_COMPLETION_TOKENS, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=_MOST_ALTERNATIVES)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @model_validator(mode="after")
    def _check_prompts(self) -> CompletionRequest:
        if len(self.prompts) * (self.n or 1) > _MOST_CHOICES:
            raise ValueError(f"prompts times 'n' is more than {_MOST_CHOICES}")
        if self.save_state is not None and len(self.prompts) != 1:
            raise ValueError("'save_state' needs a single prompt")
        return self


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None

    @property
    def text(self) -> str:
        """All of its text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(_Generation):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=_MOST_ALTERNATIVES)

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        return self


class StateRequest(BaseModel):
    """Body of POST /v1/states: a prompt to read and the name to keep its state under.

    Attributes:
        name: Name of the new state.
        prompt: Text or token ids.
        state: Name of the state to go on from; None begins a text.
        overwrite: Whether an older state of this name may be replaced.
    """

    model_config = ConfigDict(extra="forbid")

    name: StateName
    prompt: Text | Annotated[list[TokenId], Field(min_length=1)]
    state: StateName | None = None
    overwrite: bool = False


def _is_same(value: object, neutral: object) -> bool:
    """Equality that tells true from 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


# --- answers -------------------------------------------------------------------------------


class PromptDetails(BaseModel):
    """Of the prompt's tokens, those that a kept state made it unnecessary to read."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens of a request; a named state's own tokens are not counted again."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionLogprobs(BaseModel):
    """Natural log-probabilities in the shape of /v1/completions, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer, or a part of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(BaseModel):
    """Answer of POST /v1/completions, or a part of one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Alternative(BaseModel):
    """A token that might stand at a place; `bytes` are the UTF-8 of its text."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Alternative):
    """The token that stands there, and the likeliest."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """Natural log-probabilities in the shape of /v1/chat/completions."""

    content: list[ChatLogprob]


class ChatMessage(BaseModel):
    """The answer's message, or what was added to it."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatCompletion(BaseModel):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ChatDelta(BaseModel):
    """Part of one answer."""

    index: int
    delta: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    """One event of a streamed chat answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatDelta]
    usage: Usage | None = None


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mamba-orin"


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class NamedStateBody(StateInfo):
    """A named state."""

    object: Literal["state"] = "state"


class StateList(BaseModel):
    """Answer of GET /v1/states."""

    object: Literal["list"] = "list"
    data: list[NamedStateBody]


class Deleted(BaseModel):
    """Answer of DELETE /v1/states/NAME."""

    id: str
    object: Literal["state.deleted"] = "state.deleted"
    deleted: Literal[True] = True
