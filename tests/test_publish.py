"""--push: whatever the hub refuses it refuses before the work, as far as it can; the folder stays where it is."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, RepoUrl
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from moslora.data import reach
from moslora.errors import MosloraError
from moslora.publish import push
from moslora.recipe import Recipe
from moslora.training import train_recipe
from test_cli import run


class Hub:
    """Stands in for HfApi: remembers what was asked of it, and fails where it is told to."""

    def __init__(self, *, private: bool | None = None, fails: dict[str, Exception] | None = None) -> None:
        self.private = private
        self.fails = fails or {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        """What was uploaded."""

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

    def create_commit(
        self, repo_id: str, operations: list[CommitOperationAdd], *, commit_message: str
    ) -> SimpleNamespace:
        self._called("create_commit", repo_id=repo_id)
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        return SimpleNamespace(repo_url=RepoUrl(f"https://huggingface.co/{repo_id}"))


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
    capsys: pytest.CaptureFixture[str], trained: Path, world: Path, tmp_path: Path, hub: Use, command: str, public: bool
) -> None:
    made = hub()
    flags = ["--public"] if public else []
    code, out, _ = run(capsys, command, trained, "--out", tmp_path / "out", "--push", "me/mine", *flags)
    assert code == 0 and out.splitlines()[-1] == "uploaded to https://huggingface.co/me/mine"
    assert made.calls[0] == ("create_repo", {"repo_id": "me/mine", "private": not public, "exist_ok": True})
    assert [call for call, _ in made.calls] == ["create_repo", "model_info", "create_commit"]
    written = contents(tmp_path / "out")
    if command == "export":  # where the base lies here is nothing to others
        config = json.loads(written["adapter_config.json"])
        assert config["base_model_name_or_path"] == str(world / "model")
        assert json.loads(made.files["adapter_config.json"]) == config | {"base_model_name_or_path": "model"}
        written["adapter_config.json"] = made.files["adapter_config.json"]
    assert made.files == written and len(made.files) > 2 and "README.md" in made.files
    assert not [name for name, content in made.files.items() if str(world).encode() in content]


def test_sub_folders_are_uploaded(tmp_path: Path, hub: Use) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("x")
    made = hub()
    assert push(tmp_path, "me/mine", public=False) == "https://huggingface.co/me/mine"
    assert made.files == {"a/b/c": b"x"}


def answered(status: int) -> HfHubHTTPError:
    error = HfHubHTTPError.__new__(HfHubHTTPError)  # its constructor wants the HTTP library's own response
    error.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


class TransportError(Exception):
    """As the HTTP library's, which is not the same in all versions of the hub's client."""


class ConnectError(TransportError):
    """One of its kinds."""


METADATA = ValueError('Invalid metadata in README.md.\n- "base_model" must be a string\n- and more')
BEFORE: dict[str, tuple[dict[str, Exception], str]] = {  # taken in `wrong_turns.PUSHES`
    "no token": ({"create_repo": LocalTokenNotFoundError("no")}, "no token; log in with `hf auth login`"),
    "no valid token": (
        {"create_repo": answered(401)},
        "the hub knows no valid token of yours; log in with `hf auth login`",
    ),
    "no permission": (
        {"create_repo": answered(403)},
        "your token may not write there; take one with the right to write, or a repository of your own",
    ),
    "no owner": ({"create_repo": answered(404)}, "no such owner, or nothing that your token may see"),
    "offline": ({"create_repo": OfflineModeIsEnabled("offline")}, "HF_HUB_OFFLINE is set; unset it"),
    "no network": (
        {"create_repo": ConnectError("no name\nmore")},
        "the hub cannot be reached (ConnectError: no name)",
    ),
    "no answer": ({"model_info": TimeoutError()}, "the hub cannot be reached (TimeoutError)"),
}
AFTER: dict[str, tuple[dict[str, Exception], str]] = {
    "no permission to upload": ({"create_commit": answered(403)}, "your token may not write there"),
    "server": ({"create_commit": answered(500)}, "the hub says no (HTTP 500)"),
    "network lost": (
        {"create_commit": ConnectionResetError("reset")},
        "cannot be reached (ConnectionResetError: reset)",
    ),
    "metadata": (
        {"create_commit": METADATA},
        'the hub refuses README.md: Invalid metadata in README.md. - "base_model" must be a string - and more. ',
    ),
    "anything else": ({"create_commit": KeyError("oid")}, "the upload failed (KeyError: 'oid')"),
}


@pytest.mark.parametrize("refusal", AFTER)
def test_what_it_refuses_afterwards_leaves_the_folder_as_it_is(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, hub: Use, refusal: str
) -> None:
    fails, message = AFTER[refusal]
    made = hub(fails=fails)
    out = tmp_path / "out"
    code, said, err = run(capsys, "export", trained, "--out", out, "--push", "me/mine")
    assert code == 1 and f"written to {out}" in said and "uploaded" not in said
    assert len(err.splitlines()) == 1 and message in err
    assert err.rstrip().endswith(f"{out} is whole and stays; for another try, give the same command another --out")
    assert not made.files and (out / "adapter_model.safetensors").is_file()
    made.fails = {}
    assert run(capsys, "export", trained, "--out", tmp_path / "again", "--push", "me/mine")[0] == 0 and made.files


@pytest.mark.parametrize(("public", "flag"), [(False, ["--private"]), (True, [])])
def test_a_folder_that_may_be_seen_as_it_is_can_be_uploaded_by_the_line_that_is_told(
    tmp_path: Path, hub: Use, public: bool, flag: list[str]
) -> None:
    hub(fails={"create_commit": answered(500)})
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    told = "whole and stays; upload it later: "
    with pytest.raises(MosloraError, match=told) as refused:
        push(folder, "me/mine", public=public)
    assert shlex.split(str(refused.value).split(told)[1]) == ["hf", "upload", "me/mine", str(folder), *flag]
    base = {"base_model_name_or_path": "owner/model"}
    (folder / "adapter_config.json").write_text(json.dumps(base))
    with pytest.raises(MosloraError, match=told):
        push(folder, "me/mine", public=public)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    with pytest.raises(MosloraError, match=r"another --out$"):
        push(folder, "me/mine", public=public)


def test_a_public_repository_takes_what_is_said_to_be_public(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, hub: Use
) -> None:
    made = hub(private=False)
    assert run(capsys, "export", trained, "--out", tmp_path / "out", "--push", "me/mine", "--public")[0] == 0
    assert made.files


def test_no_repository_is_made_for_what_cannot_be_written(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, hub: Use
) -> None:
    made = hub()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    for command in ("merge", "export"):
        for words in ((trained, "--out", tmp_path / "used"), (tmp_path / "none",)):
            assert run(capsys, command, *words, "--push", "me/mine")[0] == 2
        for flags in (["--push", "a b/c"], ["--push", "mine"], ["--public"]):
            assert run(capsys, command, trained, "--out", tmp_path / "out", *flags)[0] == 2
    assert not made.calls


@pytest.mark.parametrize(
    ("command", "mend"),
    [
        (["merge", "--onto", "typo"], "--onto typo: none of"),
        (["merge", "--onto", "dequantized"], "only --onto original"),
        (["merge", "--dtype", "typo"], "typo"),
        *(([command, "--task", "boolq"], "no gate here depends on the task") for command in ("merge", "export")),
        *(([command, "--task", "typo"], "typo") for command in ("merge", "export")),
        (["export", "--format", "typo"], "--format typo"),
    ],
)
def test_no_repository_is_made_for_what_is_refused_by_a_look_at_it(
    capsys: pytest.CaptureFixture[str], trained: Path, hub: Use, command: list[str], mend: str
) -> None:
    made = hub()
    code, _, errors = run(capsys, command[0], trained, *command[1:], "--push", "me/mine")
    assert code == 2 and mend in errors and not made.calls


@pytest.mark.parametrize("mixer", ["token-gate", "gate-inside", "task-gate"])
def test_no_repository_is_made_for_what_is_no_one_weight(
    capsys: pytest.CaptureFixture[str], recipe: Callable[..., Recipe], tmp_path: Path, hub: Use, mixer: str
) -> None:
    made = hub()
    train_recipe(recipe("training.max_steps=3", f"adapter.mixer.kind={mixer}"), out=tmp_path / "run")
    for command in ("merge", "export"):
        code, _, errors = run(capsys, command, tmp_path / "run", "--push", "me/mine")
        assert code == 2 and "cannot become one weight" in errors and not made.calls
    if mixer == "task-gate":
        assert run(capsys, "export", tmp_path / "run", "--task", "obqa", "--push", "me/mine")[0] == 0 and made.files


def test_without_push_nothing_is_asked_of_the_hub(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, hub: Use
) -> None:
    made = hub()
    assert run(capsys, "export", trained, "--out", tmp_path / "out")[0] == 0
    assert not made.calls


def test_a_hub_that_was_slow_for_the_base_is_asked_again(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, hub: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody set HF_HUB_OFFLINE, so the upload does not find it set."""
    offline = OfflineModeIsEnabled("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(reach, "OFFLINE", False)
    made = hub()
    called = made._called

    def strict(method: str, **arguments: Any) -> None:
        if huggingface_hub.constants.is_offline_mode():
            raise offline
        called(method, **arguments)

    monkeypatch.setattr(made, "_called", strict)
    code, _, errors = run(capsys, "export", trained, "--out", tmp_path / "out", "--push", "me/mine")
    assert code == 0, errors
