"""--push: the finished folder goes to the hub as it is, and whatever the hub says, it stays where it is."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import RepoUrl
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from test_cli import run


class Hub:
    """Stands in for HfApi: remembers what was asked of it, and fails where it is told to."""

    def __init__(self, *, private: bool | None = None, fails: dict[str, Exception] | None = None) -> None:
        self.private = private
        self.fails = fails or {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}

    def __call__(self) -> "Hub":
        return self

    def _called(self, method: str, **arguments: Any) -> None:
        self.calls.append((method, arguments))
        if method in self.fails:
            raise self.fails[method]

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> RepoUrl:
        self._called("create_repo", repo_id=repo_id, private=private, exist_ok=exist_ok)
        self.private = private if self.private is None else self.private  # an old one keeps its visibility
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def model_info(self, repo_id: str) -> SimpleNamespace:
        self._called("model_info", repo_id=repo_id)
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self._called("upload_folder", repo_id=repo_id)
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


Use = Callable[..., Hub]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Use:
    def use(**options: Any) -> Hub:
        made = Hub(**options)
        monkeypatch.setattr(huggingface_hub, "HfApi", made)
        return made

    return use


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("command", ["merge", "export"])
@pytest.mark.parametrize("public", [False, True], ids=["private", "public"])
def test_the_folder_is_uploaded_whole(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, hub: Use, command: str, public: bool
) -> None:
    made = hub()
    flags = ["--public"] if public else []
    code, out, _ = run(capsys, command, trained, "--out", tmp_path / "out", "--push", "me/mine", *flags)
    assert code == 0 and out.splitlines()[-1] == "uploaded to https://huggingface.co/me/mine"
    assert made.calls[0] == ("create_repo", {"repo_id": "me/mine", "private": not public, "exist_ok": True})
    assert made.files == contents(tmp_path / "out") and len(made.files) > 2 and "README.md" in made.files


def answered(status: int) -> HfHubHTTPError:
    error = HfHubHTTPError.__new__(HfHubHTTPError)  # its constructor wants the HTTP library's own response
    error.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


class ConnectError(Exception):
    """As the HTTP library's: of no class that the hub's client names."""


REFUSALS: dict[str, tuple[dict[str, Exception], str]] = {
    "no token": ({"create_repo": LocalTokenNotFoundError("no")}, "no token; log in with `hf auth login`"),
    "no valid token": ({"create_repo": answered(401)}, "no valid token of yours; log in with `hf auth login`"),
    "no permission": ({"create_repo": answered(403)}, "your token may not write there"),
    "no permission to upload": ({"upload_folder": answered(403)}, "your token may not write there"),
    "no owner": ({"create_repo": answered(404)}, "no such owner"),
    "server": ({"upload_folder": answered(500)}, "the hub says no (HTTP 500)"),
    "offline": ({"create_repo": OfflineModeIsEnabled("offline")}, "HF_HUB_OFFLINE is set"),
    "no network": ({"create_repo": ConnectError("no name\nmore")}, "cannot be reached (ConnectError: no name)"),
    "network lost": ({"upload_folder": TimeoutError()}, "the hub cannot be reached (TimeoutError: )"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_every_no_has_its_line_and_the_folder_stays(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, hub: Use, refusal: str
) -> None:
    fails, message = REFUSALS[refusal]
    made = hub(fails=fails)
    out = tmp_path / "out"
    code, said, err = run(capsys, "export", trained, "--out", out, "--push", "me/mine")
    assert code == 1 and f"written to {out}" in said and "uploaded" not in said
    assert len(err.splitlines()) == 1 and message in err
    assert err.rstrip().endswith(f"{out} is whole and stays; upload it later: hf upload me/mine {out} --private")
    assert not made.files and (out / "adapter_model.safetensors").is_file()


def test_a_public_repository_is_not_taken_for_a_private_one(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, hub: Use
) -> None:
    made = hub(private=False)
    code, _, err = run(capsys, "export", trained, "--out", tmp_path / "out", "--push", "me/mine")
    assert code == 2 and "is public already, say so with --public" in err and not made.files
    code, _, _ = run(capsys, "export", trained, "--out", tmp_path / "again", "--push", "me/mine", "--public")
    assert code == 0 and made.files


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push", "a b/c"], "no name of a repository"),
        (["--push", "mine"], "give it as owner/name"),
        (["--public"], "--public: goes with --push REPO"),
    ],
)
@pytest.mark.parametrize("command", ["merge", "export"])
def test_a_wrong_name_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str],
    trained: Path,
    tmp_path: Path,
    hub: Use,
    command: str,
    flags: list[str],
    message: str,
) -> None:
    made = hub()
    code, _, err = run(capsys, command, trained, "--out", tmp_path / "out", *flags)
    assert code == 2 and message in err and not made.calls and not (tmp_path / "out").exists()


def test_without_push_nothing_is_asked_of_the_hub(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, hub: Use
) -> None:
    made = hub()
    assert run(capsys, "export", trained, "--out", tmp_path / "out")[0] == 0
    assert not made.calls
