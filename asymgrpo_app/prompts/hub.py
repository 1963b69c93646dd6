"""Problems from data sets of the Hugging Face Hub."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from asymgrpo_app.errors import UserError, one_line
from asymgrpo_app.prompts.arrow_rows import plain_row
from asymgrpo_app.prompts.reading import Reading
from asymgrpo_app.prompts.rows import RowSource
from asymgrpo_app.prompts.values import Row
from asymgrpo_app.rewards.base import Verifier
from asymgrpo_app.runtime.hub import could_be_hub_id, no_folder, require_on_hub

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder


class HubDataset(RowSource):
    """Problems from a data set of the Hugging Face Hub, or from a local folder laid out like one.

    It is downloaded once and read from the cache of the Hugging Face libraries afterwards, also without a network. No
    code of the data set is run. The verifier finds every column of the row, and the answer as a string under `answer`.
    The uid is `<name>/<split>/<row number from 1>`.

    Args:
        name: The data set's id, e.g. `openai/gsm8k`, or a folder.
        split: The split, e.g. `train`; a part of one is written `train[:1000]` or `train[10%:]`.
        revision: Branch, tag or commit; the main branch if left out. Name a commit to get the same rows for ever.
        config: One of the data set's configurations; the default one if left out.
        prompt_field: The column of the prompt, a string that is not empty, or a chat, whose last message of the user
            is the problem; for a field within it, names joined by dots: `extra_info.question`, `messages.0.content`.
        answer_field: The column of the right answer, a string that is not empty, a number or a date; named likewise.
            Null: the verifier reads other fields.
        verifier: The verifier that judges the completions; exact match if left out.
        reading: How a row becomes a problem, where these fields do not say it all: chats and choices, references
            inside solutions, JSON in texts.

    Raises:
        UserError: The data set, split, revision or configuration is not there or cannot be reached.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        revision: str | None = None,
        config: str | None = None,
        prompt_field: str = "prompt",
        answer_field: str | None = "answer",
        verifier: Verifier | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.name = name
        self.split = split
        # As Arrow: pictures and the like are left undecoded.
        self._rows = _load(name, split, revision, config).with_format("arrow")
        super().__init__(len(self._rows), prompt_field, answer_field, verifier, reading)

    def row(self, index: int) -> Row:
        """The row `index`, from 0.

        Raises:
            BadRow: It cannot be read.
        """
        place = f"{self}, row {index + 1}"
        return Row(f"{self.name}/{self.split}/{index + 1}", place, plain_row(self._rows[index], place))

    def __str__(self) -> str:
        return f"{self.name} ({self.split})"


def _load(name: str, split: str, revision: str | None, config: str | None) -> "Dataset":
    named = f"Cannot load the data set {name!r} (split {split!r}, config {config!r}, revision {revision!r})"
    if not Path(name).is_dir():
        if not could_be_hub_id(name):
            raise UserError(f"{named}: {no_folder(name)}.")
        require_on_hub(named, name, "dataset", cached=_is_cached(name, revision))
    elif revision is not None:
        raise UserError(f"{name} is a folder, and a folder has no revision {revision!r}: leave it out.")
    try:
        builder = _builder(name, revision, config)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    except Exception as error:  # the library raises exceptions of every kind
        reason = one_line(f"{type(error).__name__}: {error}").rstrip(".: ")
        raise UserError(f"{named}: {reason}.") from error


def _is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True)
    except (OSError, ValueError):  # it is not there, or that is no name
        return False
    return True


def _builder(name: str, revision: str | None, config: str | None) -> "DatasetBuilder":
    import datasets
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return datasets.load_dataset_builder(name, config)
    if not datasets.config.HF_HUB_OFFLINE:
        with contextlib.suppress(ConnectionError):
            builder = datasets.load_dataset_builder(name, config, revision=revision)
            if not isinstance(builder, Cache):
                return builder
    # Without the hub, the library would take the data set that it prepared last, whatever its revision. The hub's own
    # cache is filed by revision, so the data set is taken from there.
    folder = snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True)
    return datasets.load_dataset_builder(folder, config)
