"""Folders to the hub, with a token from the environment alone: it is never logged or written."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from endprompt.errors import OutputError

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
REFUSED = (401, 403)


def token() -> str:
    """The token of the environment. Raises OutputError where there is none."""
    for name in TOKENS:
        value = os.environ.get(name, "").strip()
        if value:
            return value
    raise OutputError(
        f"--push needs a token with write access in {TOKENS[0]}: make one at "
        "huggingface.co/settings/tokens, `export HF_TOKEN=...`, and give the same command again"
    )


def check(repo: str) -> None:
    """Ask who the token is before the work of minutes begins. Raises OutputError."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    secret = token()
    with errors(repo, secret):
        validate_repo_id(repo)
        HfApi(token=secret).whoami()


def push(
    folder: Path,
    repo: str,
    *,
    kind: Literal["model", "dataset"],
    message: str,
    only: str | None = None,
) -> str:
    """Upload a folder's files to `repo`, made private where it is new; gives its address.

    only  a pattern of file names; None: all

    Raises OutputError without a token, with a refused one, and without network.
    """
    from huggingface_hub import HfApi

    secret = token()
    with errors(repo, secret):
        api = HfApi(token=secret)
        address = api.create_repo(repo, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=address.repo_id,
            repo_type=kind,
            commit_message=message,
            allow_patterns=only,
        )
    return str(address)


@contextmanager
def errors(repo: str, secret: str) -> Generator[None]:
    """What the hub's client raises, in one line with its remedy and without the token."""
    try:
        yield
    except Exception as error:  # its HTTP client, and with it the errors, differ by version
        said = " ".join(str(error).split()).replace(secret, "[token]")[:300]
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in REFUSED:
            remedy = f"the hub refused the token ({status}): give one that may write there"
        elif _unreachable(error):
            remedy = "the hub can't be reached: check the network, HF_ENDPOINT, HF_HUB_OFFLINE"
        else:
            remedy = said
        raise OutputError(f"cannot push to {repo}: {remedy}") from None


def _unreachable(error: BaseException) -> bool:
    causes = [cause for cause in (error, error.__cause__, error.__context__) if cause is not None]
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError"})
