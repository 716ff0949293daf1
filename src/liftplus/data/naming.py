"""The classes of a table: their order and names, and what a user should know about them."""

from __future__ import annotations

from liftplus.data import class_names, names_file
from liftplus.data.class_names import Named
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet, Table, are_numbers, listing, sorted_ids
from liftplus.errors import UserError
from liftplus.words import agreeing, counted

_NAMELESS = (
    "Class names are only numbers or codes, so starting the classifier from text would mean nothing; "
    "give words with data.class_names."
)


def of(table: Table, config: DataConfig) -> Named:
    """Class id to name in label order, by the file that the configuration names, else by the table."""
    ids = table.class_ids or sorted_ids(table.ids("train"))
    if config.class_names is None:
        named = Named({label: table.names.get(label, label) for label in ids})
    else:
        # A file of names by id may name classes of other splits too, even without training images.
        extra = sorted_ids(table.ids() - set(ids))
        every = (*ids, *extra) if table.class_ids else sorted_ids({*ids, *extra})
        named = class_names.match(ids, names_file.read(config.class_names), config.class_names, every)
    return Named(named.names, named.notes + class_names.check(named.names))


def refuse_unknown(table: Table, known: set[str], name: str) -> None:
    """Refuse classes of other splits that training does not have."""
    for split in table.rows:
        unknown = sorted_ids(table.ids(split) - known)
        if unknown:
            alike = {class_names.fold(label): label for label in sorted_ids(known)}
            twin = next((label for label in unknown if class_names.fold(label) in alike), None)
            way = "add training images, leave them out, or declare all with data.class_names"
            if twin is not None:
                way = f"{twin!r} is {alike[class_names.fold(twin)]!r} in training: write both in one way"
            raise UserError(
                f"{name}: the {split} split has {counted(len(unknown), 'class', 'classes')} that training does not "
                f"know, {listing(unknown)}; {way}."
            )


def id_notes(ids: tuple[str, ...], named: bool) -> tuple[str, ...]:
    """Notes on ids that were numbered anew, and on names that are no words."""
    notes: tuple[str, ...] = ()
    if are_numbers(ids) and ids != tuple(map(str, range(len(ids)))):
        notes += (f"Class ids are not 0 to {len(ids) - 1} in order; they were numbered anew, the originals are kept.",)
    if not named:
        notes += (_NAMELESS,)
    return notes


def untrained(dataset: DataSet) -> tuple[str, ...]:
    """A note on classes without training images."""
    empty = [dataset.class_names[k] for k, count in enumerate(dataset.counts("train")) if count == 0]
    if not empty:
        return ()
    have = agreeing(len(empty), "has", "have")
    return (f"{len(empty):,} of {dataset.num_classes:,} classes {have} no training images: {listing(empty)}.",)
