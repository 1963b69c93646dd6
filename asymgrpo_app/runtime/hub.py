"""Asks the Hugging Face hub for a name once, without the retries of its libraries, which take a minute to give up."""

import os
from pathlib import Path
from typing import Literal

from asymgrpo_app.errors import UserError, one_line

Kind = Literal["model", "dataset"]

_SECONDS = 10.0  # for an answer; a machine without a network knows at once
_MAIN_FILE: dict[Kind, str] = {"model": "config.json", "dataset": "README.md"}
_WORDS: dict[Kind, str] = {"model": "model", "dataset": "data set"}


def could_be_hub_id(name: str) -> bool:
    """Whether a name is that of a model or data set on the hub, as far as its form tells."""
    parts = name.split("/")
    return 1 <= len(parts) <= 2 and all(parts) and not name.startswith((".", "~"))


def no_folder(name: str) -> str:
    """Says that there is no such folder, and where a relative path was looked for."""
    return f"there is no folder {name}{'' if Path(name).is_absolute() else f' here (working directory {Path.cwd()})'}"


def require_on_hub(key: str, name: str, kind: Kind, *, cached: bool) -> None:
    """Check that a name that is no folder can be had from the hub, or from its cache on this machine.

    If the hub cannot be reached, and the name is in the cache, the libraries are told to leave the hub alone from here
    on: they would try again and again for each file that the cache does not have.

    Args:
        key: The config key, for messages.
        name: A name that `could_be_hub_id`.
        kind: What it names.
        cached: Whether the cache has it.

    Raises:
        UserError: It cannot be had.
    """
    why = _refusal(name, kind, cached=cached)
    if why is None:
        return
    raise UserError(
        f"{key}: {no_folder(name)}, and {why}: a relative path, also one in a config, starts at the working directory, "
        "so change to the folder that it is meant from, or give the whole path."
    )


def _refusal(name: str, kind: Kind, *, cached: bool) -> str | None:
    """Why the hub does not give what is named; None if it does, or the cache does."""
    import huggingface_hub
    from huggingface_hub import errors

    if huggingface_hub.is_offline_mode():
        return None if cached else "it is not in the local cache of the hub, which HF_HUB_OFFLINE says not to ask"
    try:
        url = huggingface_hub.hf_hub_url(name, _MAIN_FILE[kind], repo_type=kind)
        huggingface_hub.get_hf_file_metadata(url, timeout=_SECONDS)
    except errors.GatedRepoError:
        return None if cached else "the hub gives it only to accounts that accepted its conditions (HF_TOKEN names one)"
    except errors.RepositoryNotFoundError:
        return None if cached else f"the hub has no such {_WORDS[kind]} (or a private one: HF_TOKEN names your account)"
    except errors.EntryNotFoundError:
        return None if cached or kind == "dataset" else "what the hub has by that name has no config.json"
    except errors.HFValidationError:
        return "that is no name on the hub either"
    except errors.HfHubHTTPError as error:  # it answers, and may do better for the libraries
        busy = error.response.status_code in (408, 429)
        return None if cached or busy else f"the hub refuses it ({_shown(error)})"
    except Exception as error:  # those of the library's HTTP client
        if cached:
            _leave_hub_alone()
            return None
        return f"the hub cannot be reached ({_shown(error)})"
    return None


def _leave_hub_alone() -> None:
    """Have this process and those that it starts take what is in the cache."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True  # read once, when the library was imported


def _shown(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}").rstrip(".: ")[:150]
