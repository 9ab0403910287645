"""One forward pass of any model, and what each of its layers gave."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .stages import EMBEDDING, INPUT, REPRESENTATION, guess_stages

POOLS = ("avg", "flatten")


class LayerReader:
    """
    Reads the layers of a model from one forward pass, by hooks that stay until [`~LayerReader.close`].

    Args:
        model (`nn.Module`): anything with a method `stages(images)` that returns a dict ending in
            `"representation"` (an `hf_orthossl` encoder); or a timm, transformers or other torch model, whose
            stages are guessed by name and whose representation is what it computes before its classifier.
        layers (sequence of `str`, *optional*): what to read: `"input"`, names of stages, names of modules,
            `"representation"`, `"embedding"`. Defaults to the input, all stages, the representation and, if there
            is a projector, the embedding.
        projector (`nn.Module`, *optional*): maps the representation `(B, D)` to the embedding.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] | None = None, projector: nn.Module | None = None):
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
        self._outputs: dict[str, Tensor] = {}
        self._hooks = [self._modules[name].register_forward_hook(self._keep(name)) for name in hooked]

    @property
    def found_stages(self) -> bool:
        """Whether there is any stage between input and representation to read."""
        return self._encoder or bool(self._stages)

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """
        Raw outputs of the layers, in order, for normalised images `(B, 3, H, W)`.

        Raises:
            ValueError: if a layer does not exist (the nearest names are given) or gave no tensor.
        """
        self._outputs.clear()
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), images)
        inputs = images.to(parameter.device, parameter.dtype)
        if self._encoder:
            outputs = dict(self.model.stages(inputs))
        else:
            output = _forward(self.model, inputs)
            # A model that returns a loss and more has no representation, but its layers can be read.
            wanted = self.layers is None or not {REPRESENTATION, EMBEDDING}.isdisjoint(self.layers)
            outputs = {REPRESENTATION: _tensor(output, REPRESENTATION)} if wanted else {}
        outputs = {INPUT: images, **{n: self._outputs[n] for n in self._stages if n in self._outputs}, **outputs}
        if self.projector is not None and REPRESENTATION in outputs:
            outputs[EMBEDDING] = self.projector(outputs[REPRESENTATION])
        if self.layers is None:
            return outputs
        for name in self.layers:
            if name not in outputs:
                if name in self._modules:
                    raise ValueError(f"layer {name!r} is not used in the model's forward pass: choose another")
                raise _unknown(name, list(outputs), self._modules)
        return {name: outputs[name] for name in self.layers}

    def _keep(self, name: str):
        def hook(_module: nn.Module, _inputs: tuple, output) -> None:
            output = _tensor(output, name)
            # timm's Swin and MaxViT keep channels last.
            if output.ndim == 4 and getattr(self.model, "output_fmt", None) == "NHWC":
                output = output.movedim(3, 1)
            self._outputs[name] = output

        return hook


def check_layers(model: nn.Module, layers: str | Sequence[str], projector: nn.Module | None = None) -> None:
    """
    Refuse, before any forward pass, names that a model's layers do not have.

    Raises:
        ValueError: if a layer does not exist (the nearest names are given).
    """
    layers = [layers] if isinstance(layers, str) else layers
    if EMBEDDING in layers and projector is None:
        raise ValueError("layer 'embedding' needs the projector: pass projector=…")
    stages = getattr(model, "stage_names", None) if _is_encoder(model) else ()
    if stages is None:
        # Only its outputs will tell.
        return
    modules = [name for name, _ in model.named_modules() if name]
    known = {INPUT, *stages, REPRESENTATION, EMBEDDING, *modules}
    for name in layers:
        if name not in known:
            raise _unknown(name, [INPUT, *(stages or guess_stages(modules)), REPRESENTATION], modules)


def _unknown(name: str, ends: Sequence[str], modules: Iterable[str]) -> ValueError:
    known = list(dict.fromkeys([*ends, *modules]))
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(dict.fromkeys(ends))
    return ValueError(f"the model has no layer {name!r}; did you mean {', '.join(nearest)}?")


def as_vectors(output: Tensor, pool: str) -> tuple[Tensor, str]:
    """
    One vector per image from a layer's output, and how: `"none"`, `"avg"` or `"flatten"`.

    Feature maps `(B, C, H, W)` and tokens `(B, N, C)` are averaged over positions (`"avg"`) to `(B, C)`, or
    flattened (`"flatten"`).
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


def batches(images: Tensor | Iterable, batch_size: int) -> Iterator[Tensor]:
    """
    Checked batches `(B, 3, H, W)` of a tensor, or of an iterable of tensors, dicts with `pixel_values`, or tuples.

    Raises:
        ValueError: if there are no images, or they are not float batches of finite values.
    """
    for batch in images.split(batch_size) if isinstance(images, Tensor) and len(images) else images:
        if isinstance(batch, Mapping):
            if "pixel_values" not in batch:
                raise ValueError(f"images must give batches with 'pixel_values', got the keys {list(batch)}")
            batch = batch["pixel_values"]
        elif isinstance(batch, (tuple, list)) and batch:
            batch = batch[0]
        if not isinstance(batch, Tensor) or batch.ndim != 4:
            shape = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"images must be (N, 3, H, W) or batches of that form (a DataLoader's), got {shape}")
        if not batch.is_floating_point() or not torch.isfinite(batch).all():
            raise ValueError(f"images must be normalised and finite floats, got {batch.dtype} or NaN or infinity")
        yield batch


@contextmanager
def evaluation_mode(*modules: nn.Module | None) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule's own mode is restored afterwards."""
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
    # timm calls a list of modules `stages`; an encoder's is a method.
    return callable(getattr(model, "stages", None)) and not isinstance(model.stages, nn.Module)


def _forward(model: nn.Module, images: Tensor):
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        # timm: the representation is what the classifier would get.
        return model.forward_head(model.forward_features(images), pre_logits=True)
    if hasattr(model, "config") and hasattr(model, "base_model"):
        return model.base_model(pixel_values=images)
    return model(images)


def _tensor(output, name: str) -> Tensor:
    """The tensor in what a module returned: itself, the first of a tuple, or a ModelOutput's pooled or last state."""
    for key in ("pooler_output", "last_hidden_state"):
        if getattr(output, key, None) is not None:
            return as_vectors(output[key], "avg")[0] if key == "pooler_output" else output[key]
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(f"layer {name!r} gave {type(output).__name__} instead of a tensor: choose others in layers")
    return output
