"""A server with OpenAI's interface over a small model, in a thread, with the faults that real servers have."""

import copy
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

Trouble = Callable[[BaseHTTPRequestHandler], None]
"""What happens to one request instead of an answer."""

_written: weakref.WeakKeyDictionary[PreTrainedModel, dict[str, Any]] = weakref.WeakKeyDictionary()
"""What each model has written, by what it was asked: many tests ask the same of one model."""


@dataclass
class Pretended:
    """What a server computes, what it tells, and what goes wrong.

    Attributes:
        model: what it computes; its tokenizer is ``tokenizer``.
        tells: how it tells log-probabilities: ``echo``, ``forced``, ``allowed``, ``likeliest`` or ``nothing``; or
            ``echo forced``.
        takes_tokens: prompts may be tokens.
        refuses_text: of the run's prompts that are sent as text, all are refused.
        begins_text: tokens before those of each prompt that is sent as text.
        begins_tokens: tokens before each prompt that is sent as tokens.
        wrap: what becomes of a text.
        begins_chat: tokens before those of a chat.
        chat_wrap: what becomes of a chat's text.
        context: tokens that it reads, the last ones; ``None`` for all.
        refuses: prompts beyond its context, instead of cutting them.
        without: fields that no request may have, and those of chats with ``chat.`` before them.
        alters: what is answered to a request, in place of the right answer to it.
        ends_at: requests whose connection ends without an answer.
        troubles: one for each of the next requests.
        always: the trouble of every request, from number ``after`` on.
        key: that requests must have.
        models: the names that it lists.
        lists: the bytes of that list, instead.
        pause: seconds before an answer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tells: str = "echo"
    takes_tokens: bool = True
    refuses_text: bool = False
    begins_text: tuple[int, ...] = ()
    begins_tokens: tuple[int, ...] = ()
    wrap: str = "{}"
    begins_chat: tuple[int, ...] = ()
    chat_wrap: str = "{}"
    context: int | None = None
    refuses: bool = False
    without: tuple[str, ...] = ()
    alters: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None
    ends_at: Callable[[dict[str, Any]], bool] | None = None
    troubles: list[Trouble] = field(default_factory=list)
    always: Trouble | None = None
    after: int = 0
    key: str = ""
    models: tuple[str, ...] = ("small",)
    lists: bytes = b""
    pause: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ids(self, prompt: str | list[int]) -> list[int]:
        """The tokens of a prompt, whatever the context is."""
        if isinstance(prompt, str):
            return [*self.begins_text, *self.tokenizer(self.wrap.format(prompt)).input_ids]
        return [*self.begins_tokens, *prompt]

    @torch.inference_mode()
    def log_p(self, ids: list[int]) -> torch.Tensor:
        """(T, V)"""
        with self.lock:
            return self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def token(self, id: int) -> str:
        return str(self.tokenizer.decode([id]))

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.ids(body["prompt"])
        if self.context is not None:
            ids = ids[-self.context :]
        choice, text = self.written(ids, body)
        return {"choices": [{"text": text, **choice}], "usage": {"prompt_tokens": len(ids)}}

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        own = self.tokenizer(self.chat_wrap.format(text), add_special_tokens=False).input_ids
        ids = [*self.begins_chat, *own]
        choice, text = self.written(ids, {**body, "logprobs": body.get("top_logprobs")})
        message = {"role": "assistant", "content": text}
        return {"choices": [{"message": message, **choice}], "usage": {"prompt_tokens": len(ids)}}

    def written(self, ids: list[int], body: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """A choice but for its text, and that: with what is told of log-probabilities, of the prompt or of the text."""
        asked = {name: value for name, value in body.items() if name not in ("model", "prompt", "messages")}
        key = json.dumps([self.tells, ids, asked])
        known = _written.setdefault(self.model, {})
        if key not in known:
            known[key] = self.write(ids, asked)
        answer: tuple[dict[str, Any], str] = known[key]
        return answer

    def write(self, ids: list[int], body: dict[str, Any]) -> tuple[dict[str, Any], str]:
        before = self.log_p(ids)
        written: list[int] = []
        content = []
        values = before[-1]
        for _ in range(body["max_tokens"]):
            if written:
                values = self.log_p([*ids, *written])[-1]
            chosen = self.chosen(values, body)
            if chosen == self.tokenizer.eos_token_id:
                break
            top = values.topk(min(int(body.get("logprobs") or 1), len(values)))
            tops = []
            for value, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                tops.append({"token": self.token(token), "logprob": value})
            content.append({"token": self.token(chosen), "logprob": float(values[chosen]), "top_logprobs": tops})
            written.append(chosen)
        told: dict[str, Any] | None = None
        texts = [entry["token"] for entry in content]
        ends = [entry["logprob"] for entry in content]
        if "echo" in self.tells and body.get("echo"):
            own = [None, *(float(before[place, token]) for place, token in enumerate(ids[1:]))]
            told = {"tokens": [*map(self.token, ids), *texts], "token_logprobs": own + ends}
        elif body.get("logprobs") and ("forced" in self.tells or self.tells == "allowed"):
            told = {"content": content}
        elif body.get("logprobs") and self.tells == "likeliest" and not body.get("logit_bias"):
            tops = [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in content]
            told = {"tokens": texts, "token_logprobs": ends, "top_logprobs": tops}
        return {"logprobs": told}, str(self.tokenizer.decode(written))

    def chosen(self, values: torch.Tensor, body: dict[str, Any]) -> int:
        """The likeliest token, with the request's bias."""
        if self.tells == "allowed" and body.get("allowed_token_ids"):
            return int(body["allowed_token_ids"][0])
        biased = values.clone()
        for token, bias in (body.get("logit_bias") or {}).items():
            biased[int(token)] += bias
        return int(biased.argmax())

    def refused(self, body: dict[str, Any]) -> str:
        """Why a request is not served; empty if it is."""
        prompt = body.get("prompt")
        if isinstance(prompt, list) and not self.takes_tokens:
            return "prompt must be a text"
        longest = self.context if self.refuses else None
        if longest is not None and prompt is not None and len(self.ids(prompt)) + body["max_tokens"] > longest:
            return "the request exceeds the available context size"
        if self.refuses_text and isinstance(prompt, str) and len(prompt) > 1:
            return "prompt must be tokens"
        for name in self.without:
            if name in body or ("messages" in body and name.removeprefix("chat.") in body):
                return f"{name} is not supported"
        if body.get("echo") and self.tells in ("forced", "allowed", "likeliest"):
            return "Only no echo is supported"
        if body.get("logit_bias") and self.tells in ("allowed", "likeliest"):
            return "logit_bias is not supported"
        return ""

    def answer(self, path: str, body: dict[str, Any]) -> Trouble:
        """What happens to a request."""
        self.asked.append(body)
        time.sleep(self.pause)
        if self.troubles:
            return self.troubles.pop(0)
        if self.always is not None and len(self.asked) > self.after:
            return self.always
        if self.ends_at is not None and self.ends_at(body):
            return dies
        fault = self.refused(body)
        if fault:
            return status(400, fault)
        if path == "/v1/completions":
            answer = copy.deepcopy(self.complete(body))
            return raw(json.dumps(self.alters(body, answer) if self.alters else answer).encode())
        if path == "/v1/chat/completions":
            return raw(json.dumps(self.chat(body)).encode())
        return status(404)


@contextmanager
def serving(pretended: Pretended) -> Iterator[str]:
    """The address of a server in a thread."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # which holds an answer back for 40 ms

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            models = {"data": [{"id": name} for name in pretended.models]}
            raw(pretended.lists or json.dumps(models).encode())(self)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            trouble = status(401)
            if not pretended.key or self.headers.get("Authorization") == f"Bearer {pretended.key}":
                trouble = pretended.answer(self.path, body)
            trouble(self)

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that was killed is no fault."""

    with Quiet(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()  # ends within 10 ms
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def raw(content: bytes, number: int = 200, **headers: str) -> Trouble:
    """An answer of these bytes."""

    def trouble(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(number)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return trouble


def status(number: int, message: str = "in trouble", **headers: str) -> Trouble:
    """An answer of this status, with a message."""
    return raw(json.dumps({"error": {"message": message}}).encode(), number, **headers)


half = raw(b'{"choices": [{"text": "a')
"""Half an object of JSON."""


def dies(handler: BaseHTTPRequestHandler) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True
    handler.connection.close()


def slow(seconds: float) -> Trouble:
    """An answer that comes late, of status 503."""

    def trouble(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        status(503)(handler)

    return trouble
