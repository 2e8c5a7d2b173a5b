"""A server with OpenAI's interface over a small model, in a thread, with the faults that real servers have."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

Trouble = Callable[[BaseHTTPRequestHandler], None]
"""What happens to one request instead of an answer."""


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
        """The tokens that are read."""
        if isinstance(prompt, str):
            own = self.tokenizer(self.wrap.format(prompt)).input_ids
            found = [*self.begins_text, *own]
        else:
            found = [*self.begins_tokens, *prompt]
        if self.context is not None:
            found = found[-self.context :]
        return found

    @torch.inference_mode()
    def log_p(self, ids: list[int]) -> torch.Tensor:
        """(T, V)"""
        with self.lock:
            return self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def token(self, id: int) -> str:
        return str(self.tokenizer.decode([id]))

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.ids(body["prompt"])
        choice, written = self.written(ids, body)
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written)}
        return {"choices": [{"index": 0, "text": self.tokenizer.decode(written), **choice}], "usage": usage}

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        own = self.tokenizer(self.chat_wrap.format(text), add_special_tokens=False).input_ids
        ids = [*self.begins_chat, *own]
        choice, written = self.written(ids, {**body, "logprobs": body.get("top_logprobs")})
        message = {"role": "assistant", "content": self.tokenizer.decode(written)}
        return {"choices": [{"index": 0, "message": message, **choice}], "usage": {"prompt_tokens": len(ids)}}

    def written(self, ids: list[int], body: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """A choice but for its text, and the tokens written."""
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
            count = int(body.get("logprobs") or 1)
            top = values.topk(min(count, len(values)))
            tops = []
            for value, token in zip(top.values, top.indices, strict=True):
                tops.append({"token": self.token(int(token)), "logprob": float(value)})
            content.append({"token": self.token(chosen), "logprob": float(values[chosen]), "top_logprobs": tops})
            written.append(chosen)
        return self.told(before, ids, written, content, body), written

    def chosen(self, values: torch.Tensor, body: dict[str, Any]) -> int:
        """The likeliest token, with the request's bias."""
        if self.tells == "allowed" and body.get("allowed_token_ids"):
            return int(body["allowed_token_ids"][0])
        biased = values.clone()
        for token, bias in (body.get("logit_bias") or {}).items():
            biased[int(token)] += bias
        return int(biased.argmax())

    def told(
        self,
        before: torch.Tensor,
        ids: list[int],
        written: list[int],
        content: list[dict[str, Any]],
        body: dict[str, Any],
    ) -> dict[str, Any]:
        """A choice with what is told of log-probabilities: of the prompt's tokens, or of those written."""
        choice: dict[str, Any] = {"logprobs": None}
        if "echo" in self.tells and body.get("echo"):
            own = [None, *(float(before[place, token]) for place, token in enumerate(ids[1:]))]
            ends = [entry["logprob"] for entry in content]
            choice["logprobs"] = {"tokens": [self.token(id) for id in ids + written], "token_logprobs": own + ends}
        elif body.get("logprobs") and ("forced" in self.tells or self.tells == "allowed"):
            choice["logprobs"] = {"content": content}
        elif body.get("logprobs") and self.tells == "likeliest" and not body.get("logit_bias"):
            tops = []
            for entry in content:
                tops.append({top["token"]: top["logprob"] for top in entry["top_logprobs"]})
            values = [entry["logprob"] for entry in content]
            texts = [entry["token"] for entry in content]
            choice["logprobs"] = {"tokens": texts, "token_logprobs": values, "top_logprobs": tops}
        return choice

    def refused(self, body: dict[str, Any]) -> str:
        """Why a request is not served; empty if it is."""
        if isinstance(body.get("prompt"), list) and not self.takes_tokens:
            return "prompt must be a text"
        if self.refuses and self.context is not None and "prompt" in body:
            longer = replace(self, context=None).ids(body["prompt"])
            if len(longer) + body["max_tokens"] > self.context:
                return "the request exceeds the available context size"
        if self.refuses_text and isinstance(body.get("prompt"), str) and len(body["prompt"]) > 1:
            return "prompt must be tokens"
        for name in self.without:
            if name in body or ("messages" in body and name.removeprefix("chat.") in body):
                return f"{name} is not supported"
        if body.get("echo") and self.tells in ("forced", "allowed", "likeliest"):
            return "Only no echo is supported"
        if body.get("logit_bias") and self.tells in ("allowed", "likeliest"):
            return "logit_bias is not supported"
        return ""


@contextmanager
def serving(pretended: Pretended) -> Iterator[str]:
    """The address of a server in a thread."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            if pretended.lists:
                raw(pretended.lists)(self)
            else:
                self.answer(200, {"data": [{"id": name} for name in pretended.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            pretended.asked.append(body)
            time.sleep(pretended.pause)
            if pretended.key and self.headers.get("Authorization") != f"Bearer {pretended.key}":
                self.answer(401, {"error": {"message": "no key"}})
                return
            if pretended.troubles:
                pretended.troubles.pop(0)(self)
                return
            if pretended.always is not None and len(pretended.asked) > pretended.after:
                pretended.always(self)
                return
            if pretended.ends_at is not None and pretended.ends_at(body):
                dies(self)
                return
            fault = pretended.refused(body)
            if fault:
                self.answer(400, {"error": {"message": fault}})
            elif self.path == "/v1/completions":
                self.answer(200, pretended.complete(body))
            elif self.path == "/v1/chat/completions":
                self.answer(200, pretended.chat(body))
            else:
                self.answer(404, {"error": {"message": "not found"}})

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that was killed is no fault."""

    server = Quiet(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def status(number: int, **headers: str) -> Trouble:
    """An answer of this status, with a message and these headers."""

    def trouble(handler: BaseHTTPRequestHandler) -> None:
        content = json.dumps({"error": {"message": "in trouble"}}).encode()
        handler.send_response(number)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return trouble


def raw(content: bytes, number: int = 200) -> Trouble:
    """An answer of these bytes."""

    def trouble(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(number)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return trouble


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
