"""Names that are no folders, with a hub that answers, refuses, or cannot be reached."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from asymgrpo_app.errors import UserError
from asymgrpo_app.policy.loading import check_model_path
from asymgrpo_app.runtime import hub

WHAT_TO_DO = (
    ": a relative path, also one in a config, starts at the working directory, so change to the folder that it is "
    "meant from, or give the whole path."
)


class _Response:
    def __init__(self, status: int) -> None:
        self.status_code, self.headers, self.request = status, {}, None


@pytest.fixture
def ask(monkeypatch):
    """Set what the hub answers; the returned list has the addresses that were asked for."""
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    asked: list[str] = []

    def answer(error: BaseException | None) -> list[str]:
        def metadata(url: str, timeout: float) -> None:
            asked.append(url)
            assert timeout <= 10
            if error is not None:
                raise error

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
        return asked

    return answer


def _refused(name: str) -> str:
    with pytest.raises(UserError) as raised:
        check_model_path("model.policy", name)
    return str(raised.value)


def test_a_relative_folder_that_is_missing_is_asked_for_once(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ask(OSError("Name or service not known"))
    assert _refused("data/base") == (
        f"model.policy: there is no folder data/base here (working directory {tmp_path}), and the hub cannot be "
        f"reached (OSError: Name or service not known){WHAT_TO_DO}"
    )
    (url,) = asked
    assert url.endswith("/data/base/resolve/main/config.json")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.RepositoryNotFoundError("no", response=_Response(404)), "the hub has no such model (or a private one"),
        (errors.GatedRepoError("no", response=_Response(403)), "the hub gives it only to accounts that accepted"),
        (errors.EntryNotFoundError("no"), "what the hub has by that name has no config.json"),
        (errors.HfHubHTTPError("no", response=_Response(500)), "the hub refuses it (HfHubHTTPError: no)"),
    ],
)
def test_what_the_hub_says_is_told(ask, error, said):
    ask(error)
    assert said in _refused("someone/model")


@pytest.mark.parametrize("error", [None, errors.HfHubHTTPError("slow down", response=_Response(429))])
def test_a_model_that_the_hub_has_passes(ask, error):
    asked = ask(error)
    check_model_path("model.policy", "someone/model")
    assert len(asked) == 1


def test_without_the_hub_a_model_in_the_cache_passes_and_nothing_is_tried_again(ask, monkeypatch):
    ask(OSError("no network"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("asymgrpo_app.policy.loading.try_to_load_from_cache", lambda *_: "/cache/config.json")
    check_model_path("model.policy", "someone/model")
    assert huggingface_hub.constants.HF_HUB_OFFLINE is True


def test_nothing_is_asked_where_the_user_says_so(ask, monkeypatch):
    asked = ask(None)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    assert "which HF_HUB_OFFLINE says not to ask" in _refused("someone/model")
    assert asked == []


@pytest.mark.parametrize("name", ["a/b/c", "./a", "../a", "/nowhere/at/all", "a/"])
def test_what_can_only_be_a_folder_is_not_asked_for(ask, name):
    asked = ask(None)
    assert _refused(name) in (
        f"model.policy: there is no folder {name}.",
        f"model.policy: there is no folder {name} here (working directory {Path.cwd()}).",
    )
    assert asked == []


def test_a_data_set_without_a_readme_is_one(ask):
    asked = ask(errors.EntryNotFoundError("no"))
    hub.require_on_hub("data.train", "someone/rows", "dataset", cached=False)
    assert asked[0].endswith("/datasets/someone/rows/resolve/main/README.md")
