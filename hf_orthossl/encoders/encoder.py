"""The one interface behind which every backbone is used."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

# Networks of equal blocks (ViTs) are read at a quarter, a half, three quarters and the whole of their depth.
MAX_STAGES = 6
ISOTROPIC_STAGES = 4


class Encoder(nn.Module):
    """
    A backbone that maps normalised images `(B, 3, H, W)` to representations `(B, D)`.

    Made by [`load_encoder`]; [`~hf_orthossl.encoders.timm_encoder.TimmEncoder`] and
    [`~hf_orthossl.encoders.transformers_encoder.TransformersEncoder`] say how each library pools.

    Args:
        backbone (`nn.Module`):
            The library's own module, without classifier and without untrained pooler.
        name (`str`):
            What it was loaded by.
        image_size (`int`):
            Height and width, in pixels, that the backbone is built for.
        mean, std (sequences of three `float`):
            Of the images, on the [0, 1] scale, that the backbone expects to be normalised by.
        interpolation (`str`):
            How images are resized: `"bilinear"`, `"bicubic"`, …
        stage_modules (sequence of `str`):
            Names of the submodules of `backbone` whose outputs are its stages, in order.

    Attributes:
        library (`str`): `"timm"` or `"transformers"`.
        num_features (`int`): D, as found with one blank image of `image_size`.
        stage_names (`list[str]`): Keys of [`~Encoder.stages`], the last of which is `"representation"`.
        pooling (`str`): What `AutoModel` calls the representation: `"pooler_output"`, `"cls"` (the first
            token of `last_hidden_state`) or `"mean"` (its mean over positions).
        pretrained (`bool`, *optional*): Whether [`load_encoder`] loaded weights; `None` if it did not build it.

    Raises:
        ValueError: If the backbone cannot take images of `image_size`, or gives no `(B, D)` representation.
    """

    library: str
    pooling: str = "pooler_output"
    pretrained: bool | None = None

    def __init__(
        self,
        backbone: nn.Module,
        *,
        name: str,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str,
        stage_modules: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.name = name
        self.image_size = image_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.interpolation = interpolation
        # A patch embedding alone is not worth it.
        self._channels_last = sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) > 1
        self._stage_modules = list(stage_modules)
        shapes = self._probe()
        self._stage_modules = [stage for stage in self._stage_modules if stage in shapes]
        self.stage_names = [*self._stage_modules, "representation"]
        self.num_features = shapes["representation"][1]
        self._tables = {key: table.detach().clone() for key, table in _non_persistent_buffers(backbone)}

    def forward(self, images: Tensor) -> Tensor:
        """Representations `(B, D)` of normalised images `(B, 3, H, W)`."""
        raise TypeError("Encoder is abstract: call load_encoder, which chooses the library's own subclass")

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """
        Each stage's raw output, and the representation, from one forward pass over normalised images `(B, 3,
        H, W)`.

        Returns:
            `dict[str, Tensor]` with the keys of `stage_names` in order: feature maps `(B, C, H, W)` or tokens
            `(B, N, C)` by the name of the submodule, then `"representation"` `(B, D)`. Networks of more than
            six equal blocks are read after every quarter of their depth.
        """
        outputs: dict[str, Tensor] = {}
        hooks = [
            self.backbone.get_submodule(stage).register_forward_hook(self._keep_output(outputs, stage))
            for stage in self._stage_modules
        ]
        try:
            representation = self(images)
        finally:
            for hook in hooks:
                hook.remove()
        # In the order of the stages: a module may be called in another.
        ordered = {stage: outputs[stage] for stage in self._stage_modules if stage in outputs}
        return {**ordered, "representation": representation}

    def restore_buffers(self) -> None:
        """
        Put back the tables that are computed at construction and not saved (relative positions, rotary
        angles).

        `PreTrainedModel.from_pretrained` of transformers overwrites every such buffer with uninitialised
        memory, then calls `initialize_weights`: a model that holds encoders overrides it, and calls this for
        each of them.
        """
        for key, buffer in _non_persistent_buffers(self.backbone):
            buffer.copy_(self._tables[key])

    def extra_repr(self) -> str:
        return f"{self.name!r}, library={self.library}, image_size={self.image_size}, num_features={self.num_features}"

    def _laid_out(self, images: Tensor) -> Tensor:
        """The same images, channels-last for convolutions on CUDA.

        Not on the CPU, where torch's batch norm over them sums less exactly (CONTRIBUTING has numbers) and oneDNN
        writes beyond its memory in the gradient of some strided 1×1 convolutions
        (https://github.com/uxlfoundation/oneDNN/issues/6035).
        """
        channels_last = self._channels_last and images.is_cuda
        return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def _as_feature_map(self, output: Tensor) -> Tensor:
        return output

    def _keep_output(self, outputs: dict[str, Tensor], stage: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: tuple, output: Tensor | Sequence[Tensor]) -> None:
            output = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(output, Tensor):
                outputs[stage] = self._as_feature_map(output)

        return keep

    def _probe(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all stages for one blank image of `image_size`."""
        weights = next(self.backbone.parameters())
        size = (1, 3, self.image_size, self.image_size)
        self.backbone.eval()  # no running statistics are touched and one image is a batch
        try:
            # Neither inference mode nor fake tensors: models that cache tables would keep theirs.
            with torch.no_grad():
                stages = self.stages(torch.zeros(size, dtype=weights.dtype, device=weights.device))
        except Exception as error:  # whatever a foreign network raises means the same to the caller
            raise ValueError(
                f"backbone {self.name!r} cannot encode images of image_size={self.image_size} "
                f"({one_line(error)}); choose another image_size or backbone"
            ) from error
        self.backbone.train()
        representation = tuple(stages["representation"].shape)
        if len(representation) != 2:
            raise ValueError(
                f"backbone {self.name!r} gives a representation of shape {representation} instead of (B, D); "
                "choose another global_pool or backbone"
            )
        return {stage: tuple(output.shape) for stage, output in stages.items()}


def choose_stages(modules: Sequence[str]) -> list[str]:
    """All of `modules`, or, of a network of many equal blocks, the last of each quarter of its depth."""
    if len(modules) <= MAX_STAGES:
        return list(modules)
    return [modules[round(len(modules) * (i + 1) / ISOTROPIC_STAGES) - 1] for i in range(ISOTROPIC_STAGES)]


def square_side(name: str, size: int | Sequence[int]) -> int:
    """The one number of a square size; raises `ValueError` for a rectangle."""
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if height != width:
        raise ValueError(f"backbone {name!r} is built for images of {height}×{width}: pass image_size for square ones")
    return height


def one_line(error: Exception) -> str:
    """The first line that an exception says, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean a, b?"` with the nearest of the known names, or nothing if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(nearest)}?" if nearest else ""


def _non_persistent_buffers(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in backbone.named_modules():
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers.get(key)
            if buffer is not None:
                yield f"{prefix}.{key}", buffer
