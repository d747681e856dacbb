# SPDX-License-Identifier: MIT
"""The HTTP interface, over a real socket, with the clients that people use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from pipeline.engine import load_engine
from pipeline.generation import Sampling, generate
from tests.pipeline.serving import PATIENCE_S, LoopbackServer, assert_refused, loopback_server

PROMPT = "It was a truth"
LONG_TEXT = (Path(__file__).parents[2] / "models" / "demo" / "heldout.txt").read_text()


@pytest.fixture(scope="module")
def server(demo_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackServer]:
    with loopback_server(
        demo_engine, states_folder=tmp_path_factory.mktemp("states"), max_new_tokens=200
    ) as running:
        yield running


@pytest.fixture(scope="module")
def chat_server(chat_engine: Path) -> Iterator[LoopbackServer]:
    with loopback_server(chat_engine) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LoopbackServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


# --- completions -----------------------------------------------------------------------------


def test_the_text_is_that_of_generate(server: LoopbackServer, demo_engine: Path) -> None:
    engine = load_engine(demo_engine, threads=1)
    assert engine.tokenizer is not None
    ids = list(generate(engine.session, engine.tokenizer.encode(PROMPT), 30, Sampling()))
    answer = server.complete(PROMPT, max_tokens=30).json()
    assert answer["choices"] == [
        {
            "index": 0,
            "text": engine.tokenizer.decode(ids),
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 30,
        "total_tokens": 34,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    sampled = list(
        generate(
            engine.session,
            engine.tokenizer.encode(PROMPT),
            30,
            Sampling(temperature=0.8, top_k=40, top_p=0.9, seed=3),
        )
    )
    options = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 3}
    assert server.text(PROMPT, max_tokens=30, **options) == engine.tokenizer.decode(sampled)


@pytest.mark.parametrize("seed", range(4))
def test_a_streamed_answer_is_byte_for_byte_the_whole_one(client: openai.OpenAI, seed: int) -> None:
    options: dict[str, Any] = {
        "model": "demo",
        "prompt": PROMPT + ' "Ça va — œuvre, 日本',
        "max_tokens": 150,
        "temperature": 1.5,
        "seed": seed,
        "stop": ["he", ", and"] if seed % 2 else None,
        "logprobs": 2,
    }
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    streamed: list[float] = []
    for chunk in chunks:
        assert chunk.choices[0].logprobs is not None
        streamed += chunk.choices[0].logprobs.token_logprobs or []
    assert whole.choices[0].logprobs is not None
    assert streamed == whole.choices[0].logprobs.token_logprobs


def test_a_stream_ends_with_its_usage_when_asked(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="demo",
            prompt=PROMPT,
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


def test_a_stop_sequence_across_tokens_ends_the_text_before_it(server: LoopbackServer) -> None:
    whole = server.text(PROMPT, max_tokens=40)
    for begin in (3, 10, 25):
        stop = whole[begin : begin + 9]
        answer = server.complete(PROMPT, max_tokens=40, stop=stop).json()["choices"][0]
        assert answer["text"] == whole[: whole.index(stop)]
        assert answer["finish_reason"] == "stop"


def test_log_probabilities_are_those_of_score(server: LoopbackServer, demo_engine: Path) -> None:
    from pipeline.scoring import score

    engine = load_engine(demo_engine, threads=1)
    assert engine.tokenizer is not None
    choice = server.complete(PROMPT, max_tokens=20, logprobs=3).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    ids = engine.tokenizer.encode(PROMPT + choice["text"])
    expected = score(engine.session, ids).logprobs[-20:]
    assert logprobs["token_logprobs"] == pytest.approx(expected, abs=1e-4)
    for token, offset, best in zip(
        logprobs["tokens"], logprobs["text_offset"], logprobs["top_logprobs"], strict=True
    ):
        assert choice["text"][offset:].startswith(token)
        assert next(iter(best)) == token  # greedy takes the likeliest
        assert len(best) == 3


def test_several_prompts_and_several_answers_are_numbered(server: LoopbackServer) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0}
    answer = server.complete([PROMPT, "She was"], n=2, seed=5, **options).json()
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    assert [choice["text"] for choice in choices] == [
        server.text(prompt, seed=seed, **options)
        for prompt in (PROMPT, "She was")
        for seed in (5, 6)
    ]
    assert answer["usage"]["completion_tokens"] == 32
    ids = [[5, 6, 7], [8, 9]]
    assert len(server.complete(ids, max_tokens=1).json()["choices"]) == 2
    assert server.text(ids[0], max_tokens=4) == server.text([ids[0]], max_tokens=4)


def test_the_answer_in_a_crowd_is_the_answer_alone(server: LoopbackServer) -> None:
    def ask(number: int) -> list[Any]:
        begin = 97 * number
        answer = server.complete(
            LONG_TEXT[begin : begin + 40 * (number % 7 + 1)],
            max_tokens=10 + number,
            temperature=number % 3 / 2,
            seed=number,
            logprobs=1,
        )
        return [answer.json()["choices"][0]]

    alone = [ask(number) for number in range(24)]
    with ThreadPoolExecutor(24) as crowd:
        assert list(crowd.map(ask, range(24))) == alone


# --- chat ------------------------------------------------------------------------------------


def test_a_chat_is_its_template_continued(chat_server: LoopbackServer) -> None:
    with openai.OpenAI(base_url=f"{chat_server.url}/v1", api_key="none") as client:
        options: dict[str, Any] = {
            "model": "demo",
            "messages": [
                {"role": "user", "content": "Who is Emma?"},
                {"role": "assistant", "content": "A person."},
                {"role": "user", "content": [{"type": "text", "text": "Really?"}]},
            ],
            "max_completion_tokens": 25,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 2,
        }
        whole = client.chat.completions.create(**options)
        chunks = list(client.chat.completions.create(**options, stream=True))
    prompt = "user: Who is Emma?\nassistant: A person.\nuser: Really?\nassistant:"
    message = whole.choices[0].message
    assert message.content == chat_server.text(prompt, max_tokens=25)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert whole.choices[0].logprobs is not None
    tokens = whole.choices[0].logprobs.content or []
    assert len(tokens) == 25
    assert all(len(token.top_logprobs) == 2 for token in tokens)
    assert bytes(tokens[0].bytes or []).decode() == tokens[0].token


def test_a_model_without_a_template_says_so(server: LoopbackServer) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
    answer = server.client.post("/v1/chat/completions", json=body)
    assert_refused(answer, 400, "no chat template", "/v1/completions")


def test_a_conversation_that_the_template_refuses_is_explained(chat_server: LoopbackServer) -> None:
    body = {"model": "demo", "messages": [{"role": "system", "content": "Hello"}]}
    answer = chat_server.client.post("/v1/chat/completions", json=body)
    assert_refused(answer, 400, "no system prompts")


# --- what is not supported -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"echo": True}, "'echo' is not supported"),
        ({"suffix": "end"}, "'suffix' is not supported"),
        ({"best_of": 3}, "'best_of' is not supported"),
        ({"presence_penalty": 0.5}, "'presence_penalty' is not supported"),
        ({"logit_bias": {"5": 1}}, "'logit_bias' is not supported"),
        ({"no_such": 1}, "'no_such' is not known"),
        ({"temperature": -1}, "'temperature'"),
        ({"temperature": 3}, "'temperature'"),
        ({"top_p": 0}, "'top_p'"),
        ({"seed": -1}, "'seed'"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "'stop"),
        ({"stop": ""}, "'stop"),
        ({"max_tokens": 0}, "'max_tokens'"),
        ({"max_tokens": 201}, "at most 200"),
        ({"logprobs": 21}, "'logprobs'"),
        ({"n": 9}, "9 answers to one prompt; at most 8"),
        ({"n": 2, "save_state": "x"}, "'save_state' needs 'n': 1"),
        ({"stream_options": {"include_usage": True}}, "'stream_options' needs 'stream'"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": [3072]}, "token id 3072"),
        ({"prompt": []}, "'prompt"),
    ],
)
def test_what_is_not_supported_is_refused_and_not_ignored(
    server: LoopbackServer, options: dict[str, Any], expected: str
) -> None:
    body = {"model": "demo", "prompt": PROMPT, **options}
    assert_refused(server.client.post("/v1/completions", json=body), 400, expected)


def test_values_that_ask_for_nothing_are_accepted(server: LoopbackServer) -> None:
    neutral = {
        "echo": False,
        "best_of": 1,
        "presence_penalty": 0.0,
        "logit_bias": None,
        "user": "u",
    }
    assert server.text(PROMPT, max_tokens=5, **neutral) == server.text(PROMPT, max_tokens=5)


def test_another_model_is_not_found(server: LoopbackServer) -> None:
    assert_refused(server.complete(PROMPT, model="gpt"), 404, "'gpt' is not here", "'demo'")
    assert_refused(server.client.get("/v1/models/gpt"), 404, "'demo'")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "demo", "prompt": "\\ud800"}',
        b'{"model": "demo", "prompt": "x", "\\ud800": 1}',
        b'{"model": "demo", "prompt": "x", "temperature": NaN}',
        b'{"model": "demo", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "demo", "prompt": ' + b"[" * 100_000,
        b"\xff\xfe\x00",
    ],
)
def test_bodies_that_are_not_requests_are_refused(server: LoopbackServer, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = server.client.post("/v1/completions", content=body, headers=headers)
    assert_refused(answer, 400)


def test_the_openai_client_meets_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'suffix' is not supported"):
        client.completions.create(model="demo", prompt=PROMPT, suffix="end")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt", prompt=PROMPT)
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "mamba-orin"


def test_no_request_that_its_own_document_allows_makes_it_fail(server: LoopbackServer) -> None:
    """Schemathesis in a process of its own: it brings settings for pytest that are not ours."""
    schemathesis = str(Path(sys.executable).with_name("schemathesis"))
    done = subprocess.run(
        [
            *(schemathesis, "run", f"{server.url}/openapi.json"),
            *("--checks", "not_a_server_error"),
            *("--max-examples", "25"),
            *("--seed", "1", "--generation-database", "none"),
            *("--request-timeout", str(PATIENCE_S), "--suppress-health-check", "all"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S * 3,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
