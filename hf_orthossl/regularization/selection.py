"""Select the weights of a module to regularize, and read each of them as matrices `(input, output)`."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from ..distributed.sharding import full_tensor

Layout = Callable[[Tensor, int], Tensor]

# Fused attention projections that contain all of q, then k, then v. Other fused layers (GPT-NeoX's
# `query_key_value`, CodeGen's `qkv_proj`) interleave the heads and are one matrix.
_FUSED = {"qkv": "qkv", "Wqkv": "qkv", "c_attn": "qkv", "kv": "kv"}
# Modules whose input is coordinates: networks that compute position biases or position embeddings.
_POSITION = re.compile(
    r"(^|\.)(cpb_mlp|meta_mlp|continuous_position_bias_mlp|pos_proj|pos_emb\w*|rel_pos\w*|relative_position\w*"
    r"|position_bias\w*|position_embedding\w*)\."
)
# Why weights are left out unless they are asked for.
DEPTHWISE = "depthwise kernel, whose single column has no other to be orthogonal to"
ONE_COLUMN = "vector, which has no other to be orthogonal to"
POSITION = "computes position biases from coordinates, not features"


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A weight of a module, as a matrix of shape `(input, output)`.

    The parameter is fetched from its module at every use, so that it may be replaced (FSDP) or computed
    (`torch.nn.utils.parametrize`).

    Attributes:
        name (`str`): The qualified name of the parameter, with the part in brackets if it contains several matrices:
            `blocks.0.attn.qkv.weight[q]`, `conv2.weight[g3]`. That of an encoder's parameter is the one in its
            published weights.
        module (`torch.nn.Module`): The layer that owns the parameter.
        attribute (`str`): The name of the parameter within `module`.
        group (`str`): The kind of layer: `Linear`, `Conv2d`, `qkv`, `depthwise`, …
        shape (`tuple[int, int]`): `(input, output)`; for a convolution `(C_in/groups · k_h · k_w, C_out/groups)`.
        index (`int`): The index of this matrix among those of the parameter.
        count (`int`): The number of matrices in the parameter.
        layout (`Callable`): Maps the parameter and `count` to a tensor of shape `(count, input, output)`.
        path (`str`): The qualified name of the parameter in the module that was searched; `name` differs from it for an
            encoder, and for one of several matrices.
    """

    name: str
    module: nn.Module
    attribute: str
    group: str
    shape: tuple[int, int]
    index: int
    count: int
    layout: Layout
    path: str

    @property
    def parameter(self) -> Tensor:
        """Return the current parameter of the module: a whole tensor, or a `DTensor` sharded over processes."""
        return getattr(self.module, self.attribute)

    def stack(self) -> Tensor:
        """Return all matrices of the parameter, of shape `(count, input, output)`; a view where possible.

        A sharded parameter is gathered: call it on all processes of its mesh.
        """
        return self.layout(full_tensor(self.parameter), self.count)

    def matrix(self) -> Tensor:
        """Return this matrix, of shape `(input, output)`, differentiable with respect to the parameter."""
        return self.stack()[self.index]


def select_matrices(
    module: nn.Module,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    depthwise: bool = False,
    split_fused: bool = True,
) -> list[WeightMatrix]:
    """Return the weight matrices of a module, in the order of `module.named_modules()`.

    Selected are the weights of every linear layer (also Hugging Face's `Conv1D`) and every convolution (1-, 2-,
    3-dimensional, transposed; one matrix per group), and the projections of `nn.MultiheadAttention`. Not selected are
    norms, biases, embeddings, tokens, and weights tied to an embedding (GPT-2's LM head). A parameter that several
    modules share counts once, under its first name. Selected only if `include` names them are matrices with one row or
    one column, and networks from coordinates to position biases (Swin v2's `cpb_mlp`). [`left_out`] lists the weights
    that are not selected, each with the reason.

    Of a convolution that standardizes its weight (timm's `StdConv2d`, BiT's) the parameter is read, not the
    standardized weight: its columns can become orthonormal, while those of the other have a length of their own that no
    training changes, so that no penalty could reach 0.

    Args:
        module (`torch.nn.Module`): Any module.
        include (`str` or list of `str`, *optional*): Shell patterns (`*`, `?`, `[…]`) of qualified parameter names,
            such as `layer1.*.conv?.weight`; only matching weights are selected.
        exclude (`str` or list of `str`, *optional*): Patterns of weights to exclude, even if `include` matches
            them.
        depthwise (`bool`, defaults to `False`): Select grouped convolutions with one output per group too. Such a
            matrix has a single column, whose length can be regularized, but which has no other column to be orthogonal
            to.
        split_fused (`bool`, defaults to `True`): Read fused attention layers (`qkv`, `Wqkv`, `kv`, GPT-2's `c_attn`,
            `in_proj_weight`) as one matrix per projection instead of one for all. Layers that interleave heads, or have
            projections of unequal size, are read as one matrix.

    Returns:
        `list[WeightMatrix]`: One or more matrices.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.
        ValueError: Nothing is selected, a pattern matches nothing, or a selected weight is not initialized yet (lazy
            modules) or not floating-point (quantized ones).

    Source: He, Du, Ma, NeurIPS 2024, §3: every convolution and linear layer, a kernel read as a matrix of
    `k_h · k_w · C_in/groups` inputs by `C_out` outputs.
    """
    if not isinstance(module, nn.Module):
        remedy = f"pass load_encoder({module!r})" if isinstance(module, str) else "pass the model itself"
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__} {str(module)[:60]!r}: {remedy}")
    candidates = [
        candidate
        for candidate in _candidates(module, split_fused)
        if not candidate.reason
        or (candidate.reason == DEPTHWISE and depthwise)
        or (candidate.reason != DEPTHWISE and include is not None)
    ]
    if not candidates:
        raise ValueError(f"{type(module).__name__} has no linear or convolution weight to regularize")
    names = [candidate.name for candidate in candidates]
    included, excluded = _matching(names, "include", include), _matching(names, "exclude", exclude)
    chosen = [c for c in candidates if (include is None or c.name in included) and c.name not in excluded]
    if not chosen:
        raise ValueError(f"include={include!r} and exclude={exclude!r} leave none of {len(names)} weight matrices")
    return [matrix for candidate in chosen for matrix in candidate.matrices()]


@dataclass(frozen=True)
class LeftOut:
    """A weight of two or more dimensions that is not regularized.

    Attributes:
        name (`str`): The qualified name of the parameter.
        shape (`tuple[int, ...]`): Its shape.
        reason (`str`): Why it is left out.
    """

    name: str
    shape: tuple[int, ...]
    reason: str


def left_out(module: nn.Module, matrices: Sequence[WeightMatrix]) -> list[LeftOut]:
    """Return the weights of two or more dimensions that are not among the selected matrices, with the reason of each.

    Args:
        module (`torch.nn.Module`): The module.
        matrices (`list[WeightMatrix]`): What [`select_matrices`] returned of it.
    """
    selected = {matrix.name.partition("[")[0] for matrix in matrices}
    candidates = {candidate.name: candidate.reason for candidate in _candidates(module, split_fused=False)}
    modules, published = dict(module.named_modules()), _published(module)
    entries = []
    for name, parameter in module.named_parameters():
        # What a parametrized weight is computed from.
        known = published(re.sub(r"parametrizations\.([^.]+)\.original\d*$", r"\1", name))
        if known in selected or is_lazy(parameter) or parameter.ndim < 2 or not parameter.is_floating_point():
            continue
        reason = candidates.get(known) or _reason(modules[name.rpartition(".")[0]], parameter)
        if known in candidates and not candidates[known]:
            reason = "not selected by include and exclude"
        entries.append(LeftOut(published(name), tuple(parameter.shape), reason))
    return entries


def _published(module: nn.Module) -> Callable[[str], str]:
    """Return the function from a parameter's name in a module to the one that users know it by.

    An encoder has a method for it: neither its published weights nor the library's own names have the prefix
    `backbone.`.
    """
    method: Callable[[str], str] | None = getattr(module, "published_name", None)
    return method or (lambda name: name)


def is_standardized(module: nn.Module) -> bool:
    """Return whether a layer is a convolution that standardizes its weight at every use (timm's and BiT's)."""
    return isinstance(module, _ConvNd) and re.search(r"StdConv|WeightStandardized", type(module).__name__) is not None


def _reason(owner: nn.Module, parameter: Tensor) -> str:
    """Return why a parameter is no candidate."""
    kind = type(owner).__name__
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return "recurrent layer, whose weights act on its own state through several gates"
    if "CondConv" in kind:
        return "mixture of kernels, of which each image uses another sum"
    if parameter.numel() == max(parameter.shape, default=0):
        return ONE_COLUMN
    return f"parameter of {kind} itself, no weight of a linear or convolution layer"


def output_first(weight: Tensor, count: int) -> Tensor:
    """Read `(count · output, *input)` as `(count, input, output)`: linear layers, convolutions."""
    return weight.reshape(count, weight.shape[0] // count, -1).mT


def input_first(weight: Tensor, count: int) -> Tensor:
    """Read `(input, count · output)` as `(count, input, output)`: Hugging Face's `Conv1D`."""
    return weight.unflatten(1, (count, -1)).movedim(1, 0)


def transposed_convolution(weight: Tensor, count: int) -> Tensor:
    """Read `(C_in, C_out/groups, *kernel)`, transposed, as `(groups, C_in/groups · kernel, C_out/groups)`."""
    return weight.reshape(count, weight.shape[0] // count, weight.shape[1], -1).mT.flatten(1, 2)


# The layouts by name, for what is saved to a file.
LAYOUTS: dict[str, Layout] = {layout.__name__: layout for layout in (output_first, input_first, transposed_convolution)}


def output_views(layout: Layout, weight: Tensor, count: int) -> list[Tensor]:
    """Return the matrices of a parameter as views `(output, input, *kernel)`, to be changed in place.

    Flattened after their first dimension, they are the transposes of the matrices that `layout` returns.

    Args:
        layout (`Callable`): [`output_first`], [`input_first`] or [`transposed_convolution`].
        weight (`torch.Tensor`): The parameter, or a tensor of its shape.
        count (`int`): The number of matrices in it.
    """
    if layout is input_first:
        return [part.mT for part in weight.chunk(count, 1)]
    parts = weight.chunk(count)
    return [part.transpose(0, 1) if layout is transposed_convolution else part for part in parts]


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive rows of `R`, one of a parameter's matrices, where `R` is `Wᵀ` if `output_first`, else `W`.

    Attributes:
        index (`int`): The index of the matrix among those of the parameter.
        start (`int`): The index of the first row in `R`.
        rows (`torch.Tensor` of shape `(rows, columns of R)`): The rows, differentiable with respect to the part.
    """

    index: int
    start: int
    rows: Tensor


def blocks(layout: Layout, part: Tensor, count: int, shape: tuple[int, int], start: int, length: int) -> list[Block]:
    """Return the rows of matrices that are in a part of a parameter.

    Args:
        layout (`Callable`): [`output_first`], [`input_first`] or [`transposed_convolution`].
        part (`torch.Tensor`): The entries `start`, `start + 1`, … of the parameter along its first dimension.
        count (`int`): The number of matrices in the whole parameter.
        shape (`tuple[int, int]`): `(input, output)` of each.
        start (`int`): The first entry of the part.
        length (`int`): The number of entries of the whole parameter along its first dimension.

    Returns:
        `list[Block]`: At most one block for each matrix; a block without rows for an empty part.
    """
    if not len(part):
        return [Block(0, 0, part.reshape(0, shape[0] if layout is output_first else shape[1]))]
    if layout is input_first:
        return [Block(index, start, rows) for index, rows in enumerate(layout(part, count).unbind())]
    stop, each = start + len(part), length // count
    parts = []
    for index in range(start // each, (stop - 1) // each + 1):
        first, last = max(start, index * each), min(stop, (index + 1) * each)
        W = layout(part[first - start : last - start], 1)[0]
        rows = W.mT if layout is output_first else W
        parts.append(Block(index, (first - index * each) * (len(rows) // (last - first)), rows))
    return parts


@dataclass
class _Candidate:
    """A parameter that may be selected, and the labels of its matrices."""

    name: str
    module: nn.Module
    attribute: str
    group: str
    layout: Layout
    labels: Sequence[str] = ("",)
    path: str = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.name

    @property
    def reason(self) -> str:
        """Return why the parameter is not selected by default; empty if it is."""
        if self.group == "depthwise":
            return DEPTHWISE
        if _POSITION.search(self.path):
            return POSITION
        weight = getattr(self.module, self.attribute)
        return ONE_COLUMN if not is_lazy(weight) and 1 in self._shape()[1:] else ""

    def _shape(self) -> tuple[int, int, int]:
        # Use only the shape, because reshaping a sharded weight may communicate, or fail.
        weight = getattr(self.module, self.attribute)
        count, inputs, outputs = self.layout(torch.empty(weight.shape, device="meta"), len(self.labels)).shape
        return count, inputs, outputs

    def matrices(self) -> Iterator[WeightMatrix]:
        weight = getattr(self.module, self.attribute)
        if is_lazy(weight):
            raise ValueError(
                f"{self.name} is not initialized ({type(self.module).__name__}): run one forward pass first"
            )
        if not weight.is_floating_point():
            raise ValueError(f"{self.name} is {weight.dtype}, not floating-point: pass exclude={self.name!r}")
        _, inputs, outputs = self._shape()
        for index, label in enumerate(self.labels):
            name = f"{self.name}[{label}]" if label else self.name
            yield WeightMatrix(
                name,
                self.module,
                self.attribute,
                self.group,
                (inputs, outputs),
                index,
                len(self.labels),
                self.layout,
                self.path,
            )


def _candidates(root: nn.Module, split_fused: bool) -> Iterator[_Candidate]:
    embeddings = (m for m in root.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
    seen = {id(weight) for m in embeddings for weight in m.parameters(recurse=False)}
    modules, published = dict(root.named_modules()), _published(root)
    for path, module in modules.items():
        parent = modules.get(path.rpartition(".")[0])
        for candidate in _of_layer(path, module, parent):
            candidate.name = published(candidate.name)
            # A parametrized weight is recomputed at each access; only registered parameters can be shared.
            weight = module._parameters.get(candidate.attribute)
            if weight is not None:
                if id(weight) in seen or (not is_lazy(weight) and weight.numel() == 0):
                    continue
                seen.add(id(weight))
            if candidate.group in _FUSED.values() and not split_fused:
                candidate.labels = ("",)
            yield candidate


def _of_layer(path: str, module: nn.Module, parent: nn.Module | None) -> Iterator[_Candidate]:
    prefix = f"{path}." if path else ""
    weight = f"{prefix}weight"
    if isinstance(module, nn.Linear):
        parts = _fused_parts(path, module, parent, module.in_features, module.out_features)
        yield _Candidate(weight, module, "weight", parts or "Linear", output_first, tuple(parts) or ("",))
    elif isinstance(module, _ConvNd):
        yield _of_convolution(weight, path, module, parent)
    elif isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            name = f"{prefix}in_proj_weight"
            yield _Candidate(name, module, "in_proj_weight", "qkv", output_first, tuple("qkv"))
        else:
            for attribute in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                yield _Candidate(prefix + attribute, module, attribute, "qkv", output_first)
    elif _is_transformers_conv1d(module):
        inputs, outputs = module.get_parameter("weight").shape
        parts = _fused_parts(path, module, parent, inputs, outputs)
        yield _Candidate(weight, module, "weight", parts or "Conv1D", input_first, tuple(parts) or ("",))


def _of_convolution(name: str, path: str, module: _ConvNd, parent: nn.Module | None) -> _Candidate:
    layout = transposed_convolution if isinstance(module, _ConvTransposeNd) else output_first
    kind = next(c.__name__ for c in type(module).__mro__ if c.__module__ == "torch.nn.modules.conv")
    if module.groups > 1:
        group = "depthwise" if module.out_channels == module.groups else kind
        return _Candidate(name, module, "weight", group, layout, [f"g{i}" for i in range(module.groups)])
    parts = ""
    if layout is output_first and set(module.kernel_size) == {1}:
        parts = _fused_parts(path, module, parent, module.in_channels, module.out_channels)
    return _Candidate(name, module, "weight", parts or kind, layout, tuple(parts) or ("",))


def _fused_parts(path: str, module: nn.Module, parent: nn.Module | None, inputs: int, outputs: int) -> str:
    """Return `"qkv"` or `"kv"` if the layer contains these as contiguous blocks of equal size, else `""`."""
    name = path.rpartition(".")[2]
    parts = _FUSED.get(name, "")
    if name == "c_attn":
        # GPT-BigCode has a Linear of this name that interleaves heads; GPT-2's cross-attention fuses k and v only.
        if not _is_transformers_conv1d(module):
            return ""
        parts = "kv" if outputs == 2 * inputs else parts
    # timm's head-first and halo attention interleave heads; its modules with a separate key size have unequal or
    # interleaved parts.
    if not parts or getattr(parent, "head_first", False) or hasattr(parent, "key_dim") or hasattr(parent, "halo_size"):
        return ""
    # Grouped-query attention has fewer keys than queries; equal parts are whole multiples of the input in practice.
    return parts if outputs % (len(parts) * inputs) == 0 else ""


def _is_transformers_conv1d(module: nn.Module) -> bool:
    # Compared by name, so as not to import transformers; the weight is (input, output), with nf outputs.
    return any(c.__name__ == "Conv1D" for c in type(module).__mro__) and hasattr(module, "nf")


def _matching(names: list[str], argument: str, patterns: str | Sequence[str] | None) -> set[str]:
    matched = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            nearest = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{argument} pattern {pattern!r} matches none of {len(names)} weights; nearest: {nearest!r}"
            )
        matched |= hits
    return matched
