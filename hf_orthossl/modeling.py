"""Build the model that the Trainer and the accelerate loop train: an encoder with an SSL method and a penalty."""

import os
from collections.abc import Collection
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from .configuration import AUTO, SSLConfig
from .distributed.collectives import rank, world_size
from .distributed.gather import all_gather
from .distributed.sharding import block_classes
from .encoders import Encoder, ModuleEncoder, load_encoder
from .encoders.export import separate_weights
from .methods import (
    ChunkedEncoder,
    EmbeddingRegularizer,
    Progress,
    SSLOutput,
    build_method,
    get_embedding_regularizer,
)
from .methods.losses import whitening_terms
from .regularization import OrthogonalConstraint, OrthogonalityRegularizer, check_decoupled


class SSLModel(PreTrainedModel):
    """Encoder, method and penalty as one model; `forward(views)` returns the loss of one batch.

    [`OrthoSSLTrainer`] and [`pretrain_loop`] train it, and so can any other loop.

    Args:
        config ([`SSLConfig`]): Architecture and loss.
        encoder ([`Encoder`] or `nn.Module`, *optional*): The encoder to train; by default built from `config`, with the
            weights of `config.pretrained` or random ones. A module of your own becomes a [`ModuleEncoder`] for images
            of `config.image_size`, or 224, pixels.

    Attributes:
        gradient_cache (`int`, *optional*): Number of images per chunk in which the encoder processes the batch,
            recomputing activations in the backward pass: a loss that couples the whole batch then needs the memory of a
            chunk, at a third more time. Batch norm within the encoder sees one chunk at a time. `None` turns it off;
            see [`ChunkedEncoder`].
        precision (`dict[str, str]`): The precision of the last forward pass: that of autocast where it was active, with
            that of the weights beside it, else that of the weights.

    Example:
        ```python
        model = SSLModel(SSLConfig(image_size=32))
        for step, views in enumerate(batches):            # views: two tensors (B, C, H, W), normalized
            model.begin_step(Progress(step, max_steps, steps_per_epoch))
            model(views).loss.backward()
            model.before_optimizer_step()
            optimizer.step(); optimizer.zero_grad()
            model.end_step()                              # a decoupled penalty; target networks, queues, centres
        ```
    """

    config_class = SSLConfig
    main_input_name = "views"
    # The loss is a mean over the batch, so that the Trainer divides it by its accumulation steps.
    accepts_loss_kwargs = False
    # Names of parameters of the encoder's backbone, see `set_frozen`.
    _frozen: frozenset[str] = frozenset()

    def __init__(self, config: SSLConfig, encoder: nn.Module | None = None):
        super().__init__(config)
        if encoder is None:
            # `from_pretrained` builds models on the meta device, and their weights are those of the checkpoint.
            starts = config.pretrained is not None and torch.empty(0).device.type != "meta"
            encoder = load_encoder(
                config.backbone,
                pretrained=starts,
                image_size=config.image_size,
                in_chans=config.channels,
                **config.backbone_config,
            )
            if config.pretrained is None and config.method_config.get("fixed_positions"):
                encoder.fix_positions()
        elif isinstance(encoder, nn.Module) and not isinstance(encoder, Encoder):
            encoder = ModuleEncoder(encoder, config.image_size or 224, channels=config.channels or 3)
        if isinstance(encoder, ModuleEncoder):
            # What is trained is what is recorded.
            config.backbone, config.backbone_config, config.image_size = encoder.name, {}, encoder.image_size
        if config.normalization == "backbone" and not encoder.knows_normalization:
            raise ValueError(
                f"normalization is backbone, and {config.backbone!r} knows none of {encoder.channels} channels: pass "
                "--normalization data"
            )
        if config.mean is not None and config.std is not None:
            encoder.set_normalization(config.mean, config.std)
        self.encoder = encoder
        self.constraint: OrthogonalConstraint | None = None
        if config.constrain is not None:
            self.constraint = OrthogonalConstraint(self.encoder)
            # Before the method copies the encoder; the weights of a checkpoint are orthonormal already.
            if torch.empty(0).device.type != "meta":
                self.constraint.begin()
        self.method = build_method(config.method, self.encoder, config.method_config)
        self.regularizer: OrthogonalityRegularizer | None = None
        if config.regularizer is not None:
            self.regularizer = OrthogonalityRegularizer(self.encoder, config.regularizer, **config.regularizer_config)
            if config.penalty_mode == "decoupled":
                check_decoupled(self.regularizer.penalty, self.regularizer.matrices)
            if self.regularizer.references is not None:
                # Registered, so that checkpoints hold them.
                self.penalty_references = self.regularizer.references
        self.embedding_regularizer: EmbeddingRegularizer | None = None
        if config.embedding_regularizer is not None:
            kind = get_embedding_regularizer(config.embedding_regularizer)
            self.embedding_regularizer = kind.from_dict(config.embedding_config)
            self.embedding_regularizer.check()
        self.gradient_cache: int | None = None
        self.precision: dict[str, str] = {}
        self.post_init()
        # The blocks that FSDP shards one by one.
        self._no_split_modules = block_classes(self.encoder)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: encoder and heads initialize themselves, and timm's initialization must be kept."""

    def get_input_embeddings(self) -> None:  # type: ignore[override]  # text models have one
        """Return `None`, since images have no embedding table; accelerate asks for it before it shards a model."""
        return None

    def initialize_weights(self) -> None:
        """Restore the buffers that checkpoints do not hold."""
        super().initialize_weights()
        # `from_pretrained` leaves buffers that are not in the checkpoint (Swin's index tables) uninitialized.
        for module in self.modules():
            if isinstance(module, Encoder):
                module.restore_buffers()

    def keep_normalization(self) -> None:
        """Write the encoder's mean and standard deviation, measured after it was built, into the config."""
        self.config.mean, self.config.std = list(self.encoder.mean), list(self.encoder.std)

    def save_pretrained(  # type: ignore[override]  # the arguments between these two are handed on
        self, save_directory: str | os.PathLike, *, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write config and weights; tied weights, which safetensors refuses, are written under each of their names."""
        weights = separate_weights(self.state_dict() if state_dict is None else state_dict)
        super().save_pretrained(save_directory, state_dict=weights, **kwargs)

    # Only the calls are compiled: this method depends on the step number and would be recompiled at each step.
    @torch.compiler.disable(recursive=False)
    def forward(self, views: list[Tensor], penalty_weight: float = 1.0) -> SSLOutput:
        """Return the loss of one batch: the method's, plus `penalty_weight`·γ·Σ OR(W) at steps that compute it.

        At these steps the output has a part `orthogonality`, which is γ·Σ OR(W); a decoupled penalty is no part of the
        loss, and acts in [`~SSLModel.end_step`]. With an embedding regularizer, w times
        its term is added too, and is the part of its name.

        Args:
            views (`list[Tensor]`): V tensors of shape `(B, C, H, W)`, normalized as the encoder expects.
            penalty_weight (`float`, defaults to 1.0): 0 leaves the penalty out. With n accumulation steps, pass n to
                the last and 0 to the others, so that it counts once per optimizer step. If the penalty is computed at
                every k-th step only, `forward` multiplies it by k.

        Returns:
            `SSLOutput`: The loss, its detached parts by name, and what the method computed.
        """
        self.precision = _precision(views[0].device, next(self.encoder.parameters()).dtype)
        encoder: nn.Module = self.encoder
        if self.gradient_cache is not None:
            encoder = ChunkedEncoder(encoder, self.gradient_cache)
        self.method.begin_batch(len(views[0]))
        output = self.method(encoder, views)
        output.parts["ssl"] = output.loss.detach()
        if self.config.whitening:
            whitening = self.config.whitening * sum(whitening_terms(all_gather(p)) for p in output.predictions)
            output.parts["whitening"] = whitening.detach()
            output.loss = output.loss + whitening
        if self.embedding_regularizer is not None:
            term = self.config.embedding_weight * self._embedding_term(output)
            output.parts[f"embedding_{self.embedding_regularizer.name}"] = term.detach()
            output.loss = output.loss + term
        if penalty_weight and self._penalty_is_due("loss") and not self.is_measuring:
            # After the layers, so that it is differentiated before them: FSDP reduces the gradients of a layer once.
            penalty = self.gamma * self.shared_penalty()
            output.parts["orthogonality"] = penalty.detach()
            output.loss = output.loss + (penalty_weight * self.config.penalty_every) * penalty
        return output

    def _penalty_is_due(self, mode: str) -> bool:
        """Return whether the penalty acts at this optimizer step, and in this way."""
        if self.regularizer is None or self.config.penalty_mode != mode:
            return False
        return self.method.progress.step % self.config.penalty_every == 0

    @property
    def is_measuring(self) -> bool:
        """Return whether γ is being measured: it is 0 meanwhile, and the gradients are those of the loss alone."""
        return self.config.gamma == AUTO and self.gamma == 0

    @property
    def gamma(self) -> float:
        """Return the weight γ of a penalty in the loss; 0 without a penalty, and while the first steps measure it.

        Raises:
            ValueError: It is to be measured, and no training run of this package has begun.
        """
        gamma = self.config.measured_gamma if self.config.gamma == AUTO else self.config.gamma
        if gamma is None:
            raise ValueError(
                f"gamma is {AUTO}, which OrthoSSLTrainer and pretrain_loop measure: in your own loop, pass a number"
            )
        return gamma

    def regularized(self, output: SSLOutput) -> list[Tensor]:
        """Return what the embedding regularizer acts on: one tensor `(B, d)` for each view."""
        return output.embeddings if self.config.embedding_layer == "embedding" else output.representations

    def _embedding_term(self, output: SSLOutput) -> Tensor:
        """Return the term of the embedding regularizer, without its weight, of the batch of all processes."""
        assert self.embedding_regularizer is not None
        views = self.regularized(output)
        term = self.embedding_regularizer(views, self.method.progress.generator(views[0].device))
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.encoder.parameters())
        if trained and not term.requires_grad:
            raise ValueError(
                f"embedding_regularizer is {self.config.embedding_regularizer}, but the {self.config.embedding_layer} "
                f"that method {self.config.method!r} returns has no gradient: return it as the networks gave it, "
                "without detach()"
            )
        return term

    def penalty(self) -> Tensor:
        """Return Σ OR(W) over the encoder's matrices, without γ; seed and step determine its random vectors.

        Raises:
            ValueError: The model has no penalty.
        """
        if self.regularizer is None:
            raise ValueError('the model has no penalty: set regularizer in its config, such as "so"')
        return self.regularizer(self.method.progress.generator(self.device))

    @torch.compiler.disable
    def shared_penalty(self) -> Tensor:
        """Return this process's share of [`penalty`] over what is trained, which is the mean over processes."""
        assert self.regularizer is not None
        generator = self.method.progress.generator(self.device)
        return self.regularizer(generator, process=rank(), processes=world_size(), trained_only=True).to(self.device)

    def set_frozen(self, names: Collection[str]) -> None:
        """Freeze parameters of the encoder, and train again those that an earlier call froze.

        Frozen parameters have no gradient and no penalty. A batch norm whose parameters are all frozen normalizes by
        its running statistics, which do not change; so do its copies in target networks.

        Args:
            names (collection of `str`): Names of parameters of `encoder.backbone`; none trains all.
        """
        if not names and not self._frozen:
            return
        for name, parameter in self.encoder.backbone.named_parameters():
            if name in names:
                parameter.requires_grad_(False)
                parameter.grad = None
            elif name in self._frozen:
                parameter.requires_grad_(True)
        self._frozen = frozenset(names)
        self.train(self.training)

    @property
    def frozen(self) -> frozenset[str]:
        """Return the names of the parameters of `encoder.backbone` that [`set_frozen`] has frozen."""
        return self._frozen

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if mode and self._frozen:
            for module in self.modules():
                if isinstance(module, Encoder):
                    for norm in frozen_norms(module.backbone, self._frozen):
                        norm.eval()
        return self

    def begin_step(self, progress: Progress) -> None:
        """Tell the method that an optimizer step begins, before its first forward pass."""
        self.method.begin_step(progress)

    def before_optimizer_step(self) -> None:
        """Let the method change the final gradients, before the optimizer."""
        self.method.before_optimizer_step()

    def end_step(self, skipped: bool = False, schedule: float = 1.0) -> dict[str, Tensor]:
        """Take the decoupled step of the penalty or apply the constraint, and advance target networks and queues.

        Call it after the optimizer, on all processes. Target networks follow the weights after that.

        Args:
            skipped (`bool`, defaults to `False`): Whether mixed precision made the optimizer skip the step.
            schedule (`float`, defaults to 1.0): The learning rate of the step as a share of its peak, by which the
                strength of a decoupled step is multiplied.

        Returns:
            `dict[str, torch.Tensor]`: What there is to log: with a decoupled step `orthogonality`, Σ OR(W) over what is
            trained, of the weights that the optimizer left and without λ; of this process's share, the mean over
            processes of which is the whole.
        """
        parts = {}
        if not skipped and self._penalty_is_due("decoupled"):
            assert self.regularizer is not None
            strength = self.config.strength * self.config.penalty_every * schedule
            value = self.regularizer.step(strength, process=rank(), processes=world_size())
            parts["orthogonality"] = value.to(self.device)
        if not skipped and self.constraint is not None:
            self.constraint.apply(process=rank(), processes=world_size())
        self.method.end_step(self.encoder, skipped)
        return parts


def frozen_norms(backbone: nn.Module, names: Collection[str]) -> list[_BatchNorm]:
    """Return the batch norms of a backbone whose parameters are all frozen; those without any, if everything is.

    Args:
        backbone (`nn.Module`): The backbone.
        names (collection of `str`): The frozen parameters.
    """
    everything = all(name in names for name, _ in backbone.named_parameters())
    frozen = []
    for path, module in backbone.named_modules():
        if isinstance(module, _BatchNorm):
            own = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
            if everything or (own and all(name in names for name in own)):
                frozen.append(module)
    return frozen


def _precision(device: torch.device, weights: torch.dtype) -> dict[str, str]:
    """Return the precision of a forward pass that is being computed, by name of a setting."""
    names = {"weights_precision": str(weights).removeprefix("torch.")}
    if not torch.is_autocast_enabled(device.type):
        return {"precision": names["weights_precision"]}
    return {"precision": str(torch.get_autocast_dtype(device.type)).removeprefix("torch."), **names}
