"""Names of models: what is no folder and on no hub in reach ends in one sentence, within seconds."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from models.loading import locate
from tasks.errors import UserError


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if the network were allowed; the cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(locate, "_WAIT", 0.2)


def _ask(monkeypatch: pytest.MonkeyPatch, answer: Any) -> tuple[str, float]:
    monkeypatch.setattr(locate, "model_info", answer)
    start = time.monotonic()
    with pytest.raises(UserError, match="must be in the local Hugging Face cache or on a hub") as caught:
        locate.locate("someone/no-such-model")
    return str(caught.value), time.monotonic() - start


@pytest.mark.usefixtures("online")
def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    message, seconds = _ask(monkeypatch, lambda *a, **k: time.sleep(30))
    assert "(no hub answered)" in message and len(message) < 400
    assert seconds < 5


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ProxyError("dead"), OSError("no route")])
def test_a_hub_that_cannot_be_reached_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def answer(*args: Any, **kwargs: Any) -> None:
        raise error

    assert "(no hub answered)" in _ask(monkeypatch, answer)[0]


@pytest.mark.usefixtures("online")
def test_a_name_that_a_hub_does_not_have_is_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*args: Any, **kwargs: Any) -> None:
        response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
        raise RepositoryNotFoundError("no such repository", response=response)

    assert "no such repository" in _ask(monkeypatch, answer)[0]


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(("kind", "status"), [(HfHubHTTPError, 503), (HfHubHTTPError, 429), (GatedRepoError, 403)])
def test_a_cached_model_is_found_whatever_error_the_hub_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[HfHubHTTPError], status: int
) -> None:
    def answer(*args: Any, **kwargs: Any) -> None:
        raise kind("refused", response=httpx.Response(status, request=httpx.Request("GET", "https://hub")))

    monkeypatch.setattr(locate, "model_info", answer)
    monkeypatch.setattr(locate, "snapshot_download", lambda *a, **k: str(tmp_path))  # which takes the cache
    assert locate.locate("someone/cached").folder == tmp_path


def test_offline_mode_is_named() -> None:
    with pytest.raises(UserError, match=r"someone/no-such-model' \(offline mode is on\)"):
        locate.locate("someone/no-such-model")
