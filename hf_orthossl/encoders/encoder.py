"""The interface of all encoders: map images to representations and to the outputs of the stages."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..messages import first_line, suggest
from .checkpointing import keep_statistics
from .probing import unused_parameters
from .spatial import SpatialFeatures
from .weights import Start

if TYPE_CHECKING:
    from .embedding import Embedded

logger = logging.getLogger(__name__)

# Networks with more equal blocks than this (ViTs) have four stages, one after each quarter of their depth.
MAX_STAGES = 6
ISOTROPIC_STAGES = 4


class Encoder(SpatialFeatures):
    """A backbone that maps normalized images `(B, C, H, W)` to representations `(B, D)`.

    Build it with [`load_encoder`]. [`~hf_orthossl.encoders.timm_encoder.TimmEncoder`] and
    [`~hf_orthossl.encoders.transformers_encoder.TransformersEncoder`] document how each library pools.

    Args:
        backbone (`nn.Module`): The library's module, without a classifier and without an untrained pooler.
        name (`str`): The name by which it was loaded.
        image_size (`int`): The height and width of the images that the backbone is built for, in pixels.
        mean (`Sequence[float]`): The mean of each of the C channels of the backbone's training images, on the scale
            [0, 1].
        std (`Sequence[float]`): The standard deviation of each channel of these images, on the same scale.
        interpolation (`str`): The interpolation used to resize images: `"bilinear"`, `"bicubic"`, …
        own_size (`int`, *optional*): The side for which the architecture was published, if known.
        stage_modules (`Sequence[str]`): The names of the submodules of `backbone` whose outputs are its stages, in
            order.
        channels (`int`, defaults to 3): The number of channels C of the images. If `mean` and `std` are those of
            another number, 0.5 takes their place until [`~Encoder.set_normalization`] is called.

    Attributes:
        library (`str`): `"timm"`, `"transformers"`, or `"torch"` for a network of the user's own.
        knows_normalization (`bool`): Whether `mean` and `std` are those of images; `False` for channels that the
            backbone has never seen, until [`~Encoder.set_normalization`] is called.
        num_features (`int`): D, measured with one blank image of `image_size`.
        stage_names (`list[str]`): The keys of [`~Encoder.stages`], of which the last is `"representation"`.
        pooling (`str`): The part of `AutoModel`'s output that is the representation: `"pooler_output"`, `"cls"` (the
            first token of `last_hidden_state`), `"mean"` (its mean over positions) or `"mean_channels_last"` (that of a
            map whose channels are last); `"summary"`, `"cls_token_value"`; `"feature_maps"` (the mean of the last).
        unused_parameters (`list[str]`): Parameters of the backbone on which no representation depends (a mask token,
            the layers of a head); they are frozen, because DDP would wait for their gradients.
        pretrained (`bool`, *optional*): Whether [`load_encoder`] loaded weights; `None` if it did not build the
            encoder.
        start ([`~encoders.weights.Start`], *optional*): The weights that [`load_encoder`] loaded; `None` without any.
        gradient_checkpointing (`bool`): Whether activations are recomputed in the backward pass, see
            [`~Encoder.set_gradient_checkpointing`].

    Raises:
        ValueError: The backbone fails on images of `image_size`, does not see all of them although it was published
            for another size, or its representation does not have the shape `(B, D)`.
    """

    library: str
    pooling: str = "pooler_output"
    pretrained: bool | None = None
    start: Start | None = None
    gradient_checkpointing: bool = False

    def __init__(
        self,
        backbone: nn.Module,
        *,
        name: str,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str,
        own_size: int | None = None,
        stage_modules: Sequence[str] = (),
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.name = name
        self.image_size = image_size
        self.own_size = own_size
        self.channels = channels
        self.knows_normalization = len(tuple(mean)) == len(tuple(std)) == channels
        self.mean = tuple(mean) if self.knows_normalization else (0.5,) * channels
        self.std = tuple(std) if self.knows_normalization else (0.5,) * channels
        self.interpolation = interpolation
        # A patch embedding alone is too little work to pay for reordering the images.
        self._channels_last = sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) > 1
        self._stage_modules = list(stage_modules)
        shapes = self._probe()
        self._stage_modules = [stage for stage in self._stage_modules if stage in shapes]
        self.stage_names = [*self._stage_modules, "representation"]
        self.num_features = shapes["representation"][1]
        self._tables = {key: table.detach().clone() for key, table in _non_persistent_buffers(backbone)}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the representations `(B, D)` of normalized images `(B, 3, H, W)`."""
        # Without gradients nothing is recomputed, and where the backbone passes over a layer to recompute its parts,
        # hooks of the layer would not be called.
        with self._without_checkpointing(unless=torch.is_grad_enabled()):
            return super().__call__(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return the representations `(B, D)` of normalized images `(B, C, H, W)`."""
        raise TypeError("Encoder is abstract: call load_encoder, which returns a concrete subclass")

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them, by the switch of the library.

        Representations and gradients are the same, for less memory and about a third more time. Random numbers are the
        same when activations are recomputed, and running statistics of batch norm are not updated again.

        Args:
            enabled (`bool`, defaults to `True`): Whether to recompute them.

        Raises:
            ValueError: The backbone has no such switch.
        """
        if enabled == self.gradient_checkpointing:
            return
        try:
            self._switch_checkpointing(enabled)
        except Exception as error:  # timm asserts, and transformers raises ValueError
            raise ValueError(
                f"gradient_checkpointing cannot be used with backbone {self.name!r}, which cannot recompute its "
                f"activations ({first_line(error)}): omit it, or pass --gradient_cache, which saves memory too"
            ) from error
        self.gradient_checkpointing = enabled
        if enabled:
            keep_statistics(self.backbone)

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """Return the output of each stage and the representation, from one forward pass.

        Args:
            images (`Tensor` of shape `(B, C, H, W)`): Normalized images.

        Returns:
            `dict[str, Tensor]`: With the keys of `stage_names` in order: feature maps `(B, C, H, W)` or tokens
            `(B, N, C)` by the name of the submodule, then `"representation"` `(B, D)`. Networks of more than six equal
            blocks have a stage after each quarter of their depth.
        """
        outputs: dict[str, Tensor] = {}
        hooks = [
            self.backbone.get_submodule(stage).register_forward_hook(self._store_output(outputs, stage))
            for stage in self._stage_modules
        ]
        try:
            with self._without_checkpointing():
                representation = self(images)
        finally:
            for hook in hooks:
                hook.remove()
        # In the order of the stages, because one module may be called within another.
        ordered = {stage: outputs[stage] for stage in self._stage_modules if stage in outputs}
        return {**ordered, "representation": representation}

    def embed(
        self,
        images: Any,
        *,
        layer: str = "representation",
        tokens: str | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        progress: bool = False,
        **reading: Any,
    ) -> "Tensor | Embedded":
        """Return the vectors of images, which are prepared as `orthossl evaluate` prepares them.

        Images are decoded to 8 bits, their shorter side is resized to `image_size` (bicubic), the centre is cropped,
        and they are normalized by `mean` and `std`. The encoder is in evaluation mode, and there are no gradients.

        Args:
            images (`Any`): A list of images (Pillow images, paths, encoded bytes, arrays or tensors of 8 bits or of
                floats in [0, 1], before normalization), a single one, or a batch `(N, H, W, C)` or `(N, C, H, W)` of
                them; or a data set: a folder and whatever else [`load_source`] takes, or an [`ImageSource`].
            layer (`str`, defaults to "representation"): One of `stage_names`; a layer with positions is averaged.
            tokens (`str`, *optional*): "patch" for a vector at each position, see
                [`~encoders.embedding.VectorReader`].
            batch_size (`int`, defaults to 256): Images per forward pass.
            num_workers (`int`, defaults to 0): Number of processes that decode images.
            progress (`bool`, defaults to `False`): Show a progress bar.
            reading: For a data set, further arguments of [`load_source`], such as `split`; for a list, `pixel_range`.

        Returns:
            `Tensor` of shape `(N, D)`, or `(N, h, w, D)` with tokens: float32, on the CPU, row i for image i of a list.
            For a data set an [`~encoders.embedding.Embedded`]: its `vectors`, with their `names` and `labels`, in the
            order of the data set, without the images that cannot be read, which are its `unreadable`.

        Raises:
            TypeError: `images` is none of these.
            ValueError: A layer does not exist, an image of a list cannot be read, or images have other channels.
            TooManyUnreadable: More images of a data set cannot be read than `max_unreadable` allows.

        Example:
            >>> vectors = load_encoder("resnet18", pretrained=True).embed(["cat.jpg", "dog.jpg"])
            >>> torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0)
        """
        # Imported here because reading images needs more libraries than building a network.
        from .embedding import embed

        settings: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
        return embed(self, images, layer=layer, tokens=tokens, **settings, **reading)

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and the standard deviation of each channel, on the scale [0, 1].

        Raises:
            ValueError: There are not as many as channels, or a standard deviation is not positive.
        """
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
        if not len(mean) == len(std) == self.channels or min(std) <= 0:
            raise ValueError(
                f"mean has {len(mean)} numbers and std {len(std)}: backbone {self.name!r} takes images of "
                f"{self.channels} channels, pass as many numbers of each, those of std positive"
            )
        self.mean, self.std, self.knows_normalization = mean, std, True

    def restore_buffers(self) -> None:
        """Restore the tables that are computed at construction and not saved (relative positions, rotary angles).

        `PreTrainedModel.from_pretrained` of transformers overwrites every such buffer with uninitialized memory and
        then calls `initialize_weights`. A model that contains encoders overrides that method and calls this one for
        each of them.
        """
        for key, buffer in _non_persistent_buffers(self.backbone):
            buffer.copy_(self._tables[key])

    def published_name(self, name: str) -> str:
        """Return the name that a parameter has in the weights that [`~encoders.export.export_encoder`] writes.

        Spectra, penalties and cards call weights by these names.

        Args:
            name (`str`): Its qualified name in this module, `backbone.…`.
        """
        return name.removeprefix("backbone.")

    def extra_repr(self) -> str:
        """Return the name, library and sizes, for `print`."""
        channels = "" if self.channels == 3 else f"channels={self.channels}, "
        return (
            f"{self.name!r}, library={self.library}, {channels}image_size={self.image_size}, "
            f"num_features={self.num_features}"
        )

    def _reorder(self, images: Tensor) -> Tensor:
        """Return the images in channels-last memory order for convolutions on CUDA, else contiguous.

        They stay contiguous on the CPU, where torch's batch norm sums channels-last images less exactly (CONTRIBUTING
        has the measurements) and oneDNN writes out of bounds in the gradient of some strided 1×1 convolutions
        (https://github.com/uxlfoundation/oneDNN/issues/6035).
        """
        channels_last = self._channels_last and images.is_cuda
        return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def _switch_checkpointing(self, enabled: bool) -> None:
        """Switch the library's gradient checkpointing on or off; any error means that the backbone has none."""
        raise ValueError(f"{self.library} has no switch for it")

    @contextlib.contextmanager
    def _without_checkpointing(self, unless: bool = False) -> Iterator[None]:
        """Keep activations in forward passes within this context, whatever is set, unless `unless`."""
        paused = self.gradient_checkpointing and not unless
        if paused:
            self._switch_checkpointing(False)
            self.gradient_checkpointing = False
        try:
            yield
        finally:
            if paused:
                self._switch_checkpointing(True)
                self.gradient_checkpointing = True

    def _as_feature_map(self, output: Tensor, stage: str) -> Tensor:
        """Return a stage's output with its channels in the second dimension, if it is a feature map."""
        return output

    def _choose_branch(self, outputs: Sequence[Any], stage: str) -> Any:
        """Return the output of a stage that returns several."""
        return outputs[0] if outputs else None

    def _store_output(self, outputs: dict[str, Tensor], stage: str) -> Callable[..., None]:
        def store(_module: nn.Module, _inputs: tuple, output: Tensor | Sequence[Tensor]) -> None:
            output = self._choose_branch(output, stage) if isinstance(output, (tuple, list)) else output
            if isinstance(output, Tensor):
                outputs[stage] = self._as_feature_map(output, stage)

        return store

    def _probe(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all stages for one blank image of `image_size`."""
        weights = next(self.backbone.parameters())
        size = (1, self.channels, self.image_size, self.image_size)
        self.backbone.eval()  # running statistics must not change, and one image is a whole batch
        try:
            # Neither inference mode nor fake tensors, because models that cache tables would keep such tensors.
            with torch.enable_grad():
                stages = self.stages(torch.zeros(size, dtype=weights.dtype, device=weights.device))
        except Exception as error:  # each library raises its own
            remedy = "pass another backbone, or other arguments of this one (backbone_config)"
            if self.own_size not in (None, self.image_size):
                remedy = f"it was published for images of {self.own_size} px, pass image_size={self.own_size}"
            raise ValueError(
                f"backbone {self.name!r} fails on images of {self.image_size} px ({first_line(error)}): {remedy}"
            ) from error
        self._check_border(stages["representation"], torch.zeros(size, dtype=weights.dtype, device=weights.device))
        self.unused_parameters = unused_parameters(self.backbone, stages["representation"])
        for key in self.unused_parameters:
            self.backbone.get_parameter(key).requires_grad_(False)
        self.backbone.train()
        representation = tuple(stages["representation"].shape)
        if len(representation) != 2:
            raise ValueError(
                f"backbone {self.name!r} returns a representation of shape {representation} instead of (B, D): "
                "choose another global_pool or backbone"
            )
        return {stage: tuple(output.shape) for stage, output in stages.items()}

    def _check_border(self, blank: Tensor, images: Tensor) -> None:
        """Refuse a size of which the backbone never sees the last rows and columns, and warn of one published so.

        Args:
            blank (`Tensor` of shape `(1, D)`): The representation of a black image.
            images (`Tensor` of shape `(1, C, H, W)`): That image.
        """
        channels, side = images.shape[1:3]
        first = next(
            (m for m in self.backbone.modules() if isinstance(m, nn.Conv2d) and m.in_channels == channels), None
        )
        # Patches only: that strides of overlapping kernels may end a pixel early is usual in convolutional networks.
        if blank.ndim != 2 or first is None or first.kernel_size != first.stride or first.padding != (0, 0):
            return
        stride = first.stride[0]
        border = side % stride
        if not border:
            return
        images[..., -border:, :] = images[..., -border:] = 1
        with torch.no_grad():
            if not torch.equal(self(images), blank):  # some networks fill the image up first
                return
        sizes = f"{side - border} or {side - border + stride}"
        what = (
            f"backbone {self.name!r} reads images of {side} px in patches of {stride} px and never sees the last "
            f"{border} px at the right and at the bottom"
        )
        if side != self.own_size:
            raise ValueError(f"{what}: pass image_size={sizes}")
        logger.warning("%s; it was published so, and image_size=%s sees all", what, sizes)


def choose_stages(modules: Sequence[str]) -> list[str]:
    """Return all modules or, for a network of many equal blocks, the last module of each quarter of its depth."""
    if len(modules) <= MAX_STAGES:
        return list(modules)
    return [modules[round(len(modules) * (i + 1) / ISOTROPIC_STAGES) - 1] for i in range(ISOTROPIC_STAGES)]


def square_side(name: str, size: int | Sequence[int]) -> int:
    """Return the side of a square image size.

    Raises:
        ValueError: The size is not square.
    """
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:] if len(size) > 1 else (*size, *size)
    if height != width:
        raise ValueError(f"backbone {name!r} is built for images of {height}×{width}: pass image_size for square ones")
    return height


def suggest_architecture(name: str, known: Iterable[str]) -> str:
    """Return the nearest timm names, as the end of an error line."""
    return suggest(name, known, most=3, otherwise="list the names of timm with timm.list_models()")


def _non_persistent_buffers(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in backbone.named_modules():
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers.get(key)
            if buffer is not None:
                yield f"{prefix}.{key}", buffer
