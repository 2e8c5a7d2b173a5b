"""A server on the network with OpenAI's interface: requests, answers, and what is tried again.

Only the address that was typed is spoken to: proxies of the environment are not used, and redirections not followed.
What a server answers is data of a stranger: it is checked field by field, and what is printed of it has no control
characters.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moslora.console import note
from moslora.errors import MosloraError, UsageError, first_line, some
from moslora.recipe.builtin import printable

KEY = "MOSLORA_SERVER_KEY"
"""The environment variable with the server's key, which is written into no file and no message."""

FIRST_WAIT = 0.5
"""Seconds before the second attempt; each further wait is twice as long."""

ATTEMPTS = 6
"""How often a request is sent before it counts as failed."""

LONGEST_WAIT = 30.0
"""Seconds between two attempts, at most, also where the server asks for more."""

TIMEOUT = httpx.Timeout(300.0, connect=10.0)
"""Seconds: a request may wait for others, and a long prompt takes its time on a CPU."""

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may be gone a moment later."""


class Refused(MosloraError):
    """The server understood a request and does not serve it: a field or a kind of prompt that it does not have."""


class Unavailable(MosloraError):
    """The server could not be asked, or did not answer in the end."""


class Part(BaseModel):
    """A part of an answer: other keys may be there, but what is read has its type."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Likely(Part):
    """A token with its log-probability; its id, where the server tells it."""

    token: str
    logprob: float | None = None
    id: int | None = None


class Written(Likely):
    """A token that was written, and the likeliest ones in its place."""

    top_logprobs: list[Likely] | None = None


class Logprobs(Part):
    """The field ``logprobs`` in either of its forms: a list for each fact, or ``content``, a list of tokens."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None
    content: list[Written] | None = None

    @property
    def written(self) -> list[Written]:
        """The tokens that were written."""
        if self.content:
            return self.content
        tops = self.top_logprobs or [None] * len(self.tokens or [])
        found = []
        # A server may leave out the last ones.
        for token, value, top in zip(self.tokens or [], self.token_logprobs or [], tops, strict=False):
            likeliest = [Likely(token=other, logprob=log_p) for other, log_p in (top or {}).items()]
            found.append(Written(token=token, logprob=value, top_logprobs=likeliest))
        return found


class PromptToken(Part):
    """An entry of vLLM's ``prompt_logprobs``."""

    logprob: float | None = None


class Message(Part):
    content: str | None = None


class Choice(Part):
    """What a server has written."""

    text: str | None = None
    message: Message | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: list[dict[str, PromptToken] | None] | None = None

    @property
    def written(self) -> list[Written]:
        """The tokens that were written, as far as the server tells them."""
        if self.logprobs is None:
            return []
        return self.logprobs.written


class Usage(Part):
    prompt_tokens: int | None = None


class Answer(Part):
    """The answer to a request."""

    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: Usage | None = None

    @property
    def choice(self) -> Choice:
        return self.choices[0]

    @property
    def tokens_read(self) -> int | None:
        """The number of the prompt's tokens, as the server counts them."""
        if self.usage is None or not self.usage.prompt_tokens:
            return None
        return self.usage.prompt_tokens


class Model(Part):
    id: Annotated[str, Field(min_length=1)]


class Models(Part):
    data: list[Model] | None = None


class Explained(Part):
    message: str | None = None
    detail: str | None = None


class Fault(Explained):
    """What a server says about an error, in one of the usual fields."""

    error: Explained | str | None = None

    @property
    def says(self) -> str | None:
        if isinstance(self.error, str):
            return self.error
        told = self.error or self
        return told.message or told.detail


Parsed = TypeVar("Parsed", bound=Part)


@dataclass(frozen=True)
class Server:
    """A server, and the model in it that is asked.

    Attributes:
        address: without ``/v1``, such as ``http://localhost:8000``.
        model: its name there; empty until it is known, and of servers that have one model only.
        client: the connections, which threads may share.
    """

    address: str
    model: str = ""
    client: httpx.Client = field(default_factory=lambda: _client(), repr=False)

    @property
    def name(self) -> str:
        """The address and the model, to be printed."""
        return f"{self.address} {printable(self.model)}" if self.model else self.address

    def models(self) -> list[str]:
        """The names of its models; empty if it lists none."""
        try:
            found = self._send(Models, lambda: self.client.get(f"{self.address}/v1/models"), what="its models")
        except Refused:
            return []
        return [model.id for model in found.data or []]

    def ask(self, path: str, body: Mapping[str, Any], *, what: str, patient: bool = True) -> Answer:
        """The answer to a request at ``/v1/`` + ``path``.

        Args:
            path: ``completions`` or ``chat/completions``.
            body: the request, without the model.
            what: it is asked for, in words.
            patient: a fault of the server is tried again, as is a lost connection in any case.

        Raises:
            Refused: the server does not serve such a request.
            Unavailable: it does not answer, or not as this interface does, also when it is tried again.
        """
        whole = dict(body)
        if self.model:
            whole["model"] = self.model
        url = f"{self.address}/v1/{path}"
        return self._send(Answer, lambda: self.client.post(url, json=whole), what=what, patient=patient)

    def _send(
        self, kind: type[Parsed], request: Callable[[], httpx.Response], *, what: str, patient: bool = True
    ) -> Parsed:
        wait = FIRST_WAIT
        fault = ""
        ended = ""  # how the connection was lost first: a server that has ended is not there afterwards
        for attempt in range(ATTEMPTS):
            if attempt > 0:
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                response = request()
            except httpx.HTTPError as error:
                fault = _lost(error)
                if not isinstance(error, httpx.ConnectError):
                    ended = ended or fault
                continue
            self._refuse_hopeless(response)
            if response.status_code in PASSING:
                fault = _status(response)
                wait = max(wait, _asked_to_wait(response))
                if patient or response.status_code != 500:
                    continue
                raise Refused(f"{self.address}: {fault}")
            try:
                return kind.model_validate_json(response.content)
            except ValidationError as error:
                fault = f"its answer is not that of OpenAI's interface, {_first_fault(error)}"
            if not patient:
                raise Refused(f"{self.address}: {fault}")
        if ended:
            fault = f"the server ended or was lost while it was asked for {what} ({ended})"
        raise Unavailable(f"{self.address}: {fault}, {ATTEMPTS} times in a row")

    def _refuse_hopeless(self, response: httpx.Response) -> None:
        """Refuses what no second attempt changes."""
        status = response.status_code
        if status in (401, 403):
            raise UsageError(f"{self.address}: {_status(response)}; set the environment variable {KEY} to its key")
        if status == 404:
            raise Refused(f"{self.address}: {_status(response)} ({response.url.path})")
        if 300 <= status < 400:
            fix = f"type the address that it leads to, {printable(response.headers.get('location', ''))}"
            raise UsageError(f"{self.address}: {_status(response)}; {fix}")
        if 400 <= status < 500 and status not in PASSING:
            raise Refused(f"{self.address}: {_status(response)}")


def open_server(address: str, model: str | None = None) -> Server:
    """The server at a typed address, with or without ``/v1`` and what follows it there, with the model that is typed,
    or its only one.

    Raises:
        UsageError: it is no address of a server, the key is none that can be sent, or there are several models and none
            is typed.
        Unavailable: no server answers there.
    """
    plain = re.sub(r"(/v1(/(chat/)?completions)?)?/*$", "", address.strip())
    fault = f"--server {printable(address)}: must be an address such as http://localhost:8000"
    if not re.match(r"https?://[^/]+", plain):
        raise UsageError(fault)
    try:
        httpx.URL(plain)
    except httpx.InvalidURL as error:
        raise UsageError(f"{fault} ({first_line(error)})") from None
    server = Server(plain)
    names = server.models()
    known = some([printable(name) for name in names], most=8)
    if model is None and len(names) > 1:
        raise UsageError(f"{plain}: has several models; choose one with --model, among {known}")
    if model is not None and names and model not in names:
        note(f"{plain} does not list {model}, but {known}")
    return replace(server, model=model or "".join(names))


def _client() -> httpx.Client:
    headers = {}
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[!-~]*", key):  # before httpx refuses it, with the key in its message
        raise UsageError(f"the environment variable {KEY}: must be of printable ASCII without spaces")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.Client(headers=headers, timeout=TIMEOUT, trust_env=False, follow_redirects=False)


def _lost(error: httpx.HTTPError) -> str:
    """What happened to a connection."""
    if isinstance(error, httpx.TimeoutException):
        return f"no answer ({type(error).__name__})"
    if isinstance(error, httpx.ConnectError):
        return f"no server there, is it started? ({first_line(error)})"
    return f"the connection was lost ({first_line(error)})"


def _status(response: httpx.Response) -> str:
    """The status of a response, and what the server says about it."""
    try:
        said = Fault.model_validate_json(response.content).says
    except ValidationError:
        said = None
    words = " ".join((said or response.text).split())
    status = f"{response.status_code} {printable(response.reason_phrase)}"
    if words:
        return f"{status}: {printable(words[:160])}"
    return status


def _first_fault(error: ValidationError) -> str:
    """Where an answer is not as expected, and why."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return printable(f"{place or 'JSON'}: {first['msg']}"[:160])


def _asked_to_wait(response: httpx.Response) -> float:
    """Seconds that the server asks for, up to `LONGEST_WAIT`."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)
