"""Encoders whose backbone is a timm model."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import timm
from timm.layers import set_reentrant_ckpt
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..untrusted import Refused
from .budget import Unfilled, building, plan
from .description import require_normalization
from .encoder import Encoder, choose_stages, square_side
from .patch_tokens import embedding_layer, gather_tokens
from .weights import Weights, compare, require_finite

# Prefixes in timm's `feature_info` that its models do not have → the lists of modules that are meant.
RENAMED = {"block": ("blocks", "stages"), "stage": ("incre_modules",)}


class TimmEncoder(Encoder):
    """An [`Encoder`] around a timm model without classifier; its representation is the model's pooled output."""

    library = "timm"

    def forward(self, images: Tensor) -> Tensor:
        """Return the representations `(B, D)` of normalized images `(B, C, H, W)`."""
        return self.backbone(self._reorder(images))

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the representations `(B, num_features)` of tokens `(B, prefix + N, D)`."""
        return cast(Any, self.backbone).forward_head(tokens, pre_logits=True)

    def patch_embedding(self) -> nn.Module:
        """Return the layer that embeds patches."""
        return embedding_layer(self.backbone, "patch_embed")

    def last_output(self, images: Tensor) -> Tensor:
        """Return the last output before pooling: a map with its channels first, or tokens."""
        if not hasattr(self.backbone, "forward_features"):
            return super().last_output(images)
        return self._channels_first(self._tokens(images), self.num_features)

    def _tokens(self, images: Tensor) -> Tensor:
        return cast(Any, self.backbone).forward_features(self._reorder(images))

    @contextlib.contextmanager
    def _keeping(self, keep: Tensor, patches: int) -> Iterator[None]:
        backbone: Any = self.backbone
        if not hasattr(backbone, "patch_drop"):
            raise ValueError(f"timm's {type(backbone).__name__} always processes all patches")
        dropout = backbone.patch_drop  # timm's own place for leaving out patches at random; Eva has `None` there
        with_indices = not isinstance(backbone, VisionTransformer)
        backbone.patch_drop = _KeepPatches(keep, backbone.num_prefix_tokens, with_indices)
        try:
            yield
        finally:
            backbone.patch_drop = dropout

    def _switch_checkpointing(self, enabled: bool) -> None:
        if not hasattr(self.backbone, "set_grad_checkpointing"):
            super()._switch_checkpointing(enabled)
        # The other form gives wrong gradients where the input of a block needs none.
        set_reentrant_ckpt(False)
        cast(Any, self.backbone).set_grad_checkpointing(enabled)

    def _as_feature_map(self, output: Tensor, stage: str) -> Tensor:
        return self._channels_first(output, _stages(self.backbone).get(stage))

    def _channels_first(self, output: Tensor, channels: int | None) -> Tensor:
        last = output.ndim == 4 and channels == output.shape[3] != output.shape[1]
        if output.ndim == 4 and (last or getattr(self.backbone, "output_fmt", None) == "NHWC"):
            return output.permute(0, 3, 1, 2)
        return output

    def _choose_branch(self, outputs: Sequence[Any], stage: str) -> Any:
        """Return the branch that has the channels timm states of the stage, else the first."""
        channels = _stages(self.backbone).get(stage)
        tensors = [output for output in outputs if isinstance(output, Tensor)]
        fitting = [tensor for tensor in tensors if tensor.ndim > 2 and channels in (tensor.shape[1], tensor.shape[-1])]
        return next(iter(fitting or tensors), None)


class _KeepPatches(nn.Module):
    """Keep the patches that are told, where timm would leave out some at random.

    Args:
        keep (`Tensor` of shape `(B, K)`): Indices of the patches to keep.
        prefix (`int`): The number of tokens before those of the patches.
        with_indices (`bool`): Whether to return the indices too, by which a network cuts its rotary positions.
    """

    def __init__(self, keep: Tensor, prefix: int, with_indices: bool):
        super().__init__()
        self.keep, self.prefix, self.with_indices = keep, prefix, with_indices

    def forward(self, tokens: Tensor) -> Any:
        """Return the tokens `(B, prefix + K, D)` to keep, and their indices if asked for."""
        kept = gather_tokens(tokens, self.keep, self.prefix)
        return (kept, self.keep) if self.with_indices else kept


def build_timm_encoder(
    name: str,
    model: str,
    config: dict,
    weights: Weights | None,
    image_size: int | None,
    in_chans: int | None = None,
    **backbone_kwargs: Any,
) -> TimmEncoder:
    """Build a [`TimmEncoder`].

    Args:
        name (`str`): The name that the user gave.
        model (`str`): The name for timm: an architecture, with or without tag.
        config (`dict`): `pretrained_cfg` and, for a saved model, `model_args`, which replace timm's own.
        weights ([`Weights`], *optional*): The weights to load, in one file.
        image_size (`int`, *optional*): The side of the images in pixels; defaults to that of the model.
        in_chans (`int`, *optional*): The number of channels of the images; defaults to that of the model. Weights for
            another number are adapted by timm's rule: those of the first layer are repeated and rescaled.
        backbone_kwargs: Further arguments of `timm.create_model`.

    Returns:
        [`TimmEncoder`]: The encoder.

    Raises:
        ValueError: timm rejects the arguments, a saved model is beyond the limits, or the weights do not fit.
    """
    cfg, model_args = config["pretrained_cfg"], config.get("model_args", {})
    own_size = model_args.get("img_size") or (cfg.get("input_size") or (3, 224, 224))[-2:]
    sides = {own_size} if isinstance(own_size, int) else {*own_size}
    own_side = sides.pop() if len(sides) == 1 else None
    own_channels = model_args.get("in_chans") or (cfg.get("input_size") or (3, 224, 224))[0]
    channels = in_chans or own_channels
    changed = bool(backbone_kwargs) or image_size is not None or channels != own_channels
    if channels != own_channels:
        backbone_kwargs["in_chans"] = channels
        # The layer to adapt, which exported folders do not name.
        cfg = {
            **cfg,
            "first_conv": cfg.get("first_conv") or getattr(timm.get_pretrained_cfg(model), "first_conv", None),
        }
    image_size = image_size or square_side(name, own_size)
    # Networks with position embeddings are built for one size; for all others it is only a recommendation.
    if cfg.get("fixed_input_size") or "img_size" in model_args:
        backbone_kwargs["img_size"] = image_size
    pool = backbone_kwargs.get("global_pool", model_args.get("global_pool", cfg.get("global_pool")))
    if pool == "":  # in timm this disables pooling, without which there is no representation
        backbone_kwargs["global_pool"] = "avg"
    is_saved = "model_args" in config
    if is_saved:
        own = {key: value for key, value in model_args.items() if key != "num_classes"}
        backbone_kwargs = {**own, **backbone_kwargs, "pretrained_cfg": cfg}

    def build(num_classes: int = 0, **source: Any) -> nn.Module:
        return timm.create_model(model, num_classes=num_classes, **backbone_kwargs, **source)

    if is_saved:
        # Position embeddings of another size, and other arguments, change the number of parameters.
        plan(name, build, None if weights is None or changed else weights.numbers, image_size, channels)
    if weights is not None and channels != own_channels:
        _require_adapted(name, cfg, weights, own_channels, channels)
    with building(name):
        require_normalization(name, own_channels, cfg.get("mean"), cfg.get("std"))
        backbone: Any = build() if weights is None else _loaded(name, build, weights, strict=is_saved)
    return TimmEncoder(
        backbone,
        name=name,
        image_size=image_size,
        # The statistics of other channels say nothing of these.
        mean=backbone.pretrained_cfg["mean"] if channels == own_channels else (),
        std=backbone.pretrained_cfg["std"] if channels == own_channels else (),
        interpolation=backbone.pretrained_cfg["interpolation"],
        own_size=own_side,
        stage_modules=choose_stages([*_stages(backbone)]),
        channels=channels,
    )


def _loaded(name: str, build: Callable[..., nn.Module], weights: Weights, strict: bool) -> nn.Module:
    """Build a network with weights; with `strict`, refuse those that are not exactly the network's.

    timm itself is not strict once it leaves out the classifier. Its conversion of weights from other releases is kept.
    """
    # With custom_load the file would be read in the format of the original release.
    source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights.path), "custom_load": False}}
    with _LoadReport() as report:
        try:
            # All weights are replaced, or refused below.
            with Unfilled() if strict else contextlib.nullcontext():
                backbone = build(**source)
        except RuntimeError:
            if not strict or report.module is None:
                raise
            # The module's own text of this is many lines long.
            wanted, stored = report.module.state_dict(), weights.tensors
            compare(name, report.missing, report.unexpected)
            compare(
                name,
                (),
                (),
                [
                    f"{key!r}, {[*stored[key].shape]} instead of {[*tensor.shape]}"
                    for key, tensor in wanted.items()
                    if key in stored and stored[key].shape != tensor.shape
                ],
            )
            raise
    if strict:
        unexpected = set(report.unexpected)
        if unexpected:
            # What belongs to the classifier, which an encoder leaves out, or is computed and not stored.
            classes = cast(dict, backbone.pretrained_cfg).get("num_classes") or 1000
            whole = plan(name, lambda: build(num_classes=classes))
            unexpected -= {key for key, _ in [*whole.named_parameters(), *whole.named_buffers()]}
        compare(name, report.missing, unexpected)
        require_finite(name, backbone)
    return backbone


def _require_adapted(name: str, cfg: dict, weights: Weights, own: int, channels: int) -> None:
    """Refuse weights whose first layer timm cannot adapt to another number of channels: it would be random.

    Raises:
        ValueError: The first layer is not known, or is no convolution.
    """
    layers = cfg.get("first_conv") or ()
    layers = (layers,) if isinstance(layers, str) else layers
    shapes = [weights.tensors[f"{layer}.weight"].shape for layer in layers if f"{layer}.weight" in weights.tensors]
    if not shapes or any(len(shape) != 4 for shape in shapes):
        raise Refused(
            f"channels is {channels}, but the weights of backbone {name!r} are for images of {own} channels and cannot "
            f"be adapted: pass --channels {own}, pretrained=False, or another backbone"
        )


class _LoadReport:
    """Collect what `load_state_dict` reports of a module that is built and loaded in one call.

    Attributes:
        module (`nn.Module`, *optional*): The module that was loaded.
        missing (`list[str]`): Tensors that its state dict lacked.
        unexpected (`list[str]`): Tensors that it does not have.
    """

    def __enter__(self) -> "_LoadReport":
        self.module: nn.Module | None = None
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self._watched: dict[int, Any] = {}
        self._handle = register_module_module_registration_hook(self._watch)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()
        for handle in self._watched.values():
            handle.remove()

    def _watch(self, module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        # Every module that has others, since which of them will be the outermost shows in the end.
        if id(module) not in self._watched:
            self._watched[id(module)] = module.register_load_state_dict_post_hook(self._note)

    def _note(self, module: nn.Module, incompatible: Any) -> None:
        # The outermost module reports last, with all that those within it reported.
        self.module = module
        self.missing, self.unexpected = incompatible.missing_keys, incompatible.unexpected_keys


def _stages(backbone: nn.Module) -> dict[str, int]:
    """Return the modules of timm's `feature_info`, without the stem, with the channels that timm states of each.

    Names that are no modules are replaced by those of the same place, or left out. A list of modules is not called
    itself: its last module gives its output.
    """
    info = getattr(backbone, "feature_info", None)
    info = [stage for stage in info if isinstance(stage.get("module"), str)] if isinstance(info, list) else []
    kinds = [re.sub(r"\d+", "#", stage["module"]) for stage in info]
    if len(kinds) > 2 and kinds[0] != kinds[1]:
        info, kinds = info[1:], kinds[1:]
    modules = dict(backbone.named_modules())
    stages = {}
    for place, name in enumerate(_module_names([stage["module"] for stage in info], modules)):
        while isinstance(modules.get(name), nn.ModuleList) and len(cast(nn.ModuleList, modules[name])):
            name = f"{name}.{len(cast(nn.ModuleList, modules[name])) - 1}"
        if name in modules:
            stages[name] = info[place]["num_chs"]
    return stages


def _module_names(stated: list[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the modules that timm's names of stages refer to."""
    if all(name in modules for name in stated):
        return stated
    for container in RENAMED.get(re.sub(r"[\d.]+$", "", stated[0]), ()):
        children = [name for name in modules if name.rpartition(".")[0] == container]
        if len(children) == len(stated):
            return children
    # The stages of an encoder within the model, named without it.
    inner = {name: [module for module in modules if module.endswith(f".{name}")] for name in stated}
    return [found[0] if len(found := inner[name]) == 1 and name not in modules else name for name in stated]
