"""Push a finished run to the Hugging Face hub with a model card; pull and verify one.

A repository holds only the files in `FILES` and README.md: no pictures, no list of their paths, no training state.
Paths on this machine are removed from the settings.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is the client's, whichever it is
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from liftplus.errors import UserError
from liftplus.machine.disk import new_folder, read_json, refuse_existing, room_beside, write_bytes, write_json
from liftplus.publishing import model_card
from liftplus.training.checkpoint import FILE, FORMAT, read_about, read_model, write_tensors

CONFIG, CARD = "config.json", "README.md"
FILES = (FILE, CONFIG, "metrics.json", "per_class.csv", "confusion.csv")


def stage(run: Path, folder: Path, repo_id: str, licence: str | None) -> list[str]:
    """Write the files of a push into an empty folder, and return their names."""
    about, state = read_model(run)
    about["config"] = without_paths(about["config"])
    write_tensors(folder / FILE, state, about | {"format": FORMAT})
    record = read_json(run / CONFIG, "config") if (run / CONFIG).is_file() else {}
    record = without_paths(record) | {"config": about["config"]}
    record.pop("command", None)  # it contains paths of this machine
    write_json(folder / CONFIG, record)
    metrics = without_paths(read_json(run / "metrics.json")) if (run / "metrics.json").is_file() else None
    if metrics is not None:
        write_json(folder / "metrics.json", metrics)
    for name in FILES:
        if (run / name).is_file() and not (folder / name).exists():
            shutil.copyfile(run / name, folder / name)
    card = model_card.write(repo_id, about, record, metrics, licence)
    write_bytes(folder / CARD, card.encode())
    return sorted(item.name for item in folder.iterdir())


def without_paths(value: Any) -> Any:
    """Settings with absolute paths cut to their last name, since the rest describes only this machine."""
    if isinstance(value, dict):
        # A file of backbone weights is found by its name elsewhere, and known by its checksum.
        return {key: None if key == "weights" else without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, str):
        for flavour in (PurePosixPath, PureWindowsPath):
            if flavour(value).is_absolute():
                return flavour(value).name
        return value.rpartition("/")[2] if value.startswith(("~/", "../")) else value
    return value


def push(
    run: Path, repo_id: str, *, private: bool, revision: str | None, licence: str | None, api: HfApi | None = None
) -> tuple[str, list[str]]:
    """Upload a run, with the token of `hf auth login`, and return the commit's URL and the files.

    Raises:
        UserError: the run cannot be read, or the hub refuses or does not answer.
    """
    api = api or HfApi()
    read_about(run)
    with tempfile.TemporaryDirectory(prefix="liftplus-push-") as name:
        files = stage(run, Path(name), repo_id, licence)
        with _told(repo_id):
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=name,
                revision=revision,
                commit_message="Upload a liftplus run",
                allow_patterns=files,
            )
    return str(commit.commit_url), files


def pull(repo_id: str, out: Path, *, revision: str | None, api: HfApi | None = None) -> str:
    """Download a run into a new folder and return its commit. If anything fails, no folder is left.

    Raises:
        UserError: the folder exists, the repository holds no run, its checksum is wrong, or the hub does not answer.
    """
    api = api or HfApi()
    refuse_existing(out)
    with room_beside(out, ".pull-") as name, _told(repo_id):
        # All files come from one commit, even if somebody pushes meanwhile.
        commit = api.model_info(repo_id, revision=revision).sha
        api.snapshot_download(repo_id, revision=commit, local_dir=name, allow_patterns=[*FILES, CARD], max_workers=4)
        if not (Path(name) / FILE).is_file():
            raise UserError(f"{repo_id!r} holds no liftplus run ({FILE} is missing). Check the name.")
        read_about(Path(name))  # verifies the checksum
        new_folder(out)
        for item in (*FILES, CARD):
            if (Path(name) / item).is_file():
                (Path(name) / item).replace(out / item)
    return str(commit)


@contextmanager
def _told(repo_id: str) -> Iterator[None]:
    """Turn errors of the hub into UserErrors."""
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is not the name of a repository. Write it as OWNER/NAME.") from error
    except LocalTokenNotFoundError as error:
        raise UserError("The hub needs a login. Run `hf auth login`, or set HF_TOKEN.") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo_id!r} has no such revision. Give one of its branches, tags or commits.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"There is no repository {repo_id!r} on the hub, or it is private and your token cannot see it. Check the "
            "name, or run `hf auth login`."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"The hub refuses access to {repo_id!r}. Run `hf auth login` with a token that allows it."
            ) from error
        reason = f"it answered {status}" if status else str(error).splitlines()[0] if str(error) else "no answer"
        raise UserError(
            f"The model hub cannot be reached or failed ({reason}). Try again later. Without a network, copy the run's "
            "folder: eval and predict need nothing else."
        ) from error
