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
PATIENCE = 120  # seconds that a process waits while others write into an SQLite file


def opened(url: str | None, folder: Path) -> BaseStorage:
    """The journal in a folder, or the database of an address; one that cannot be opened is refused."""
    try:
        import optuna
        from optuna.storages import JournalStorage, RDBStorage, journal
    except ImportError as error:
        raise UserError("A sweep needs Optuna. Install it with: pip install 'liftplus[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None and not (folder / DATABASE).is_file():  # of a sweep that an earlier version began
        path = str(folder / JOURNAL)
        lock = journal.JournalFileOpenLock(path) if os.name == "nt" else None  # symbolic links need rights there
        return JournalStorage(journal.JournalFileBackend(path, lock))
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    url = url or f"sqlite:///{(folder / DATABASE).absolute()}"
    try:
        return RDBStorage(url, {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {})
    except ImportError as error:
        raise UserError(f"--storage {_shown(url)} needs a driver: {str(error).splitlines()[0]}") from error
    except (ArgumentError, ValueError) as error:
        raise UserError(
            f"--storage {_shown(url)} is no database's address. Write sqlite:///FILE, "
            "postgresql+psycopg://USER@HOST/NAME or mysql+pymysql://USER@HOST/NAME."
        ) from error
    except (SQLAlchemyError, RuntimeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"--storage {_shown(url)} cannot be opened ({reason}).") from error


def _shown(url: str) -> str:
    """An address without the password in it."""
    head, at, tail = url.rpartition("@")
    return repr(f"{head.rpartition(':')[0]}:…@{tail}" if at and head.count(":") > 1 else url)


def drain(study: Study) -> None:
    """Take what waits out of a study that an earlier version began: it had a queue, which a sampler would be given."""
    from optuna.trial import TrialState

    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.tell(study.ask(), state=TrialState.FAIL)


@contextmanager
def reached() -> Iterator[None]:
    """A storage that fails under way, or is gone, in a sentence."""
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
            f"The storage failed ({reason}). Finished trials are kept; when it works again, the same command goes on."
        ) from error
