"""A finished folder on the Hugging Face hub."""

from pathlib import Path

from moslora.errors import MosloraError, UsageError


def check_repository(repo: str | None, *, public: bool) -> None:
    """Refuses what cannot be a repository, before hours of work are put into what should go there.

    Raises:
        UsageError: no name of the form owner/name, or ``public`` without one.
    """
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


def push(folder: Path, repo: str, *, public: bool) -> str:
    """Uploads ``folder`` as one commit of the model repository ``repo``, which is made if need be.

    Args:
        folder: written and proved.
        repo: owner/name.
        public: whether everybody may see it.

    Returns:
        Its address.

    Raises:
        UsageError: the repository is public already, and ``public`` does not say so.
        MosloraError: no network, no token, or no permission. ``folder`` stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    visibility = "" if public else " --private"
    later = f"{folder} is whole and stays; upload it later: hf upload {repo} {folder}{visibility}"
    api = HfApi()
    try:
        address = str(api.create_repo(repo, private=not public, exist_ok=True))
        if not public and not api.model_info(repo).private:
            raise UsageError(f"--push {repo}: that repository is public already, say so with --public; {later}")
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by moslora")
    except LocalTokenNotFoundError:
        raise MosloraError(f"--push {repo}: no token; log in with `hf auth login`. {later}") from None
    except OfflineModeIsEnabled:
        raise MosloraError(f"--push {repo}: HF_HUB_OFFLINE is set; unset it. {later}") from None
    except HfHubHTTPError as error:
        raise MosloraError(f"--push {repo}: {_refusal(error.response.status_code)}. {later}") from None
    except UsageError:
        raise
    except Exception as error:  # the errors of the hub's HTTP library have no base that is the same in all its versions
        reason = (str(error).strip().splitlines() or [""])[0]
        raise MosloraError(
            f"--push {repo}: the hub cannot be reached ({type(error).__name__}: {reason}). {later}"
        ) from None
    return address


def _refusal(status: int) -> str:
    match status:
        case 401:
            return "the hub knows no valid token of yours; log in with `hf auth login`"
        case 403:
            return "your token may not write there; take one with the right to write, or a repository of your own"
        case 404:
            return "no such owner, or nothing that your token may see"
    return f"the hub says no (HTTP {status})"
