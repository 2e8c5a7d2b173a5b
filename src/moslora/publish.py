"""A finished folder on the Hugging Face hub."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moslora.card import public_name
from moslora.data.reach import try_again
from moslora.errors import MosloraError, UsageError, first_line


def check_repository(repo: str | None, *, public: bool) -> None:
    """Makes the model repository ``repo`` if need be, before hours of work are put into what should go there.

    Raises:
        UsageError: no name of the form owner/name, ``public`` without one, or the repository is there and seen by
            others than ``public`` says.
        MosloraError: no network, no token, or no permission.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not re-exported

    if repo is None:
        if public:
            raise UsageError("--public: goes with --push REPO")
        return
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UsageError(f"--push {repo}: no name of a repository; give it as owner/name") from None
    if "/" not in repo:
        raise UsageError(f"--push {repo}: whose? give it as owner/name")
    with _refusals(repo):
        api = HfApi()
        address = api.create_repo(repo, private=not public, exist_ok=True)
        private = api.model_info(repo).private
    if private and public:
        raise UsageError(
            f"--push {repo}: that repository is private already; open it in its settings ({address}/settings), or leave"
            " --public out"
        )
    if not private and not public:
        raise UsageError(f"--push {repo}: that repository is public already; say so with --public, or name another")


def push(folder: Path, repo: str, *, public: bool) -> str:
    """Uploads ``folder`` as one commit of the model repository ``repo``.

    Args:
        folder: written and proved.
        repo: owner/name, as `check_repository` left it.
        public: whether everybody may see it; for the line that says how to upload it later.

    Returns:
        Its address.

    Raises:
        MosloraError: the hub does not take it. ``folder`` stays as it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = {path: _published(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    command = shlex.join(["hf", "upload", repo, str(folder), *([] if public else ["--private"])])
    # Uploaded as it lies there, the folder would tell everybody what `_published` keeps back.
    as_it_lies = all(path == content for path, content in files.items())
    later = f"upload it later: {command}" if as_it_lies else "for another try, give the same command another --out"
    with _refusals(repo, f". {folder} is whole and stays; {later}"):
        added = [CommitOperationAdd(path.relative_to(folder).as_posix(), content) for path, content in files.items()]
        return str(HfApi().create_commit(repo, added, commit_message="Upload by moslora").repo_url)


def _published(path: Path) -> Path | bytes:
    """What others get of a file: it as it is, but for the place of a local base, which PEFT needs here alone."""
    if path.name != "adapter_config.json":
        return path
    config = json.loads(path.read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"]
    if public_name(base) == base:
        return path
    config["base_model_name_or_path"] = public_name(base)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


@contextmanager
def _refusals(repo: str, then: str = "") -> Iterator[None]:
    """One line for whatever the hub, or the way to it, refuses inside the block; ``then`` at its end."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try_again()  # the base may have come from the cache since, because the hub was slow for a moment
    try:
        yield
    except LocalTokenNotFoundError:
        reason = "no token; log in with `hf auth login`"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set; unset it"
    except HfHubHTTPError as error:
        reason = _refusal(error.response.status_code)
    except ValueError as error:
        about = "README.md: " if "README.md" in str(error) else ""
        reason = f"the hub refuses {about or 'the folder: '}{' '.join(str(error).split())}"
    except Exception as error:
        name, text = type(error).__name__, first_line(error)
        said = name if text == name else f"{name}: {text}"
        reason = f"the hub cannot be reached ({said})" if _unreachable(error) else f"the upload failed ({said})"
    else:
        return
    raise MosloraError(f"--push {repo}: {reason}{then}")


def _unreachable(error: Exception) -> bool:
    """Whether no answer came; the hub's HTTP library changes with its versions, the name of this base has not."""
    return isinstance(error, ConnectionError | TimeoutError) or any(
        kind.__name__ == "TransportError" for kind in type(error).__mro__
    )


def _refusal(status: int) -> str:
    match status:
        case 401:
            return "the hub knows no valid token of yours; log in with `hf auth login`"
        case 403:
            return "your token may not write there; take one with the right to write, or a repository of your own"
        case 404:
            return "no such owner, or nothing that your token may see"
    return f"the hub says no (HTTP {status})"
