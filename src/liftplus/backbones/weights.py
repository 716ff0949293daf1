"""Weight files: where they lie, how they are fetched, read and identified. Code in a file is never unpickled."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from liftplus.errors import UserError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def weight_folder() -> Path:
    """Where weight files may be put by hand: $LIFTPLUS_WEIGHTS, else ~/.cache/liftplus/weights."""
    default = Path.home() / ".cache" / "liftplus" / "weights"
    return Path(os.environ.get("LIFTPLUS_WEIGHTS") or default)


def put_by_hand(name: str) -> Path:
    """The place of a backbone's weight file in that folder, without the suffix; slashes become two underscores."""
    return weight_folder() / name.replace("/", "__")


def find(name: str, given: str | None, hub: str, files: Sequence[str], *, fetch: bool = True) -> Path:
    """The weight file of a backbone: as given, as put by hand, as cached, or fetched from the model hub.

    Args:
        name: the backbone's name.
        given: a path that the user gave, if any.
        hub: repository on the model hub, "owner/name".
        files: names that the file may have there, in order of preference.
        fetch: whether the hub is asked; without, a file that is not on this machine is refused.
    """
    if given is not None:
        return existing(Path(given).expanduser())
    by_hand = put_by_hand(name)
    for suffix in SUFFIXES:  # not with_suffix: the tag behind a dot would be taken for one
        if (found := by_hand.with_name(by_hand.name + suffix)).is_file():
            return found
    from huggingface_hub import hf_hub_download

    problem: Exception | None = None
    for file in files:
        try:
            return Path(hf_hub_download(hub, file, local_files_only=not fetch))
        except Exception as error:  # the hub's client raises many kinds: no network, no such file, no access
            problem = problem or error
    place = by_hand.with_name(by_hand.name + Path(files[0]).suffix)
    reason = f"the model hub cannot be reached ({type(problem).__name__})" if fetch else "the model hub was not asked"
    raise UserError(
        f"The weights of {name!r} are not on this machine and {reason}. Fetch {files[0]!r} from "
        f"https://huggingface.co/{hub} and put it at {str(place)!r}, or give its path as backbone.weights=PATH. "
        "The bundled backbone mini_clip needs no download."
    ) from problem


def existing(path: Path) -> Path:
    """The path of a file that is there; any other is refused."""
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
    """What a weight file holds by name: .safetensors, OpenAI's TorchScript archive, .pt, .pth or .bin.

    Training wrappers ("state_dict", "model", "module.") are removed. Anything unreadable ends in a `UserError`.
    """
    existing(path)
    try:
        with warnings.catch_warnings():  # torch warns of its own plans for TorchScript and pickles
            warnings.simplefilter("ignore")
            state = _read_any(path)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged, or holds code or objects besides tensors, which are never loaded"
        raise UserError(
            f"Weight file {str(path)!r} cannot be read as weights ({reason}). Allowed are .safetensors, PyTorch's "
            ".pt, .pth or .bin, and OpenAI's CLIP archives; fetch the file again if it is one."
        ) from error
    return {name.removeprefix("module."): value for name, value in state.items()}


def _read_any(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist())
        if scripted:
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("it holds no table of tensors")
    return state


def single_precision(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a table, floating ones in fp32."""
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def with_scalar(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The table with this number as a scalar, where a training kept it as a vector of one."""
    vector = state.get(name)
    return state | {name: vector.reshape(())} if vector is not None and vector.numel() == 1 else state


def load_strict(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load every tensor or refuse, naming the first few that do not fit."""
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not expected" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"The weights do not fit {what}: {'; '.join(wrong[:3])}{more}. Give the file that belongs to this backbone."
        )
    module.load_state_dict(state)
