"""Encode the places in an image: the tokens of patches, and the last feature map."""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from .masked_maps import MapLayout, find_map, masked_map
from .patch_tokens import PatchLayout, find_patches, hooked, patch_side, replace_patches
from .position_tables import sincos_positions


class SpatialFeatures(nn.Module):
    """The part of an [`Encoder`] that methods need which mask patches, or compare them.

    The adapter of each library defines `pool`, `patch_embedding`, `last_output`, `_tokens` and `_keeping`.
    """

    backbone: nn.Module
    name: str
    library: str
    image_size: int
    channels: int
    stage_names: list[str]
    # What `patches` has found: a layout, or why there is none.
    _patches: PatchLayout | str | None = None
    _map_layout: MapLayout | None = None

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """Return the output of each stage and the representation, see [`Encoder.stages`]."""
        raise TypeError("SpatialFeatures is abstract: call load_encoder, which returns a concrete subclass")

    @property
    def patches(self) -> PatchLayout:
        """Return how images become patch tokens.

        Raises:
            ValueError: The backbone is no vision transformer whose patches can be left out.
        """
        if self._patches is None:
            try:
                self._patches = find_patches(self)
            except ValueError as error:
                self._patches = str(error)
        if isinstance(self._patches, str):
            raise ValueError(self._patches)
        return self._patches

    def tokens(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Return the tokens of a vision transformer after its last norm: class token and registers, then the patches.

        Args:
            images (`Tensor` of shape `(B, C, H, W)`): Normalized images.
            keep (`Tensor` of shape `(B, K)`, *optional*): Indices, in raster order, of the patches that go through the
                blocks, with their positions; by default all N.
            mask (`Tensor` of shape `(B, N)`, *optional*): Which patches are replaced, as bool; by default none.
            mask_token (`Tensor` of shape `(D,)`, *optional*): What replaces their embeddings, before positions are
                added.

        Returns:
            `Tensor` of shape `(B, prefix + N, D)`, or `(B, prefix + K, D)` in the order of `keep`; see [`PatchLayout`].
        """
        with contextlib.ExitStack() as changes:
            changes.enter_context(self._without_checkpointing(unless=torch.is_grad_enabled()))
            if mask is not None and mask_token is not None:

                def masked(output: Tensor) -> Tensor:
                    return replace_patches(output, mask, mask_token, output.shape[-1] == len(mask_token))

                changes.enter_context(hooked(self.patch_embedding(), masked))
            if keep is not None:
                patch = patch_side(self.patch_embedding())
                changes.enter_context(self._keeping(keep, (images.shape[2] // patch) * (images.shape[3] // patch)))
            return self._tokens(images)

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the representations `(B, num_features)` of tokens `(B, prefix + N, D)`, of some patches or of all."""
        raise ValueError(f"networks of {self.library} have no known patch tokens")

    def representation_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return representations `(B, D)` and the features `(B, d, h, w)` that they are pooled from, of one pass.

        The features of a vision transformer are its patch tokens after the last norm, those of another network the
        output of its last stage, whose activations are kept even with gradient checkpointing.

        Args:
            images (`Tensor` of shape `(B, C, H, W)`): Normalized images.

        Raises:
            ValueError: The last stage returns no map.
        """
        try:
            layout = self.patches
        except ValueError:
            stages = self.stages(images)
            last = stages[self.stage_names[-2]] if len(self.stage_names) > 1 else stages["representation"]
            if last.ndim != 4:
                raise ValueError(
                    f"backbone {self.name!r} has neither patch tokens nor a feature map at its end: pass a vision "
                    "transformer or a convolutional network"
                ) from None
            return stages["representation"], last
        tokens = self.tokens(images)
        return self.pool(tokens), tokens[:, layout.prefix :].mT.unflatten(2, layout.grid(images.shape[-1]))

    def patch_embedding(self) -> nn.Module:
        """Return the layer that embeds patches."""
        raise ValueError(f"networks of {self.library} have no known layer that embeds patches")

    def freeze_pooling(self) -> None:
        """Freeze the parameters that only the representation needs, for a loss that depends on tokens alone."""
        for name in self.patches.pooling_parameters:
            self.backbone.get_parameter(name).requires_grad_(False)

    def fix_positions(self) -> None:
        """Set the learned positions of patches to fixed sines and cosines, which are not trained; prefixes have none.

        A vision transformer without a table of positions (rotary ones) stays as it is.

        Source: MAE, He et al. 2022, appendix A.1; I-JEPA, Assran et al. 2023, appendix A.1.

        Raises:
            ValueError: The width of its tokens is not a multiple of 4.
        """
        table, layout = self._position_table(), self.patches
        if table is None:
            return
        if layout.width % 4:
            raise ValueError(
                f"backbone {self.name!r} has tokens of width {layout.width}, and fixed positions need a multiple of 4: "
                "pass --method_config fixed_positions=false"
            )
        positions = sincos_positions(*layout.grid(self.image_size), layout.width, device=table.device)
        with torch.no_grad():
            table.zero_()[:, -len(positions) :] = positions.to(table.dtype)
        table.requires_grad_(False)

    def _position_table(self) -> nn.Parameter | None:
        """Return the learned positions `(1, N or prefix + N, D)`, or `None` if there are none."""
        names = ("pos_embed", "embeddings.position_embeddings")
        return next((table for name, table in self.backbone.named_parameters() if name in names), None)

    @property
    def map_layout(self) -> MapLayout:
        """Return what a mask token replaces in images, and what a position of the last feature map sees.

        Raises:
            ValueError: The backbone has no map whose positions divide its images.
        """
        if self._map_layout is None:
            self._map_layout = find_map(self)
        return self._map_layout

    def feature_map(self, images: Tensor, *, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Return the last feature map of any backbone, after its last norm; of a transformer that of its patches.

        Args:
            images (`Tensor` of shape `(B, C, H, W)`): Normalized images.
            mask (`Tensor` of shape `(B, rows, columns)`, *optional*): Which cells of an image are replaced, as bool; a
                cell is a patch or a pixel, see [`MapLayout`]. By default none.
            mask_token (`Tensor` of shape `(token_width,)`, *optional*): What replaces them.

        Returns:
            `Tensor` of shape `(B, D, h, w)`.
        """
        with self._without_checkpointing(unless=torch.is_grad_enabled()):
            return masked_map(self, self.map_layout, images, mask, mask_token)

    def last_output(self, images: Tensor) -> Tensor:
        """Return the last output before pooling: a map with its channels first, or tokens.

        By default that of the last stage that has several positions.
        """
        outputs = [output for output in self.stages(images).values() if output.ndim > 2]
        outputs = [output for output in outputs if output.shape[2:].numel() > 1] or outputs
        if not outputs:
            raise ValueError("none of its stages has positions")
        return outputs[-1]

    def freeze_after_map(self) -> None:
        """Freeze the parameters on which the last feature map does not depend, for a loss of the map alone."""
        for name in self.map_layout.other_parameters:
            self.backbone.get_parameter(name).requires_grad_(False)

    def _tokens(self, images: Tensor) -> Tensor:
        """Return all tokens of the backbone, or those that `_keeping` keeps."""
        raise ValueError(f"networks of {self.library} have no known patch tokens")

    def _keeping(self, keep: Tensor, patches: int) -> AbstractContextManager[None]:
        """Keep some of all `patches` of an image only, within this context."""
        raise ValueError(f"networks of {self.library} have no known patch tokens")

    def _without_checkpointing(self, unless: bool = False) -> AbstractContextManager[None]:
        """Keep activations in forward passes within this context, whatever is set, unless `unless`."""
        raise TypeError("SpatialFeatures is abstract: call load_encoder, which returns a concrete subclass")
