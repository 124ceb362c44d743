"""A push says what is wrong in one line, before the work begins, and never shows its token."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub import RepoUrl
from huggingface_hub.errors import HfHubHTTPError

from endprompt.cli.app import run
from endprompt.errors import OutputError
from endprompt.io import hub

SECRET = "hf_AbCdEfGhIjKlMnOp"


class Answer:
    """As much of a response as the hub's errors look at."""

    def __init__(self, status: int) -> None:
        self.status_code = status
        self.headers: dict[str, str] = {}
        self.request = None


def refusal(status: int) -> HfHubHTTPError:
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    OSError.__init__(error, f"{status} for Authorization: Bearer {SECRET}")
    error.response = Answer(status)  # ty: ignore[invalid-assignment]
    return error


class FakeHub:
    """HfApi that keeps what it was asked; `fault` is raised in its place."""

    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    fault: ClassVar[Exception | None] = None

    def __init__(self, token: str) -> None:
        self.token = token

    def __getattr__(self, name: str) -> Any:
        def answer(*words: Any, **options: Any) -> Any:
            if self.fault is not None:
                raise self.fault
            self.asked.append((name, {"token": self.token, "words": words, **options}))
            return RepoUrl(f"https://huggingface.co/{words[0]}") if words else {}

        return answer


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.setattr(FakeHub, "asked", [])
    monkeypatch.setattr(FakeHub, "fault", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return FakeHub


def test_a_push_makes_a_private_repository_and_sends_the_folder(
    fake: type[FakeHub], tmp_path: Path
) -> None:
    address = hub.push(tmp_path, "me/mine", kind="model", message="Add it")
    assert address == "https://huggingface.co/me/mine"
    (made, first), (sent, second) = fake.asked
    assert (made, first["words"], first["private"], first["exist_ok"]) == (
        "create_repo", ("me/mine",), True, True
    )  # fmt: skip
    assert (sent, second["folder_path"], second["repo_id"]) == (
        "upload_folder", tmp_path, "me/mine"
    )  # fmt: skip
    assert first["token"] == second["token"] == SECRET


def test_a_missing_token_is_named_with_the_remedy(
    fake: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", " ")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    with pytest.raises(OutputError, match=r"needs a token with write access in HF_TOKEN"):
        hub.check("me/mine")
    assert fake.asked == [], "a token kept elsewhere on the machine is not used"
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "other")
    assert hub.token() == "other"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (refusal(401), "the hub refused the token (401)"),
        (refusal(403), "the hub refused the token (403)"),
        (refusal(500), "500 for Authorization: Bearer [token]"),
        (ConnectionError("unreachable"), "the hub can't be reached"),
        (TimeoutError(), "the hub can't be reached"),
    ],
)
def test_what_the_hub_says_is_one_line_without_the_token(
    fault: Exception,
    said: str,
    fake: type[FakeHub],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(fake, "fault", fault)
    for act in (lambda: hub.check("me/mine"),
                lambda: hub.push(tmp_path, "me/mine", kind="model", message="")):  # fmt: skip
        with pytest.raises(OutputError) as caught:
            act()
        assert f"cannot push to me/mine: {said}" in str(caught.value)
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot push to no name: "):
        hub.check("no name")


def test_export_asks_the_hub_before_it_writes(
    fake: type[FakeHub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(fake, "fault", refusal(401))
    words = ["export", str(tmp_path), "--out", str(tmp_path / "out"), "--push", "me/mine"]
    assert run(words) == 1
    said = capsys.readouterr()
    assert "the hub refused the token" in said.err
    assert SECRET not in said.err + said.out
    assert list(tmp_path.iterdir()) == []


def test_the_real_client_without_network_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", SECRET)  # HF_HUB_OFFLINE is set for all tests
    with pytest.raises(OutputError, match="the hub can't be reached"):
        hub.check("me/mine")
