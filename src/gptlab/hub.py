"""The Hugging Face hub: a name there → a folder here, and back. And the folder where the lab keeps what it made itself.

With data/sources.py it is the only code that uses the network. Where the hub is (HF_ENDPOINT), where its files are
kept (HF_HOME), with which token they are asked for and whether the network may be used at all (HF_HUB_OFFLINE) is
huggingface_hub's to decide.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from gptlab.errors import GptlabError, UserError

Kind = Literal["model", "dataset"]


def cache_folder() -> Path:
    """Where the lab keeps what it prepared (corpora, tokenizers, built kernels): $GPTLAB_CACHE, else
    $XDG_CACHE_HOME/gptlab, else ~/.cache/gptlab."""
    if own := os.environ.get("GPTLAB_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gptlab"


def is_hub_name(name: str) -> bool:
    """Whether `name` could be a repository: "gpt2" or "owner/name"; "./gpt2" and "a/b/c" could not."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None


def download_files(repo: str, names: Sequence[str], *, revision: str | None = None, kind: Kind = "model") -> Path:
    """The folder, in huggingface_hub's cache, with those files of `repo` that match `names` (names or patterns).

    What is already there is not loaded again. UserError where there is no such repository or revision, none of the
    files, or no right to read them; GptlabError where the hub cannot be reached and they are not in the cache.
    """
    with hub_errors(repo, kind):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=list(names)))
    if not any(any(folder.glob(name)) for name in names):
        raise UserError(f"{repo} on the hub has none of the files looked for: {', '.join(names)}")
    return folder


def resolve_revision(repo: str, *, revision: str | None = None, kind: Kind = "model") -> str:
    """The commit (40 hex digits) that `revision` (a branch, tag or commit; the main branch if None) is now."""
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    with hub_errors(repo, kind):
        from huggingface_hub import HfApi

        found = HfApi().repo_info(repo, repo_type=kind, revision=revision).sha
    if found is None:
        raise GptlabError(f"the hub does not say which commit of {repo} it has")
    return found


def check_upload(repo: str) -> None:
    """UserError where `upload_folder` cannot begin: `repo` is no OWNER/NAME, or the package or a token is missing."""
    if not (is_hub_name(repo) and "/" in repo):
        raise UserError(f"{repo!r} is no name for a model on the hub; it is to be OWNER/NAME")
    with _upload_errors(repo):
        from huggingface_hub import get_token

        if get_token() is None:
            raise UserError(f"{repo}: the hub takes uploads from those it knows: run `hf auth login`, or set HF_TOKEN")


def upload_folder(folder: Path, repo: str, *, replaces: Sequence[str] = ()) -> str:
    """Puts the files of `folder` into the model repository `repo` (OWNER/NAME) in one commit; its address.

    Where there is no such repository it is made, and private. Of the files there, those that match `replaces` (names or
    patterns) and are not in `folder` go: a reader would mix the old model's files with the new one's. UserError as
    `check_upload` and where the token may not write there; GptlabError where the hub cannot be reached.
    """
    check_upload(repo)
    with _upload_errors(repo):
        from huggingface_hub import HfApi

        api = HfApi()
        address = api.create_repo(repo, private=True, exist_ok=True)
        old = list(replaces) or None
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by gptlab", delete_patterns=old)
    return str(address)


@contextmanager
def _upload_errors(repo: str) -> Iterator[None]:
    """Whatever goes wrong while uploading becomes one message that names `repo`."""
    try:
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise UserError("uploading to the hub needs: pip install 'gptlab[hub]'") from error
    try:
        yield
    except GptlabError:
        raise
    except Exception as error:  # as in hub_errors
        response = error.response if isinstance(error, errors.HfHubHTTPError) else None
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if response is not None and response.status_code in (401, 403):
            raise UserError(
                f"{repo}: the hub at {constants.ENDPOINT} does not let this token write there: {reason}; run `hf auth "
                "login` with a token that may"
            ) from error
        raise GptlabError(f"{repo} could not be uploaded to the hub at {constants.ENDPOINT}: {reason}") from error


@contextmanager
def hub_errors(repo: str, kind: Kind) -> Iterator[None]:
    """Whatever goes wrong on the hub inside the block becomes one message that names `repo`."""
    needed = UserError(f"{repo!r} is no path here, and reading it from the hub needs: pip install 'gptlab[hub]'")
    try:
        from huggingface_hub import constants
        from huggingface_hub import errors as hub
    except ImportError as error:
        raise needed from error
    try:
        yield
    except GptlabError:
        raise
    except ImportError as error:
        raise needed from error
    except hub.GatedRepoError as error:
        raise UserError(
            f"the {kind} {repo} is gated: accept its terms on its page on the hub, then run `hf auth login` here"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise UserError(f"the {kind} {repo} on the hub has no such revision") from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(
            f"{repo!r} is neither a path here nor a {kind} on the hub (or it is private: `hf auth login`)"
        ) from error
    except Exception as error:  # httpx's, requests' or aiohttp's, whichever this version of huggingface_hub uses
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise GptlabError(
            f"the {kind} {repo} could not be read from the hub at {constants.ENDPOINT} and is not in its cache here: "
            f"{reason}; check the network (HF_ENDPOINT, HF_HUB_OFFLINE), or give a local folder"
        ) from error
