"""Requests to a server with OpenAI's interface, and its checked answers. What a model's answers mean is in
`moslora.evaluation.reading`.

Requests go to the user's address only: proxies of the environment are not used, and redirections not followed. A
server's answers are not trusted: every field is checked, and control characters are never printed.
"""

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, ValidationError

from moslora.errors import MosloraError, UsageError, some
from moslora.recipe.builtin import printable

KEY = "MOSLORA_SERVER_KEY"
"""Environment variable with the server's key, which appears in no file and no message."""

WAITS = (0.5, 1, 2, 4, 8, 0)
"""Seconds of waiting after each attempt at a request."""

TIMEOUT = httpx.Timeout(300.0, connect=10.0)
"""Timeouts of a request in seconds: it may wait for others, and a CPU is slow with long prompts."""

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses of faults that may pass."""


class Refused(MosloraError):
    """The server refuses a request, its answer cannot be used, or a prompt cannot be sent in the server's form."""


MISREAD = "the server reads another prompt"
"""Beginning of the message of `Misread`, by which stored refusals are recognised."""


class Misread(Refused):
    """The server reads or repeats another prompt than the one that was sent."""

    def __init__(self, sign: str) -> None:
        super().__init__(f"{MISREAD}: {sign}")


class Unavailable(MosloraError):
    """The server could not be reached, or failed at every attempt."""


class Received(BaseModel):
    """Base class of a server's answers: known keys are checked strictly, and others are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


LogP = Annotated[float, Field(le=0.1)]
"""Log-probability: at most 0, except for rounding to 16 bits."""


class Likely(Received):
    """Token with its log-probability, and with its id if the server returns it."""

    token: str
    logprob: LogP | None = None
    id: int | None = None


class Written(Likely):
    """Written token, with the likeliest tokens in its place."""

    top_logprobs: list[Likely] | None = None


class Logprobs(Received):
    """Field ``logprobs`` in one of two forms: parallel lists, or ``content``, a list of tokens."""

    tokens: list[str] | None = None
    token_logprobs: list[LogP | None] | None = None
    top_logprobs: list[dict[str, LogP | None] | None] | None = None
    content: list[Written] | None = None


class Reply(Received):
    """Text or chat message that a server has written."""

    text: str | None = Field(default=None, validation_alias=AliasChoices("text", AliasPath("message", "content")))
    logprobs: Logprobs | None = None

    @property
    def written(self) -> list[Written]:
        """Tokens of the generated text that the server returns; it may leave out the last ones."""
        logprobs = self.logprobs or Logprobs()
        if logprobs.content:
            return logprobs.content
        tokens = logprobs.tokens or []
        written = []
        tops = logprobs.top_logprobs or [None] * len(tokens)
        for token, value, top in zip(tokens, logprobs.token_logprobs or [], tops, strict=False):
            likeliest = [Likely(token=other, logprob=log_p) for other, log_p in (top or {}).items()]
            written.append(Written(token=token, logprob=value, top_logprobs=likeliest))
        return written


class Completion(Received):
    """Answer to a request: the only choice, and the number of the prompt's tokens by the server's count."""

    reply: Reply = Field(validation_alias=AliasPath("choices", 0))
    tokens_read: int | None = Field(default=None, validation_alias=AliasPath("usage", "prompt_tokens"))

    def of_prompt(self, tokens: int) -> Reply:
        """Return the reply to a prompt of this number of tokens.

        Raises:
            Misread: the server reports another number of tokens.
        """
        if self.tokens_read not in (None, tokens):
            raise Misread(f"{self.tokens_read} tokens, and {tokens} were sent")
        return self.reply


class Model(Received):
    """Model in a server's list."""

    id: Annotated[str, Field(min_length=1)]


class Models(Received):
    """List of a server's models."""

    data: list[Model] | None = None


Parsed = TypeVar("Parsed", bound=Received)


def _client() -> httpx.Client:
    """Return an HTTP client that sends the user's key."""
    headers = {}
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[!-~]*", key):  # before httpx refuses it, with the key in its message
        raise UsageError(f"the environment variable {KEY}: must be of printable ASCII without spaces")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.Client(headers=headers, timeout=TIMEOUT, trust_env=False, follow_redirects=False)


@dataclass(frozen=True)
class Server:
    """Server with the model that is asked.

    Attributes:
        address: address without ``/v1``, such as ``http://localhost:8000``.
        model: name of the model on the server; may be empty if the server has only one.
        client: HTTP client, which threads may share.
        patient: whether a request is repeated after a fault of the server, which may also mean that the server does not
            support the request. Requests are always repeated after a lost connection.
    """

    address: str
    model: str = ""
    client: httpx.Client = field(default_factory=_client, repr=False)
    patient: bool = True

    @property
    def name(self) -> str:
        """Address and model, as printed."""
        return f"{self.address} {printable(self.model)}".rstrip()

    def models(self) -> list[str]:
        """Names of the server's models; empty if it lists none."""
        try:
            listed = self._send(Models, "GET", "models")
        except Refused:
            return []
        return [model.id for model in listed.data or []]

    def complete(self, prompt: str | list[int], *, max_tokens: int = 1, **fields: Any) -> Completion:
        """Ask the server to continue a prompt greedily; errors as in `ask`."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **fields}
        return self.ask("completions", body)

    def ask(self, path: str, body: Mapping[str, Any]) -> Completion:
        """Send a request to ``/v1/`` + ``path`` and return the answer.

        Args:
            path: ``completions`` or ``chat/completions``.
            body: body of the request, without the model.

        Raises:
            Refused: the server refuses the request.
            Unavailable: every attempt fails, or is answered by something else than this interface.
        """
        model = {"model": self.model} if self.model else {}
        return self._send(Completion, "POST", path, {**body, **model})

    def _send(self, kind: type[Parsed], method: str, path: str, body: Mapping[str, Any] | None = None) -> Parsed:
        fault = ""
        for wait in WAITS:
            try:
                response = self.client.request(method, f"{self.address}/v1/{path}", json=body)
                if response.is_success:
                    return kind.model_validate_json(response.content)
                fault = self._status(response)
                is_final = response.status_code not in PASSING or (response.status_code == 500 and not self.patient)
            except httpx.HTTPError as error:
                if method == "GET" and isinstance(error, httpx.ConnectError):  # the first request
                    raise Unavailable(f"{self.address}: no server there; start it, or use another address") from None
                fault = f"no server there, or the connection was lost ({type(error).__name__})"
                is_final = False
            except ValidationError:
                fault = "its answer is not that of OpenAI's interface"
                is_final = not self.patient
            if is_final:
                raise Refused(f"{self.address}: {fault}")
            time.sleep(wait)
        raise Unavailable(f"{self.address}: {fault}, {len(WAITS)} times in a row")

    def _status(self, response: httpx.Response) -> str:
        """Describe a response that is no answer: its status and the beginning of its text."""
        status = printable(f"{response.status_code} {response.reason_phrase}: {' '.join(response.text.split())[:200]}")
        fix = ""
        if response.status_code in (401, 403):
            fix = f"set the environment variable {KEY} to its key"
        elif response.has_redirect_location:
            fix = f"use the address that it leads to, {printable(response.headers['location'])}"
        if fix:
            raise UsageError(f"{self.address}: {status}; {fix}")
        return status


def open_server(address: str, model: str | None = None) -> Server:
    """Return the server at an address, with its model of this name, or with its only model.

    Args:
        address: address of the server; ``/v1`` and what follows it are ignored.
        model: name of a model on the server.

    Raises:
        UsageError: this is no address of a server, the key cannot be sent, or there are several models and no name.
        Unavailable: no server answers at this address.
    """
    plain = re.sub(r"(/v1(/(chat/)?completions)?)?/*$", "", address.strip())
    host = ""
    with suppress(httpx.InvalidURL):
        host = httpx.URL(plain).host
    if not host:
        raise UsageError(f"--server {printable(address)}: must be an address such as http://localhost:8000")
    server = Server(plain)
    names = server.models()
    if model is None and len(names) > 1:
        listed = some([printable(name) for name in names], most=8)
        raise UsageError(f"{plain}: has several models; choose one with --model, among {listed}")
    return replace(server, model=model or "".join(names))
