"""Which pictures a run was trained on, by what is in their files. They can neither calibrate it nor test a promise."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from liftplus.data import contents
from liftplus.data.dataset import DataSet, Split, Store
from liftplus.errors import UserError
from liftplus.runs import changes
from liftplus.runs.matching import as_in_run
from liftplus.runs.opening import Session
from liftplus.training.checkpoint import Trained


def own_data(session: Session, trained: Trained, *, other_data: bool, to_decode: bool = True) -> DataSet:
    """The run's own data, with the splits that they had in the run.

    Args:
        other_data: whether the session's data differ from the run's.
        to_decode: whether the pictures will be decoded; else none is left out for being damaged, which takes no time.

    Raises:
        UserError: they cannot be read, or their training pictures are not those that the run was trained on.
    """
    data = trained.config.data if other_data else session.config.data
    data = data if to_decode else data.model_copy(update={"unreadable": "stop"})
    reading = replace(session, config=session.config.model_copy(update={"data": data}))
    own = as_in_run(reading.data(), trained.folder, "train")
    noted = changes.fingerprints(trained.folder).get("train")
    if noted is None or "train" not in own.splits or own.fingerprint("train") == noted:
        return own
    if not to_decode:  # the run may have left damaged pictures out
        return own_data(session, trained, other_data=other_data)
    raise UserError(
        f"The training pictures of {str(trained.folder)!r} are not those that it was trained on: its data have changed "
        "since. Put them back as they were, or give other labelled pictures with --data."
    )


def trained_on(session: Session, store: Store, part: Split, own: DataSet) -> Tensor:
    """Which of these pictures have the content of one of the run's training pictures, bool [N].

    Args:
        own: the run's own data.
    """
    if "train" not in own.splits:
        return torch.zeros(len(part), dtype=torch.bool)
    train = own.splits["train"].keys
    found = session.runtime.job.from_leader(lambda: contents.shared(store, part.keys, own.store, train))
    return torch.from_numpy(found)
