"""One request tells whether the hub is there; without it, its libraries look into their cache at once."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from moslora.download.hub import prefer_cache_if_unreachable


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    prefer_cache_if_unreachable.cache_clear()
    yield
    prefer_cache_if_unreachable.cache_clear()


@pytest.mark.parametrize("status", [200, 403, 503])
def test_hub_is_asked_once(monkeypatch, status):
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        prefer_cache_if_unreachable()
        prefer_cache_if_unreachable()
        server.shutdown()
    assert len(asked) == 1
    assert not constants.HF_HUB_OFFLINE


def test_without_an_answer_the_libraries_go_offline(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    prefer_cache_if_unreachable()
    assert constants.is_offline_mode()
