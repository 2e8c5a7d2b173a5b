"""A server on the network with OpenAI's interface: requests, answers, and what is tried again.

Only the address that was typed is spoken to: proxies of the environment are not used, and redirections not followed.
What a server answers is data of a stranger: it is checked field by field, and what is printed of it has no control
characters.
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
"""The environment variable with the server's key, which is written into no file and no message."""

WAITS = (0.5, 1, 2, 4, 8, 0)
"""Seconds after each attempt at a request."""

TIMEOUT = httpx.Timeout(300.0, connect=10.0)
"""Seconds: a request may wait for others, and a long prompt takes its time on a CPU."""

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may be gone a moment later."""


class Refused(MosloraError):
    """The server understood a request and does not serve it: a field or a kind of prompt that it does not have."""


MISREAD = "the server reads another prompt"
"""How the message of `Misread` begins, by which a refusal that was kept is known."""


class Misread(Refused):
    """The server reads another prompt than the one that was sent, or repeats another one."""

    def __init__(self, sign: str) -> None:
        super().__init__(f"{MISREAD}: {sign}")


class Unavailable(MosloraError):
    """The server could not be asked, or did not answer in the end."""


class Received(BaseModel):
    """A part of an answer: other keys may be there, but what is read has its type."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


LogP = Annotated[float, Field(le=0.1)]
"""A log-probability: 0 at most, but for rounding to 16 bits."""


class Likely(Received):
    """A token with its log-probability; its id, where the server tells it."""

    token: str
    logprob: LogP | None = None
    id: int | None = None


class Written(Likely):
    """A token that was written, and the likeliest ones in its place."""

    top_logprobs: list[Likely] | None = None


class Logprobs(Received):
    """The field ``logprobs`` in either of its forms: a list for each fact, or ``content``, a list of tokens."""

    tokens: list[str] | None = None
    token_logprobs: list[LogP | None] | None = None
    top_logprobs: list[dict[str, LogP | None] | None] | None = None
    content: list[Written] | None = None


class Reply(Received):
    """What a server has written: a text, or a message of a chat."""

    text: str | None = Field(default=None, validation_alias=AliasChoices("text", AliasPath("message", "content")))
    logprobs: Logprobs | None = None

    @property
    def written(self) -> list[Written]:
        """The tokens that were written, as far as the server tells them."""
        told = self.logprobs or Logprobs()
        if told.content:
            return told.content
        tokens = told.tokens or []
        found = []
        # A server may leave out the last ones.
        tops = told.top_logprobs or [None] * len(tokens)
        for token, value, top in zip(tokens, told.token_logprobs or [], tops, strict=False):
            likeliest = [Likely(token=other, logprob=log_p) for other, log_p in (top or {}).items()]
            found.append(Written(token=token, logprob=value, top_logprobs=likeliest))
        return found


class Completion(Received):
    """The answer to a request: the only choice, and the number of the prompt's tokens, as the server counts them."""

    reply: Reply = Field(validation_alias=AliasPath("choices", 0))
    tokens_read: int | None = Field(default=None, validation_alias=AliasPath("usage", "prompt_tokens"))

    def of_prompt(self, tokens: int) -> Reply:
        """What is written behind a prompt of so many tokens.

        Raises:
            Misread: the server has read more or fewer, as far as it tells.
        """
        if self.tokens_read not in (None, tokens):
            raise Misread(f"{self.tokens_read} tokens, and {tokens} were sent")
        return self.reply


class Model(Received):
    id: Annotated[str, Field(min_length=1)]


class Models(Received):
    data: list[Model] | None = None


Parsed = TypeVar("Parsed", bound=Received)


def _client() -> httpx.Client:
    headers = {}
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[!-~]*", key):  # before httpx refuses it, with the key in its message
        raise UsageError(f"the environment variable {KEY}: must be of printable ASCII without spaces")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.Client(headers=headers, timeout=TIMEOUT, trust_env=False, follow_redirects=False)


@dataclass(frozen=True)
class Server:
    """A server, and the model in it that is asked.

    Attributes:
        address: without ``/v1``, such as ``http://localhost:8000``.
        model: its name there; empty until it is known, and of servers that have one model only.
        client: the connections, which threads may share.
        patient: a fault of the server is tried again, as is a lost connection in any case; not where it may be the sign
            that it does not offer what is asked.
    """

    address: str
    model: str = ""
    client: httpx.Client = field(default_factory=_client, repr=False)
    patient: bool = True

    @property
    def name(self) -> str:
        """The address and the model, to be printed."""
        return f"{self.address} {printable(self.model)}".rstrip()

    def models(self) -> list[str]:
        """The names of its models; empty if it lists none."""
        try:
            found = self._send(Models, "GET", "models")
        except Refused:
            return []
        return [model.id for model in found.data or []]

    def complete(self, prompt: str | list[int], *, max_tokens: int = 1, **fields: Any) -> Completion:
        """The answer to a request to continue a prompt, greedily; errors as of `ask`."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **fields}
        return self.ask("completions", body)

    def ask(self, path: str, body: Mapping[str, Any]) -> Completion:
        """The answer to a request at ``/v1/`` + ``path``.

        Args:
            path: ``completions`` or ``chat/completions``.
            body: the request, without the model.

        Raises:
            Refused: the server does not serve such a request.
            Unavailable: it does not answer, or not as this interface does, also when it is tried again.
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
                if method == "GET" and isinstance(error, httpx.ConnectError):  # at first; later it may come back
                    raise Unavailable(f"{self.address}: no server there; start it, or type another address") from None
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
        """The status of a response that is no answer, and what the server says about it."""
        status = printable(f"{response.status_code} {response.reason_phrase}: {' '.join(response.text.split())[:200]}")
        fix = ""
        if response.status_code in (401, 403):
            fix = f"set the environment variable {KEY} to its key"
        elif response.has_redirect_location:
            fix = f"type the address that it leads to, {printable(response.headers['location'])}"
        if fix:
            raise UsageError(f"{self.address}: {status}; {fix}")
        return status


def open_server(address: str, model: str | None = None) -> Server:
    """The server at a typed address, with or without ``/v1`` and what follows it there, with the model that is typed,
    or its only one.

    Raises:
        UsageError: it is no address of a server, the key is none that can be sent, or there are several models and none
            is typed.
        Unavailable: no server answers there.
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
        known = some([printable(name) for name in names], most=8)
        raise UsageError(f"{plain}: has several models; choose one with --model, among {known}")
    return replace(server, model=model or "".join(names))
