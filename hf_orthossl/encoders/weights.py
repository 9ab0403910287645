"""The weights of a folder of someone else: found, checked by their headers, read, and compared with the network."""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..untrusted import Refused, Stored, inside, is_file_name, read_object, read_tensors

WEIGHTS = "model.safetensors"
SHARDED_WEIGHTS = "model.safetensors.index.json"
MAX_SHARDS = 1000
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class Weights:
    """Tensors of one or several safetensors files, known by their headers.

    Args:
        folder (`Path`): The folder of the files.
        files (`dict[str, dict[str, Stored]]`): Name of each file → the tensors to read from it.
    """

    folder: Path
    files: dict[str, dict[str, Stored]]

    @property
    def tensors(self) -> dict[str, Stored]:
        """Return all tensors by name."""
        return {name: stored for tensors in self.files.values() for name, stored in tensors.items()}

    @property
    def numbers(self) -> int:
        """Return how many numbers the tensors hold."""
        return sum(prod(stored.shape) for stored in self.tensors.values())

    @property
    def path(self) -> Path:
        """Return the file, if it is a single one; its name ends in .safetensors, by which timm knows what it is."""
        (name,) = self.files
        return self.folder / name

    def read(self) -> dict[str, Tensor]:
        """Read the tensors."""
        read: dict[str, Tensor] = {}
        for file, tensors in self.files.items():
            with safe_open(inside(self.folder, self.folder / file), "pt") as content:
                read |= {name: content.get_tensor(name) for name in tensors}
        return read


@dataclass(frozen=True)
class Start:
    """The weights that an encoder was loaded with.

    Args:
        name (`str`): The name by which the user gave them.
        weights ([`Weights`]): Their files.
        repository (`str`, *optional*): The Hub repository that they come from; `None` for a local folder.
    """

    name: str
    weights: Weights
    repository: str | None = None

    @property
    def revision(self) -> str | None:
        """Return the commit of the Hub repository; `None` for a local folder."""
        folder = self.weights.folder
        return folder.name if self.repository is not None and folder.parent.name == "snapshots" else None

    def sha256(self) -> str:
        """Return the SHA-256 of the file, as the Hub shows it, or that of the digests of several files."""
        digests = []
        for file in sorted(self.weights.files):
            with (self.weights.folder / file).open("rb") as content:
                digests.append(hashlib.file_digest(content, "sha256"))
        return (digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(d.digest() for d in digests))).hexdigest()

    def describe(self) -> str:
        """Return the weights in words that may be published, as in "owner/name, revision 1a2b…, sha256 3c4d…"."""
        local = [part for part in self.name.replace("\\", "/").rstrip("/").split("/") if part != "encoder"]
        revision = "" if self.revision is None else f", revision {self.revision[:12]}"
        return f"{self.repository or (local or ['encoder'])[-1]}{revision}, sha256 {self.sha256()[:16]}"


def find_weights(name: str, folder: Path, shards: bool = False) -> Weights:
    """Return the safetensors weights of a folder, checked by their headers.

    Args:
        name (`str`): The name that the user gave, for errors.
        folder (`Path`): The folder.
        shards (`bool`, defaults to `False`): Whether the weights may be in several files that an index lists.

    Raises:
        ValueError: There are no such weights, or a file is not what its name says.
        OSError: A file cannot be read.
    """
    try:
        return Weights(folder, {WEIGHTS: read_tensors(folder, WEIGHTS)})
    except FileNotFoundError:
        pass
    try:
        index = read_object(folder, SHARDED_WEIGHTS)
    except FileNotFoundError:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        content = f"only pickled weights ({pickles[0]}), which are never read" if pickles else f"no {WEIGHTS}"
        raise Refused(
            f"backbone {name!r} has {content}: convert its weights to {WEIGHTS}, or pass pretrained=False"
        ) from None
    if not shards:
        raise Refused(
            f"backbone {name!r} has weights in several files, which timm does not read: join them in {WEIGHTS}"
        )
    return Weights(folder, _shards(folder, index))


def compare(
    name: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    misshaped: Collection[str] = (),
) -> None:
    """Refuse weights that are not exactly those of the network.

    Args:
        name (`str`): The name that the user gave, for errors.
        missing (iterable of `str`): Tensors that the network has and the weights lack. Mask tokens do not count:
            they are used in training by masks only.
        unexpected (iterable of `str`): Tensors of the weights that the network does not have.
        misshaped (collection of `str`, *optional*): Tensors whose shapes differ, with their shapes.

    Raises:
        ValueError: There are any.
    """
    lacking = sorted(key for key in missing if not key.endswith("mask_token"))
    found = {"lack": lacking, "have": sorted(unexpected), "shape": sorted(misshaped)}
    said = {
        "lack": "its weights lack {} of its tensors, among them {!r}",
        "have": "its weights hold {} tensors that it does not have, among them {!r}",
        "shape": "{} of its weights have another shape than its config.json gives them, among them {}",
    }
    for kind, keys in found.items():
        if keys:
            raise Refused(
                f"backbone {name!r}: {said[kind].format(len(keys), keys[0])}, so config.json and weights belong to "
                "different networks: pass the folder of one network, or pretrained=False"
            )


def require_finite(name: str, backbone: nn.Module) -> None:
    """Refuse weights that are not finite numbers, as a diverged run leaves them.

    Raises:
        ValueError: A parameter or buffer holds infinity or NaN, other than a single number that bounds something.
    """
    parameters = dict(backbone.named_parameters())
    with torch.no_grad():
        broken = [
            key
            for key, tensor in backbone.state_dict().items()
            # The sum of finite numbers may overflow, and is the faster test.
            if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all()
            # Gemma's layers clip their inputs to bounds, which may be infinite.
            if key in parameters or tensor.ndim or not tensor.isinf()
        ]
    if broken:
        raise Refused(
            f"backbone {name!r} has {len(broken)} weights that are not finite, among them {broken[0]!r}: its training "
            "diverged or its file is damaged, take an earlier checkpoint"
        )


def _shards(folder: Path, index: dict) -> dict[str, dict[str, Stored]]:
    places = index.get("weight_map")
    path = folder / SHARDED_WEIGHTS
    if not isinstance(places, dict) or not places:
        raise Refused(f"{path} has no weight_map, an object of tensors and files: download it again")
    files: dict[str, dict[str, Stored]] = {}
    for file in dict.fromkeys(value if isinstance(value, str) else repr(value) for value in places.values()):
        if not is_file_name(file) or not file.endswith(".safetensors") or len(files) == MAX_SHARDS:
            raise Refused(f"{path} names {file[:80]!r}, which is no safetensors file of this folder: download it again")
        try:
            held = read_tensors(folder, file)
        except FileNotFoundError:
            raise Refused(f"{path} names {file!r}, which is missing: download it too") from None
        wanted = [tensor for tensor, place in places.items() if place == file]
        absent = [tensor for tensor in wanted if tensor not in held]
        if absent:
            raise Refused(
                f"{folder / file} lacks {absent[0][:80]!r}, which {SHARDED_WEIGHTS} places there: download both"
            )
        files[file] = {tensor: held[tensor] for tensor in wanted}
    return files
