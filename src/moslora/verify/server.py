"""A server on the network with OpenAI's interface: requests, and what is tried again.

Only the address that was typed is spoken to: proxies of the environment are not used, and redirections not followed.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from moslora.errors import MosloraError, UsageError, first_line

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

    def models(self) -> list[dict[str, Any]]:
        """What the server says of each of its models; empty if it lists none."""
        try:
            found = self._send(lambda: self.client.get(f"{self.address}/v1/models"), patient=True)
        except Refused:
            return []
        listed = found.get("data")
        if not isinstance(listed, list):
            return []
        return [entry for entry in listed if isinstance(entry, dict) and entry.get("id")]

    def ask(self, path: str, body: Mapping[str, Any], *, patient: bool = True) -> dict[str, Any]:
        """The answer to a request at ``/v1/`` + ``path``.

        ``patient``: errors of the server are tried again. Lost connections always are.

        Raises:
            Refused: the server does not serve such a request.
            Unavailable: it does not answer, or what it answers is no JSON, also when it is tried again.
        """
        whole = dict(body)
        if self.model:
            whole["model"] = self.model
        return self._send(lambda: self.client.post(f"{self.address}/v1/{path}", json=whole), patient=patient)

    def _send(self, request: Callable[[], httpx.Response], *, patient: bool) -> dict[str, Any]:
        wait = FIRST_WAIT
        fault = ""
        for attempt in range(ATTEMPTS):
            if attempt > 0:
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                response = request()
            except httpx.HTTPError as error:
                fault = _lost(error)
                continue
            self._refuse_hopeless(response)
            if response.status_code in PASSING:
                fault = _status(response)
                if not patient and response.status_code == 500:
                    raise Refused(f"{self.address}: {fault}")
                wait = max(wait, _asked_to_wait(response))
                continue
            answer = _parsed(response)
            if answer is not None:
                return answer
            fault = f"its answer is no JSON: {response.text[:60]!r}"
        raise Unavailable(f"{self.address}: {fault}, {ATTEMPTS} times in a row")

    def _refuse_hopeless(self, response: httpx.Response) -> None:
        """Refuses what no second attempt changes."""
        status = response.status_code
        if status in (401, 403):
            raise UsageError(f"{self.address}: {_status(response)}; set the environment variable {KEY} to its key")
        if status == 404:
            raise Refused(f"{self.address}: {_status(response)} ({response.url.path})")
        if 300 <= status < 400:
            fix = f"type the address that it leads to, {response.headers.get('location', '')}"
            raise UsageError(f"{self.address}: {_status(response)}; {fix}")
        if 400 <= status < 500 and status not in PASSING:
            raise Refused(f"{self.address}: {_status(response)}")


def open_server(address: str) -> Server:
    """The server at a typed address, with or without ``/v1`` and what follows it there.

    Raises:
        UsageError: it is no address of a server, or the key is none that can be sent.
    """
    plain = re.sub(r"(/v1(/(chat/)?completions)?)?/*$", "", address.strip())
    fault = f"--server {address}: must be an address such as http://localhost:8000"
    if not re.match(r"https?://[^/]+", plain):
        raise UsageError(fault)
    try:
        httpx.URL(plain)
    except httpx.InvalidURL as error:
        raise UsageError(f"{fault} ({first_line(error)})") from None
    return Server(plain)


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
    said = response.text
    answer = _parsed(response)
    if answer is not None:
        inner = answer.get("error", answer)
        if isinstance(inner, dict):
            inner = inner.get("message") or inner.get("detail") or inner
        said = str(inner)
    said = " ".join(said.split())[:160]
    status = f"{response.status_code} {response.reason_phrase}".strip()
    if said:
        return f"{status}: {said}"
    return status


def _parsed(response: httpx.Response) -> dict[str, Any] | None:
    """The answer; ``None`` if it is no object in JSON."""
    try:
        answer = json.loads(response.text)
    except ValueError:
        return None
    if not isinstance(answer, dict):
        return None
    return answer


def _asked_to_wait(response: httpx.Response) -> float:
    """Seconds that the server asks for, up to `LONGEST_WAIT`."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)
