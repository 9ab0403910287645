"""Read the outputs of a model's layers from one forward pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import ArrayLike, as_tensor
from ..messages import describe, suggest
from .stages import CLASS_TOKEN, EMBEDDING, INPUT, PATCH_TOKENS, REPRESENTATION, guess_stages
from .tokens import TokenReader, token_layers

POOLS = ("avg", "flatten")


class LayerReader:
    """Read the outputs of layers from one forward pass, with hooks that remain until [`~LayerReader.close`].

    Args:
        model (`nn.Module`): A module with a method `stages(images)` that returns a dict ending in `"representation"`
            (an `hf_orthossl` encoder); or a timm, transformers or other torch model, whose stages are recognized by
            name and whose representation is the input of its classifier.
        layers (sequence of `str`, *optional*): The layers to read: `"input"`, names of stages, names of modules,
            `"class_token"` and `"patch_tokens"` of a vision transformer, `"representation"`, `"embedding"`. Defaults to
            the input, all stages, the patch tokens, the class token if it is not the representation, the
            representation and, if there is a projector, the embedding.
        projector (`nn.Module`, *optional*): Maps the representation `(B, D)` to the embedding.

    Raises:
        ValueError: A layer does not exist.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str] | None = None, projector: nn.Module | None = None
    ) -> None:
        self.model, self.projector = model, projector
        self.layers = None if layers is None else [layers] if isinstance(layers, str) else list(layers)
        self._modules = {name: module for name, module in model.named_modules() if name}
        self._encoder = _is_encoder(model)
        if self.layers is not None:
            check_layers(model, self.layers, projector)
            stages = getattr(model, "stage_names", ())
            hooked = [name for name in self.layers if name in self._modules and name not in stages]
        else:
            hooked = [] if self._encoder else guess_stages(self._modules)
        self._stages = hooked
        self._tokens = TokenReader(model)
        self._outputs: dict[str, Tensor] = {}
        self._hooks = [self._modules[name].register_forward_hook(self._store(name)) for name in hooked]

    @property
    def found_stages(self) -> bool:
        """Return whether any stage between input and representation was recognized."""
        return self._encoder or bool(self._stages)

    def close(self) -> None:
        """Remove the hooks from the model."""
        self._tokens.close()
        for hook in self._hooks:
            hook.remove()

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """Return the raw outputs of the layers, in order.

        Args:
            images (`Tensor`): Normalized images `(B, C, H, W)`.

        Returns:
            `dict[str, Tensor]`: Feature maps `(B, C, H, W)`, tokens `(B, N, C)` or vectors `(B, D)`, by layer.

        Raises:
            ValueError: A layer does not exist (the error suggests the nearest names), or did not return a tensor.
        """
        self._outputs.clear()
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), images)
        inputs = images.to(parameter.device, parameter.dtype)
        if self._encoder:
            outputs = dict(_stages_method(self.model)(inputs))
        else:
            output = _forward(self.model, inputs)
            # A model that returns a loss and other values has no representation, but its layers can be read.
            wanted = self.layers is None or not {REPRESENTATION, EMBEDDING}.isdisjoint(self.layers)
            outputs = {REPRESENTATION: _tensor(output, REPRESENTATION)} if wanted else {}
        representation = outputs.pop(REPRESENTATION, None)
        outputs = {INPUT: images, **{n: self._outputs[n] for n in self._stages if n in self._outputs}, **outputs}
        tokens = self._tokens.read()
        if self.layers is None and _is_equal(tokens.get(CLASS_TOKEN), representation):
            del tokens[CLASS_TOKEN]
        outputs |= tokens
        if representation is not None:
            outputs[REPRESENTATION] = representation
        if self.projector is not None and REPRESENTATION in outputs:
            outputs[EMBEDDING] = self.projector(outputs[REPRESENTATION])
        if self.layers is None:
            return outputs
        for name in self.layers:
            if name not in outputs:
                if name in self._modules:
                    raise ValueError(f"layer {name!r} is not used in the model's forward pass: choose another layer")
                raise _unknown(name, list(outputs), self._modules)
        return {name: outputs[name] for name in self.layers}

    def _store(self, name: str) -> Callable[[nn.Module, tuple, Any], None]:
        def hook(_module: nn.Module, _inputs: tuple, output: Any) -> None:
            output = _tensor(output, name)
            # timm's Swin and MaxViT have channels last.
            if output.ndim == 4 and getattr(self.model, "output_fmt", None) == "NHWC":
                output = output.movedim(3, 1)
            self._outputs[name] = output

        return hook


def check_layers(model: nn.Module, layers: str | Sequence[str], projector: nn.Module | None = None) -> None:
    """Check before any forward pass that a model has the named layers.

    Args:
        model (`nn.Module`): The model.
        layers (`str` or sequence of `str`): The names of layers.
        projector (`nn.Module`, *optional*): The projector, which `"embedding"` needs.

    Raises:
        ValueError: A layer does not exist; the error suggests the nearest names.
    """
    layers = [layers] if isinstance(layers, str) else layers
    if EMBEDDING in layers and projector is None:
        raise ValueError("layer 'embedding' needs the projector: pass projector=…")
    stages = getattr(model, "stage_names", None) if _is_encoder(model) else ()
    if stages is None:
        # The names are known only after a forward pass.
        return
    modules = [name for name, _ in model.named_modules() if name]
    tokens = token_layers(model)
    known = {INPUT, *stages, *tokens, REPRESENTATION, EMBEDDING, *modules}
    for name in layers:
        if name not in known:
            ends = [INPUT, *(stages or guess_stages(modules)), *tokens, REPRESENTATION]
            raise _unknown(name, [*dict.fromkeys(ends)], modules)


def _unknown(name: str, ends: Sequence[str], modules: Iterable[str]) -> ValueError:
    # A model may have hundreds of modules, so list only its input, stages and representation.
    known, listed = dict.fromkeys([*ends, *modules]), ", ".join(dict.fromkeys(ends))
    remedy = suggest(name, known, most=3, otherwise=f"choose from {listed}")
    return ValueError(f"the model has no layer {name!r}: {remedy}")


def as_vectors(output: Tensor, pool: str) -> tuple[Tensor, str]:
    """Pool a layer's output to one vector per image, and return it with the pooling: `"none"`, `"avg"` or `"flatten"`.

    Args:
        output (`Tensor`): Vectors `(B, D)`, which are returned unchanged, feature maps `(B, C, H, W)` or tokens
            `(B, N, C)`.
        pool (`str`): `"avg"` averages maps and tokens over positions to `(B, C)`; `"flatten"` flattens them.

    Raises:
        ValueError: `output` has the wrong number of dimensions.
    """
    if output.ndim == 2:
        return output, "none"
    if output.ndim not in (3, 4):
        raise ValueError(f"a layer's output must be (B, D), (B, N, C) or (B, C, H, W), got {tuple(output.shape)}")
    if pool == "flatten":
        return output.flatten(1), pool
    # Summed in float64 (which Apple's GPU lacks): 1,024 positions in float32 would add noise to a spectrum's zeros.
    dtype = torch.float32 if output.device.type == "mps" else torch.float64
    return output.mean(1 if output.ndim == 3 else (2, 3), dtype=dtype), pool


def samples(layer: str, output: Tensor, pool: str) -> tuple[Tensor, str]:
    """Return the vectors of a layer whose spectrum is measured, with the pooling; see [`as_vectors`].

    Each patch token is a vector by itself (`"each"`), because their mean hides whether patches differ. Input pixels are
    always flattened, as in the paper.

    Args:
        layer (`str`): The name of the layer.
        output (`Tensor`): Its output.
        pool (`str`): How other feature maps and tokens are pooled.
    """
    if layer == PATCH_TOKENS:
        return output.flatten(0, 1), "each"
    return as_vectors(output, "flatten" if layer == INPUT else pool)


def _is_equal(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and first.shape == second.shape and torch.equal(first, second)


def batches(images: ArrayLike | Iterable[Any], batch_size: int) -> Iterator[Tensor]:
    """Yield validated batches `(B, C, H, W)`.

    Args:
        images (`Tensor`, array or iterable): Normalized images `(N, C, H, W)`, or batches: tensors, arrays, dicts with
            `pixel_values`, or tuples that begin with the images.
        batch_size (`int`): Images per batch, if `images` is one array.

    Raises:
        TypeError: `images` is neither an array nor an iterable of batches.
        ValueError: A batch is not a float array of finite values of this shape.
    """
    if isinstance(images, np.ndarray) or (isinstance(images, Tensor) and not images.ndim):
        images = as_tensor("images", images, 4, shape="(N, C, H, W), or batches of them", finite=False)
    if isinstance(images, str | bytes) or not isinstance(images, Iterable):
        raise TypeError(
            f"images must be normalized images (N, C, H, W) or batches of them, such as a DataLoader, got "
            f"{describe(images)}: decode files first, as ImageDataset does"
        )
    for batch in images.split(batch_size) if isinstance(images, Tensor) and len(images) else images:
        if isinstance(batch, Mapping):
            if "pixel_values" not in batch:
                raise ValueError(f"images must be batches with 'pixel_values', got the keys {list(batch)}")
            batch = batch["pixel_values"]
        elif isinstance(batch, tuple | list) and batch:
            batch = batch[0]
        if isinstance(batch, np.ndarray):
            batch = as_tensor("images", batch, finite=False)
        if not isinstance(batch, Tensor) or batch.ndim != 4:
            shape = tuple(batch.shape) if isinstance(batch, Tensor) else describe(batch)
            raise ValueError(f"images must be (N, C, H, W) or batches of that shape, such as a DataLoader, got {shape}")
        if not batch.is_floating_point() or not torch.isfinite(batch).all():
            kind = "NaN or infinity" if batch.is_floating_point() else str(batch.dtype)
            raise ValueError(f"images must be normalized, finite floats, got {kind}")
        yield batch


@contextmanager
def evaluation_mode(*modules: nn.Module | None) -> Iterator[None]:
    """Set modules to evaluation mode without gradients; afterwards the mode of every submodule is restored."""
    modes = [(part, part.training) for module in modules if module is not None for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _is_encoder(model: nn.Module) -> bool:
    # In timm, `stages` is a list of modules; in an encoder it is a method.
    stages = getattr(model, "stages", None)
    return callable(stages) and not isinstance(stages, nn.Module)


def _stages_method(model: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
    method: Any = model.stages
    return method


def _forward(model: nn.Module, images: Tensor) -> Any:
    # Methods of classes that this package does not import.
    known: Any = model
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        # timm: the representation is the input of the classifier.
        return known.forward_head(known.forward_features(images), pre_logits=True)
    if hasattr(model, "config") and hasattr(model, "base_model"):
        return known.base_model(pixel_values=images)
    return known(images)


def _tensor(output: Any, name: str) -> Tensor:
    """Return the tensor in a module's output: itself, the first of a tuple, or a ModelOutput's pooled or last state."""
    for key in ("pooler_output", "last_hidden_state"):
        if getattr(output, key, None) is not None:
            return as_vectors(output[key], "avg")[0] if key == "pooler_output" else output[key]
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(f"layer {name!r} returned {type(output).__name__}, not a tensor: choose other layers")
    return output
