"""List what folders and archives hold: links, litter of operating systems and spellings of names."""

from __future__ import annotations

import heapq
import os
import posixpath
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from unicodedata import normalize

from liftplus.data import archives
from liftplus.data.dataset import listing
from liftplus.errors import UserError
from liftplus.words import agreeing, counted


@dataclass(frozen=True)
class Members:
    """What a store holds.

    Attributes:
        files: their names, sorted.
        empty_folders: folders without any file, sorted.
        notes: what was left out, one sentence each.
        undeclared: whether names are in an encoding that the archive does not declare, so that they may be misread.
    """

    files: tuple[str, ...]
    empty_folders: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    undeclared: bool = False


def parts_of(name: str) -> list[str]:
    """A member's folders and its file name; backslashes in the last part come from Windows and separate folders too."""
    *folders, last = name.split("/")
    return [*folders, *([part for part in last.split("\\") if part] or [last])]


def spelling(path: str) -> str:
    """Canonical form of a path: slashes, Unicode form and case make no difference."""
    return normalize("NFC", posixpath.normpath(path.replace("\\", "/")).lstrip("/")).casefold()


def spellings(names: Iterable[str]) -> dict[str, str | None]:
    """Names by canonical form; None where two names share one."""
    found: dict[str, str | None] = {}
    for name in names:
        key = spelling(name)
        found[key] = None if key in found else name
    return found


def respelled(root: str, paths: Iterable[str]) -> dict[str, str]:
    """For paths that a folder does not hold, its own spelling where exactly one fits."""
    listed: dict[str, dict[str, str | None]] = {}

    def own(folder: str, part: str) -> str | None:
        if os.path.lexists(os.path.join(folder, part)):
            return part
        if folder not in listed:
            listed[folder] = spellings(os.listdir(folder)) if os.path.isdir(folder) else {}
        return listed[folder].get(spelling(part))

    found = {}
    for path in paths:
        name = ""
        for part in posixpath.normpath(path.replace("\\", "/")).lstrip("/").split("/"):
            if (there := own(os.path.join(root, name), part)) is None:
                break
            name = posixpath.join(name, there)
        else:
            if os.path.isfile(os.path.join(root, name)):
                found[path] = name
    return found


def of_folder(root: str) -> Members:
    """All files below a folder. Links are followed; a folder that is reached by several ways is read once.

    Raises:
        UserError: a folder cannot be listed, or a link leads nowhere.
    """
    walk = _Walk(root)
    try:
        walk.run()
    except (OSError, ValueError) as error:
        where, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
        raise UserError(f"{where or root} cannot be listed: {reason or error}.") from error
    return Members(tuple(sorted(walk.files)), tuple(sorted(walk.empty)), walk.notes())


def of_archive(
    found: Sequence[str],
    folders: set[str],
    refused: Sequence[str],
    notes: tuple[str, ...] = (),
    undeclared: bool = False,
) -> Members:
    """The members of an archive without litter.

    Args:
        found: names of files, in the archive's order.
        folders: names of folders that the archive lists.
        refused: names of members that are not read.
        notes: notes so far.
        undeclared: see `Members`.
    """
    files = set({"/".join(parts_of(name)): name for name in found}.values())
    litter = {name: part for name in files if (part := next(filter(archives.is_litter, parts_of(name)), None))}
    inhabited = sorted("/".join(parts_of(name)) for name in files | folders)
    empty = sorted(
        name
        for name in folders
        if name != "." and not any(map(archives.is_litter, name.split("/"))) and not _holds_any(name + "/", inhabited)
    )
    if len(files) < len(found):
        notes += (
            f"{counted(len(found) - len(files), 'archive member was', 'archive members were')} left out, because "
            "later members have the same names.",
        )
    if refused:
        notes += (f"Archive members with unsafe names, links or encryption were left out: {listing(refused, 3)}.",)
    notes += _litter_note({part for name, part in litter.items() if parts_of(name)[-1] != part})
    return Members(tuple(sorted(files - litter.keys())), tuple(empty), notes, undeclared)


@dataclass
class _Walk:
    """A walk through a folder: first what lies in it, then what links lead to, in the order of their names."""

    root: str
    files: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    litter: set[str] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)  # real path of each folder read: its name
    again: list[tuple[str, str]] = field(default_factory=list)  # a link, and the folder where it was read
    links: list[tuple[str, str]] = field(default_factory=list)  # of files: name, real path
    waiting: list[tuple[str, str]] = field(default_factory=list)  # linked folders

    def run(self) -> None:
        """Fill the lists."""
        heapq.heappush(self.waiting, ("", os.path.realpath(self.root)))
        while self.waiting:  # not by recursion, as folders may lie deeper than Python's stack
            inside = [heapq.heappop(self.waiting)]
            while inside:
                name, real = inside.pop()
                if real in self.known:
                    self._again(name, real)
                    continue
                self.known[real] = name
                inside += self._list(name, real)

    def _list(self, folder: str, real: str) -> list[tuple[str, str]]:
        """Add the files of one folder; returns the folders in it."""
        children: list[tuple[str, str]] = []
        held = 0
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                held += 1
                # is_dir() comes with the listing; only links cost a look at the disk.
                if archives.is_litter(entry.name):
                    if not entry.is_symlink() and entry.is_dir():
                        self.litter.add(entry.name)
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink():
                    self._link(entry, name, real)
                elif entry.is_dir():
                    children.append((name, os.path.join(real, entry.name)))
                else:
                    self.files.append(name)
        if held == 0 and folder:
            self.empty.append(folder)
        return children

    def _link(self, entry: os.DirEntry[str], name: str, real: str) -> None:
        try:
            there = os.path.exists(entry.path)
            target = os.readlink(entry.path)
            if there and entry.is_dir():
                self._linked_folder(name, real, os.path.realpath(entry.path))
                return
        except OSError:
            there, target = False, "itself"
        if not there and "." not in entry.name:
            raise UserError(f"{entry.path} is a link to {target}, which does not exist; mend the link, or remove it.")
        self.files.append(name)
        self.links.append((name, os.path.normpath(os.path.join(real, target))))

    def _linked_folder(self, name: str, holder: str, target: str) -> None:
        if _within(holder, target) or _within(os.path.realpath(self.root), target):  # it would be walked without end
            self.again.append((name, target))
        else:
            heapq.heappush(self.waiting, (name, target))

    def _again(self, name: str, real: str) -> None:
        """A folder reached by a second name: noted if it lies in the data itself, refused if two links lead to it."""
        first = self.known[real]
        if not _within(real, os.path.realpath(self.root)):
            raise UserError(
                f"{os.path.join(self.root, first)} and {os.path.join(self.root, name)} lead to the same folder, "
                f"{real}, so its pictures would count twice; remove one of the two links."
            )
        self.again.append((name, first))

    def notes(self) -> tuple[str, ...]:
        """What was left out, and files that count twice."""
        notes = _litter_note(self.litter)
        if self.again:
            pairs = ", ".join(f"{name!r} to {first!r}" for name, first in sorted(self.again)[:3])
            notes += (
                f"{counted(len(self.again), 'link')} to folders that are read already or lie above "
                f"{agreeing(len(self.again), 'was', 'were')} left out: {pairs}.",
            )
        twins = self._twins()
        if twins:
            notes += (
                f"{counted(len(twins), 'linked file is a picture', 'linked files are pictures')} under another name "
                f"too, such as {twins[0][0]!r} and {twins[0][1]!r}; they count as two.",
            )
        return notes

    def _twins(self) -> list[tuple[str, str]]:
        """Linked files that the data also hold by another name, with that name."""
        if not self.links:
            return []
        present = set(self.files)
        seen: dict[str, str] = {}
        twins = []
        for name, real in sorted(self.links):
            folder = self.known.get(os.path.dirname(real))
            inside = None if folder is None else posixpath.join(folder, os.path.basename(real))
            first = inside if inside in present else seen.setdefault(real, name)
            if first != name:
                twins.append((name, first))
        return twins


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _litter_note(folders: Iterable[str]) -> tuple[str, ...]:
    shown = sorted(name for name in folders if name.casefold() not in ("__macosx", ".ds_store"))
    return (f"Hidden folders and those of systems were left out: {listing(shown, 3)}.",) if shown else ()


def _holds_any(start: str, names: Sequence[str]) -> bool:
    """Whether one of the sorted names starts like this."""
    place = bisect_left(names, start)
    return place < len(names) and names[place].startswith(start)
