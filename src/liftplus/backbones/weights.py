"""Find, fetch, read and identify weight files. Code in a file is never unpickled."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from liftplus.backbones import forms, from_transformers
from liftplus.backbones.forms import BEFORE, SAVED, SUFFIXES
from liftplus.errors import UserError
from liftplus.machine.paths import cache_folder, expanded


def weight_folders() -> list[Path]:
    """Where weight files may be put by hand: $LIFTPLUS_WEIGHTS, else `weights` in the folder for caches.

    On every system ~/.cache/liftplus/weights is read too, where earlier versions looked.
    """
    given = os.environ.get("LIFTPLUS_WEIGHTS")
    if given:
        return [expanded(given)]
    return list(dict.fromkeys([cache_folder() / "weights", Path.home() / ".cache" / "liftplus" / "weights"]))


def put_by_hand(name: str) -> Path:
    """The place of a backbone's weight file, without the suffix; slashes become two underscores."""
    return weight_folders()[0] / name.replace("/", "__")


def find(name: str, given: str | None, hub: str, files: Sequence[str], *, fetch: bool = True) -> Path:
    """The weight file of a backbone: as given, as put by hand, as cached, or fetched from the model hub.

    Args:
        name: the backbone's name.
        given: a path that the user gave, if any.
        hub: repository on the model hub, "owner/name".
        files: names that the file may have there, in order of preference.
        fetch: whether the hub is asked for a file that is not on this machine.

    Raises:
        UserError: the file is neither on this machine nor given by the hub.
    """
    if given is not None:
        return existing(expanded(given))
    by_hand = put_by_hand(name)
    for folder in weight_folders():
        for suffix in SUFFIXES:  # not with_suffix: the tag behind a dot would be taken for one
            if (found := folder / (by_hand.name + suffix)).is_file():
                return found
    from huggingface_hub import hf_hub_download

    problem: Exception | None = None
    for local in (True, False) if fetch else (True,):
        for file in files:
            try:
                return Path(hf_hub_download(hub, file, local_files_only=local))
            except Exception as error:  # the hub's client raises many kinds: no network, no such file, no access
                problem = error
                if not local and not _absent(error):
                    break
    place = by_hand.with_name(by_hand.name + Path(files[0]).suffix)
    reason = f"the model hub cannot be reached ({type(problem).__name__})" if fetch else "the model hub was not asked"
    raise UserError(
        f"The weights of {name!r} are not on this machine and {reason}. Fetch {files[0]!r} from "
        f"https://huggingface.co/{hub} and put it at {str(place)!r}, or give its path as backbone.weights=PATH. "
        "The bundled backbone mini_clip needs no download."
    ) from problem


def _absent(error: Exception) -> bool:
    """Whether the model hub answered that it has no such file, so that another name is worth asking for.

    Without a network its client (huggingface_hub 2.4) tries each file for 23 seconds.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    return isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)


def existing(path: Path) -> Path:
    """The path of an existing weight file, or of the one in a folder that transformers saved; refuses other paths."""
    if path.is_dir():
        if (path / "config.json").is_file():
            if found := next((path / name for name in SAVED if (path / name).is_file()), None):
                return found
            if any((path / f"{name}.index.json").is_file() for name in SAVED):
                raise UserError(forms.of_parts(path))
        raise UserError(f"{str(path)!r} is a folder and no weight file. {forms.of_folder(path)}")
    if not path.is_file():
        raise UserError(f"Weight file {str(path)!r} does not exist. Give backbone.weights an existing file.")
    return path


def identity_of(path: Path) -> str:
    """SHA-256 of a weight file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def identity_of_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors that came from no file."""
    found = hashlib.sha256()
    for name, value in state.items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a weight file by name: .safetensors, OpenAI's TorchScript archive, .pt, .pth or .bin.

    What training scripts and PyTorch's wrappers put around it is removed (see `unwrapped` and `without_prefixes`).
    Anything unreadable ends in a `UserError`.
    """
    path = existing(path)
    table = without_prefixes(unwrapped(_opened(path), path)[0])
    for name, value in table.items():
        if name.endswith((".weight", ".bias")) and isinstance(value, Tensor) and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"{name!r} in {str(path)!r} holds whole numbers ({kind}), as quantised weights do. liftplus takes "
                "weights in fp32, fp16 or bf16: fetch the model as it was before."
            )
    return from_transformers.translated(table)


def remarks(path: Path) -> tuple[str, ...]:
    """What a user should know about the choice of tables and tensors in one file, one sentence each."""
    table, notes = unwrapped(_opened(path, "meta"), path)
    names = without_prefixes(table)
    if from_transformers.family(names) and (unused := from_transformers.left_out(names)):
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        notes.append(
            f"No feature depends on {', '.join(map(repr, unused[:3]))}{more} in {path.name!r}, so they were left out."
        )
    return tuple(notes)


def family_of(path: Path) -> str | None:
    """The family of a file in the names of the library transformers; None for any other file."""
    if path.suffix != ".safetensors" and _is_archive(path):
        return None
    return from_transformers.family(outline(path))


def outline(path: Path) -> dict[str, Any]:
    """The tensors of a file by name, without their values where the format allows that."""
    return without_prefixes(unwrapped(_opened(path, "meta"), path)[0])


def described(names: Sequence[str], seems: str | None = None) -> str:
    """The first names in a file that fits no backbone, what the file seems to be, and what to do."""
    first = ", ".join(repr(name) for name in names[:3])
    return f"The file's names begin with {first}. {seems or forms.of_names(names)}"


def _opened(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The content of a file; on the meta device only names and shapes are read, where the format allows that."""
    try:
        with warnings.catch_warnings():  # torch warns of its own plans for TorchScript and pickles
            warnings.simplefilter("ignore")
            return _read_any(path, device)
    except Exception as error:  # a damaged file can raise nearly anything
        if seems := forms.of_file(path):
            raise UserError(f"Weight file {str(path)!r} cannot be read as weights. {seems}") from error
        raise UserError(
            f"Weight file {str(path)!r} cannot be read as weights ({_reason(error, path)}. Allowed are .safetensors, "
            "PyTorch's .pt, .pth or .bin, and OpenAI's CLIP archives."
        ) from error


def _reason(error: Exception, path: Path) -> str:
    """Why a file cannot be read, and the way out."""
    if not isinstance(error, pickle.UnpicklingError):
        first = str(error).strip().partition(chr(10))[0]
        return f"{type(error).__name__}: {first[:200]}). Fetch the file again if it is whole elsewhere"
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return "it is damaged, or holds code or objects besides tensors, which are never loaded). Fetch the file again"
    return (
        f"it holds objects besides tensors, such as {found[1]}; objects are never loaded, as code can come with them). "
        "If you trust who made it, save its tensors alone: "
        f"torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'weights.pth'), or whichever key "
        "holds them, or .state_dict()"
    )


def _read_any(path: Path, device: str) -> dict[str, Any]:
    if path.suffix == ".safetensors" or forms.is_safetensors(path):
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        return load_file(path) if device == "cpu" else {k: torch.empty(v, device="meta") for k, v in shapes.items()}
    if _is_archive(path):
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not a table of tensors")
    return state


def _is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI published CLIP."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist())


RAW = ("state_dict", "model", "model_state_dict", "module")
"""Keys under which training scripts keep the weights; the first one present is used."""


def unwrapped(state: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    """The table of weights in a training checkpoint, and a note if it holds averaged weights as well.

    Raises:
        UserError: it holds no table of tensors, or several and none under a key of `RAW`.
    """
    notes: list[str] = []
    while not _is_table(state):
        tables = [key for key, value in state.items() if isinstance(value, dict) and _holds(value)]
        chosen = next((key for key in RAW if key in tables), tables[0] if len(tables) == 1 else None)
        if chosen is None:
            raise UserError(_no_table(path, list(state), tables))
        others = [key for key in tables if key != chosen and "ema" in str(key).lower()]
        if others:
            notes.append(
                f"Weight file {path.name!r} holds {others[0]!r}, averaged weights, beside {chosen!r}, the raw ones, "
                f"which were taken. For the others: torch.save(torch.load({path.name!r})[{others[0]!r}], 'ema.pth')."
            )
        state = state[chosen]
    return state, notes


def _is_table(state: dict[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in state.values()) and not any(
        isinstance(state.get(key), dict) for key in RAW
    )


def _holds(value: dict[Any, Any]) -> bool:
    """Whether it holds a table of named tensors, at most two levels down; an optimiser's state does not count."""
    inside = [value, *(item for item in value.values() if isinstance(item, dict))]
    return "param_groups" not in value and any(
        isinstance(name, str) and isinstance(item, Tensor) for table in inside for name, item in table.items()
    )


def _no_table(path: Path, keys: list[Any], tables: list[Any]) -> str:
    """The error for a checkpoint without one clear table of weights."""
    start = f"Weight file {path.name!r} cannot be read as weights: "
    if not tables:
        return f"{start}it holds no table of tensors, but {', '.join(map(repr, keys[:6])) or 'nothing'}."
    pick = "teacher" if "teacher" in tables else tables[0]
    what = " It seems to be a checkpoint of DINO, whose teacher is the usual backbone." if pick == "teacher" else ""
    return (
        f"{start}it holds several tables, {', '.join(map(repr, tables[:6]))}, and it is unclear which is meant.{what} "
        f"Save the one alone: torch.save({{k.removeprefix('module.').removeprefix('backbone.'): v for k, v in "
        f"torch.load({path.name!r})[{pick!r}].items() if 'head.' not in k}}, 'weights.pth')."
    )


# PyTorch's wrappers (torch.compile, FSDP, activation checkpointing) put these anywhere into names.
_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def without_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    """The table without what wrappers put into its names, and without a prefix that all of them share."""
    for mark in _WITHIN:
        state = {name.replace(mark, ""): value for name, value in state.items()}
    state = {name.removeprefix("module."): value for name, value in state.items()}
    while shared := next((start for start in BEFORE if all(name.startswith(start) for name in state)), None):
        state = {name.removeprefix(shared): value for name, value in state.items()}
    return dict(state)


def single_precision(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a table, floating ones in fp32."""
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def with_scalar(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The table with this entry as a scalar, also where training kept it as a vector of one number."""
    vector = state.get(name)
    return state | {name: vector.reshape(())} if vector is not None and vector.numel() == 1 else state


class UnfitError(UserError):
    """A table of tensors that is not the backbone's."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"The weights do not fit {what}: {reason}.")


def first_of(wrong: Sequence[str]) -> str:
    """The first three of what does not fit, and how many more there are."""
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{'; '.join(wrong[:3])}{more}"


def load_strict(module: nn.Module, state: dict[str, Tensor], what: str, *, assign: bool = False) -> None:
    """Load every tensor or refuse, naming the first few that do not fit; `assign` takes them over without a copy."""
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not expected" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise UnfitError(what, first_of(wrong))
    module.load_state_dict(state, assign=assign)
