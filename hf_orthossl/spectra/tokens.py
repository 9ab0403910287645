"""Read the class token and the patch tokens of a vision transformer, as its last norm returns them."""

from typing import Any

from torch import Tensor, nn

from .stages import CLASS_TOKEN, PATCH_TOKENS


class TokenReader:
    """Keep the tokens of each forward pass of a vision transformer of timm or transformers.

    Those of timm are the output of `forward_features`, those of transformers `last_hidden_state`. Networks of other
    kinds have none.

    Args:
        model (`nn.Module`): The network, or an `hf_orthossl` encoder around it.

    Attributes:
        names (`tuple[str, ...]`): `"class_token"`, if there is one, and `"patch_tokens"`; empty for other networks.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = getattr(model, "backbone", None)
        self._network = inner if isinstance(inner, nn.Module) else model
        self._tokens: Tensor | None = None
        self._patches = 0
        self.names: tuple[str, ...] = ()
        self._hooks: list[Any] = []
        prefix, norm = getattr(self._network, "num_prefix_tokens", None), getattr(self._network, "norm", None)
        patch = getattr(getattr(self._network, "config", None), "patch_size", None)
        if isinstance(prefix, int) and isinstance(norm, nn.Module):
            self._prefix: int | None = prefix
            self.names = (CLASS_TOKEN, PATCH_TOKENS) if _has_class_token(self._network) else (PATCH_TOKENS,)
            self._hooks = [norm.register_forward_hook(self._store)]
        elif isinstance(patch, int) and _is_tower(self._network):
            self._prefix = None
            self.names = (CLASS_TOKEN, PATCH_TOKENS) if _has_class_token(self._network) else (PATCH_TOKENS,)
            self._patch = patch
            self._hooks = [
                self._network.register_forward_pre_hook(self._count_patches, with_kwargs=True),
                self._network.register_forward_hook(self._store),
            ]

    def close(self) -> None:
        """Remove the hooks from the network."""
        for hook in self._hooks:
            hook.remove()

    def read(self) -> dict[str, Tensor]:
        """Return the tokens of the last forward pass: `"class_token"` `(B, D)` and `"patch_tokens"` `(B, N, D)`.

        Registers and other tokens before those of the patches are left out. Empty if the network returned no tokens.
        """
        tokens, self._tokens = self._tokens, None
        if tokens is None or tokens.ndim != 3:
            return {}
        prefix = tokens.shape[1] - self._patches if self._prefix is None else self._prefix
        if not 0 <= prefix < tokens.shape[1] or (prefix == 0 and CLASS_TOKEN in self.names):
            return {}
        found = {CLASS_TOKEN: tokens[:, 0], PATCH_TOKENS: tokens[:, prefix:]}
        return {name: found[name] for name in self.names}

    def _count_patches(self, _module: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
        images = inputs[0] if inputs else named.get("pixel_values")
        if isinstance(images, Tensor) and images.ndim == 4:
            self._patches = (images.shape[2] // self._patch) * (images.shape[3] // self._patch)

    def _store(self, _module: nn.Module, _inputs: tuple, output: Any) -> None:
        tokens = getattr(output, "last_hidden_state", output)
        self._tokens = tokens if isinstance(tokens, Tensor) else None


def token_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers of tokens that a network has, see [`TokenReader`]."""
    reader = TokenReader(model)
    reader.close()
    return reader.names


def _has_class_token(network: nn.Module) -> bool:
    names = {name.rpartition(".")[2] for name, _ in network.named_parameters()}
    return not names.isdisjoint(("cls_token", "class_embedding"))


def _is_tower(network: nn.Module) -> bool:
    """Return whether a network of transformers is a vision transformer, whose blocks all see one row of tokens."""
    config = getattr(network, "config", None)
    return isinstance(getattr(config, "hidden_size", None), int) and isinstance(
        getattr(config, "num_hidden_layers", None), int
    )
