"""Where a sweep's trials are kept: Optuna's journal in the folder, or a database."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from liftplus.errors import UserError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

JOURNAL, DATABASE = "sweep.journal", "sweep.db"
PATIENCE = 120  # seconds to wait while other processes write into an SQLite file


def opened(url: str | None, folder: Path) -> BaseStorage:
    """Optuna's storage: the database at `url`, or the journal in the folder if `url` is None.

    Raises:
        UserError: Optuna or a driver is missing, or the database cannot be opened.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage, RDBStorage, journal
    except ImportError as error:
        raise UserError("A sweep needs Optuna. Install it with: pip install 'liftplus[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None and not (folder / DATABASE).is_file():  # earlier versions kept a database in the folder
        path = str(folder / JOURNAL)
        lock = journal.JournalFileOpenLock(path) if os.name == "nt" else None  # the default needs symbolic links
        return JournalStorage(journal.JournalFileBackend(path, lock))
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    url = url or f"sqlite:///{(folder / DATABASE).absolute()}"
    try:
        return RDBStorage(url, {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {})
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--storage {_shown(url)} needs a database driver. Install it with pip. ({reason})") from error
    except (ArgumentError, ValueError) as error:
        raise UserError(
            f"--storage {_shown(url)} is not the address of a database. Write sqlite:///FILE, "
            "postgresql+psycopg://USER@HOST/NAME or mysql+pymysql://USER@HOST/NAME."
        ) from error
    except (SQLAlchemyError, RuntimeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(
            f"--storage {_shown(url)} cannot be opened ({reason}). Check the address and that the database runs."
        ) from error


def _shown(url: str) -> str:
    """The address with its password hidden."""
    head, at, tail = url.rpartition("@")
    return repr(f"{head.rpartition(':')[0]}:…@{tail}" if at and head.count(":") > 1 else url)


def drain(study: Study) -> None:
    """Remove waiting trials, which an earlier version queued. Otherwise `ask` would return them to the sampler."""
    from optuna.trial import TrialState

    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.tell(study.ask(), state=TrialState.FAIL)


@contextmanager
def reached() -> Iterator[None]:
    """Turn a failure of the storage during a sweep into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        chain: list[BaseException] = [error]  # Optuna may fall over its own handling of a storage's error
        while behind := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(behind)
        blamed = [one for one in chain if type(one).__module__.partition(".")[0] in ("sqlalchemy", "optuna")]
        if any(isinstance(one, json.JSONDecodeError) for one in chain):
            reason = "its journal has a damaged line"
        elif blamed:
            reason = str(blamed[-1].__cause__ or blamed[-1]).splitlines()[0]
        else:
            raise
        raise UserError(
            f"The storage failed ({reason}). Finished trials are kept. Repair the storage and give the same command to "
            "continue."
        ) from error
