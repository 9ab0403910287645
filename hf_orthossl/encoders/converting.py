"""Take the encoder out of a checkpoint of another project: `.pth`, `.pt`, `.bin`, Lightning's `.ckpt`, safetensors.

Code in a pickle is never run: only tensors and plain values are read. Which tensors are the encoder's is decided by the
network, not by a list of projects: a prefix fits if every tensor of the network is there in its shape.
"""

import io
import pickle
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from torch import Tensor

from ..messages import first_line, readable_size, suggest
from ..untrusted import Refused, open_file, read_tensors
from .budget import deadline
from .encoder import Encoder
from .weights import require_finite

SECONDS = 600.0
# Depth to which mappings within a checkpoint are searched for weights.
_DEPTH = 4
# Of several sets of weights that fit, the first is taken: teachers and averages are what their projects evaluate, and
# momentum encoders of contrastive methods are not.
_PREFERRED = (("teacher", "ema"), (), ("student",), ("momentum", "encoder_k", "target"))


@dataclass(frozen=True)
class Fit:
    """A set of weights in a checkpoint that is exactly a network's.

    Args:
        key (`str`): Where its mapping is in the checkpoint, such as "state_dict"; empty for the checkpoint itself.
        prefix (`str`): What stands before the network's names, such as "module.backbone.".
        names (`dict[str, str]`): Name in the network → name in the mapping.
    """

    key: str
    prefix: str
    names: dict[str, str] = field(repr=False)

    def describe(self) -> str:
        """Return where the weights are, as the options that choose them."""
        return " ".join([*([f"--key {self.key}"] if self.key else []), f"--prefix {self.prefix!r}"])


@dataclass(frozen=True)
class Conversion:
    """Name what was taken of a checkpoint.

    Args:
        taken ([`Fit`]): The weights that the encoder has now.
        others (`list[Fit]`): Others that fit as well.
        left_out (`dict[str, int]`): Parts of the same mapping that were not taken, such as heads → their tensors.
    """

    taken: Fit
    others: list[Fit]
    left_out: dict[str, int]


def load_checkpoint(
    encoder: Encoder, checkpoint: Path, *, key: str | None = None, prefix: str | None = None
) -> Conversion:
    """Load the weights of a checkpoint into an encoder.

    Args:
        encoder ([`Encoder`]): The encoder of the checkpoint's network, with any weights.
        checkpoint (`Path`): A file of `torch.save` or safetensors.
        key (`str`, *optional*): The mapping to take, as in "teacher" or "state_dict"; by default the one that fits.
        prefix (`str`, *optional*): What stands before the network's names; by default what fits.

    Raises:
        Refused: The file is none of these, holds code, or has no weights that are exactly the network's.
        OSError: The file cannot be read.
    """
    found = dict(_mappings(read_checkpoint(checkpoint)))
    if not found:
        raise Refused(f"{checkpoint} holds no tensors by name: pass a file of a state dict, or of one within a mapping")
    if key is not None and key not in found:
        raise Refused(f"key is {key!r}, which is no mapping of tensors in {checkpoint}: {suggest(key, found)}")
    chosen = found if key is None else {key: found[key]}
    fits = [fit for place, tensors in chosen.items() for fit in _fits(encoder, place, tensors, prefix)]
    if not fits:
        raise Refused(_misfit(encoder, checkpoint, chosen, prefix))
    fits.sort(key=lambda fit: (_rank(fit), fit.key.count("."), len(fit.prefix)))
    taken = fits[0]
    tensors = found[taken.key]
    left = [name for name in tensors if name not in set(taken.names.values())]
    _refuse_parts(encoder, checkpoint, taken, left)
    state = encoder.backbone.state_dict()
    with torch.no_grad():
        for name, stored in taken.names.items():
            state[name].copy_(tensors[stored])
    require_finite(str(checkpoint), encoder.backbone)
    parts = Counter(
        name.removeprefix(taken.prefix).partition(".")[0]
        if name.startswith(taken.prefix)
        else ".".join(name.split(".")[:2])
        for name in left
    )
    return Conversion(taken, fits[1:], dict(parts))


def read_checkpoint(path: Path) -> Any:
    """Return the tensors and plain values of a file, without running code in it.

    Raises:
        Refused: The file holds code, is compressed, too large for the memory, or none that torch or safetensors wrote.
        OSError: The file cannot be read.
    """
    if path.is_dir():
        raise Refused(f"{path} is a folder: pass the file of the weights in it; an encoder folder needs no conversion")
    with open_file(path) as file:
        start, size = file.read(9), file.seek(0, io.SEEK_END)
        free = psutil.virtual_memory().available
        if size > free:
            raise Refused(
                f"{path} holds {readable_size(size)} and {readable_size(free)} of memory are free: use a larger machine"
            )
        if start[8:9] == b"{":
            read_tensors(path.parent, path.name)
            with safe_open(path, "pt") as content:
                return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  # no mapping
        if start.startswith(b"PK"):
            file.seek(0)
            _refuse_compressed(path, file, size)
        file.seek(0)
        with deadline(f"{path} was not read within {SECONDS:.0f} s: save its weights alone", SECONDS):
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise Refused(_code(path, error)) from error
            except Exception as error:  # torch raises many classes for files that it did not write
                raise Refused(
                    f"{path} is neither a file of torch.save nor of safetensors, or is damaged "
                    f"({first_line(error)[:150]}): download it again"
                ) from error


def _code(path: Path, error: Exception) -> str:
    """Return the line for a pickle that needs more than tensors and plain values."""
    text = " ".join(str(error).split())
    _, said, rest = text.partition("Unsupported global: GLOBAL ")
    what = f" ({rest.split()[0]})" if said and rest else ""
    return (
        f"{path} holds code besides its weights{what}, which is never run: where you trust it, save the weights "
        "alone, as in torch.save(torch.load(path, weights_only=False)['state_dict'], 'weights.pt')"
    )


def _refuse_compressed(path: Path, file: Any, size: int) -> None:
    """Refuse an archive whose content is larger than the file; torch.save does not compress."""
    try:
        with zipfile.ZipFile(file) as archive:
            whole = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise Refused(f"{path} is a damaged archive ({first_line(error)}): download it again") from error
    if whole > size:
        raise Refused(
            f"{path} is a compressed archive, which torch.save does not write: unpack it and pass the file in it"
        )


def _mappings(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping of tensors in a checkpoint with its place."""
    if not isinstance(value, Mapping):
        return
    tensors = {name: one for name, one in value.items() if isinstance(name, str) and isinstance(one, Tensor)}
    if tensors:
        yield key, tensors
    if depth < _DEPTH:
        for name, one in value.items():
            if isinstance(name, str):
                yield from _mappings(one, f"{key}.{name}" if key else name, depth + 1)


def _wanted(encoder: Encoder) -> list[dict[str, str]]:
    """Return what the network's tensors may be called: as it does, or by the places of its parts.

    `nn.Sequential(*network.children())`, as LightlySSL's examples take a ResNet apart, numbers the parts.
    """
    state = encoder.backbone.state_dict()
    places = {name: str(place) for place, (name, _) in enumerate(encoder.backbone.named_children())}
    numbered = {}
    for name in state:
        first, dot, rest = name.partition(".")
        numbered[name] = f"{places.get(first, first)}{dot}{rest}"
    return [{name: name for name in state}, numbered]


def _fits(encoder: Encoder, key: str, tensors: dict[str, Tensor], prefix: str | None) -> Iterator[Fit]:
    state = encoder.backbone.state_dict()
    for aliases in _wanted(encoder):
        for before in _prefixes(tensors, aliases) if prefix is None else [prefix]:
            held = {name: before + alias for name, alias in aliases.items() if before + alias in tensors}
            complete = all(name in held or _is_optional(name) for name in state)
            if complete and all(tensors[stored].shape == state[name].shape for name, stored in held.items()):
                yield Fit(key, before, held)
                break


def _prefixes(tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> list[str]:
    """Return what may stand before the names: whatever does before one of them, the most frequent first."""
    ends = set(aliases.values())
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for first in range(len(parts)):
            if ".".join(parts[first:]) in ends:
                counts["".join(f"{part}." for part in parts[:first])] += 1
    return [prefix for prefix, _ in counts.most_common()]


def _is_optional(name: str) -> bool:
    """Return whether a checkpoint may lack a tensor: old ones do not count batches, and masks serve training only."""
    return name.endswith(("num_batches_tracked", "mask_token"))


def _rank(fit: Fit) -> int:
    where = f"{fit.key}.{fit.prefix}"
    named = [place for place, words in enumerate(_PREFERRED) if any(word in where for word in words)]
    return named[0] if named else _PREFERRED.index(())


def _refuse_parts(encoder: Encoder, checkpoint: Path, taken: Fit, left: list[str]) -> None:
    """Refuse a checkpoint that has more of a part of the network than the network does, such as further blocks."""
    backbone = encoder.backbone
    own = {name.partition(".")[0] for name, _ in backbone.named_parameters() if "." in name}
    known = {name for name, _ in backbone.named_buffers()}
    inner = [name.removeprefix(taken.prefix) for name in left if name.startswith(taken.prefix)]
    more = [name for name in inner if "." in name and name.partition(".")[0] in own and name not in known]
    if more:
        raise Refused(
            f"{checkpoint} holds {len(more)} tensors of parts of {encoder.name!r} that it does not have, among them "
            f"{more[0]!r}: pass the --backbone that the checkpoint was trained with"
        )


def _misfit(encoder: Encoder, checkpoint: Path, found: dict[str, dict[str, Tensor]], prefix: str | None) -> str:
    """Return the line for a checkpoint without weights that are the network's: what the nearest ones lack."""
    state, best = encoder.backbone.state_dict(), None
    for key, tensors in found.items():
        for aliases in _wanted(encoder):
            for before in (_prefixes(tensors, aliases) if prefix is None else [prefix])[:20]:
                missing = [n for n, a in aliases.items() if before + a not in tensors and not _is_optional(n)]
                shapes = [
                    f"{n!r} is {[*tensors[before + a].shape]} instead of {[*state[n].shape]}"
                    for n, a in aliases.items()
                    if before + a in tensors and tensors[before + a].shape != state[n].shape
                ]
                if best is None or len(missing) + len(shapes) < best[0]:
                    best = len(missing) + len(shapes), Fit(key, before, {}), missing, shapes
    if best is None or len(best[2]) == len(state):
        names = [*next(iter(found.values()))]
        given = "" if prefix is None else f" after --prefix {prefix!r}"
        return (
            f"{checkpoint} has no tensor of {encoder.name!r}{given}; its first is {names[0][:80]!r}: pass the "
            "--backbone that it was trained with"
        )
    _, nearest, missing, shapes = best
    faults = [f"{len(missing)} are missing, among them {missing[0]!r}"] if missing else []
    faults += [f"{len(shapes)} have another shape: {shapes[0]}"] if shapes else []
    size = ", or its --image_size" if any("pos_embed" in text or "position" in text for text in shapes) else ""
    return (
        f"{checkpoint} does not fit {encoder.name!r}: of its {len(state)} tensors ({nearest.describe()}), "
        f"{' and '.join(faults)}; pass the --backbone that it was trained with{size}"
    )
