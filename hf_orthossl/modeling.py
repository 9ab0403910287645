"""The model that both training fronts train: encoder, SSL method and orthogonality penalty as one."""

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from .distributed.collectives import rank, world_size
from .distributed.gather import all_gather
from .distributed.sharding import block_classes
from .encoders import Encoder, load_encoder
from .messages import suggest
from .methods import METHODS, ChunkedEncoder, Progress, SSLOutput, build_method, get_method
from .methods.losses import whitening_terms
from .regularization import PENALTIES, OrthogonalityRegularizer, check_options


class SSLConfig(PretrainedConfig):
    """Everything that determines an [`SSLModel`]'s architecture and loss.

    Args:
        backbone (`str`, defaults to "resnet18"): A timm name, a Hub id or an encoder folder.
        image_size (`int`, *optional*): Side of the encoder's input in pixels; the backbone's own by default.
        backbone_config (`dict`, *optional*): Further arguments of the backbone, such as `{"patch_size": 4}`.
        method (`str`, defaults to "byol"): A name from `orthossl methods`, or one given to [`register_method`].
        method_config (`dict`, *optional*): The method's hyper-parameters; its recipe's by default.
        regularizer (`str`, *optional*): The name of a penalty, see `PENALTIES`; `None` or "none" trains without one.
        gamma (`float`, defaults to 1e-6): Weight γ ≥ 0 of the penalty. The NeurIPS 2024 paper tuned it over
            1e-5…1e-7 for SO and 1e-3…1e-5 for SRIP.
        regularizer_config (`dict`, *optional*): Further arguments of [`OrthogonalityRegularizer`].
        penalty_every (`int`, defaults to 1): The penalty is computed at every so many optimizer steps, the first among
            them, and counts as many times: over these steps its gradient is the same on average (the lazy
            regularization of Karras et al., StyleGAN2, CVPR 2020, §3.1; the optimizer's settings stay as they are).
        whitening (`float`, defaults to 0): Weight γ_vic ≥ 0 of feature whitening, the paper's baseline: VICReg's
            variance term, and its covariance term times 0.004, on the predictor's output. The paper tuned it over
            1e-3…1e-5.

    Raises:
        ValueError: unknown method, regularizer or hyper-parameter, a negative weight, `penalty_every` < 1, or whitening
            of a method that has no predictor.
    """

    model_type = "orthossl"

    def __init__(
        self,
        backbone: str = "resnet18",
        image_size: int | None = None,
        backbone_config: dict | None = None,
        method: str = "byol",
        method_config: dict | None = None,
        regularizer: str | None = None,
        gamma: float = 1e-6,
        regularizer_config: dict | None = None,
        penalty_every: int = 1,
        whitening: float = 0.0,
        **kwargs,
    ):
        self.backbone = backbone
        self.image_size = image_size
        self.backbone_config = dict(backbone_config or {})
        self.method = method
        # Stored in full, so that a saved run says what it used even where it used a default.
        self.method_config = get_method(method).config_class.from_dict(method_config).to_dict()
        self.regularizer = None if regularizer in (None, "none") else regularizer
        if self.regularizer not in (None, *PENALTIES):
            raise ValueError(f"regularizer {regularizer!r} is unknown: {suggest(regularizer, ['none', *PENALTIES])}")
        if not gamma >= 0:
            raise ValueError(f"gamma is {gamma}: the penalty's weight must be 0 or more, as in 1e-6")
        self.gamma = gamma
        self.regularizer_config = dict(regularizer_config or {})
        if self.regularizer is not None:
            check_options(self.regularizer, self.regularizer_config)
        elif self.regularizer_config:
            raise ValueError(
                'regularizer_config is given without a regularizer: pass regularizer="so", or leave it out'
            )
        if penalty_every < 1 or penalty_every != int(penalty_every):
            raise ValueError(f"penalty_every is {penalty_every}: the penalty is computed at every 1, 2, 3, … steps")
        self.penalty_every = int(penalty_every)
        if not whitening >= 0:
            raise ValueError(f"whitening is {whitening}: its weight must be 0 or more, as in 1e-4")
        if whitening and not get_method(method).has_predictor:
            able = ", ".join(name for name, kind in METHODS.items() if kind.has_predictor)
            raise ValueError(f"whitening acts on the predictor's output and {method} has none: choose from {able}")
        self.whitening = whitening
        super().__init__(**kwargs)


class SSLModel(PreTrainedModel):
    """Encoder, method and penalty; `forward(views)` returns the loss of one batch.

    Both fronts, [`OrthoSSLTrainer`] and the accelerate loop, train it; so can any other loop:

    ```python
    for step, views in enumerate(batches):            # views: two tensors (B, 3, H, W), normalized
        model.begin_step(Progress(step, max_steps, steps_per_epoch))
        model(views).loss.backward()
        model.before_optimizer_step()
        optimizer.step(); optimizer.zero_grad()
        model.end_step()                              # target networks, queues and centres advance
    ```

    Args:
        config ([`SSLConfig`]): Architecture and loss.
        encoder ([`Encoder`], *optional*): The encoder to train; built from `config`, untrained, by default.

    Attributes:
        gradient_cache (`int`, *optional*): Images of a chunk in which the encoder goes through the batch, its
            activations computed anew for the backward pass: losses that couple the whole batch then need the memory of
            a chunk, at a third more time. Batch norm within the encoder sees a chunk only. `None` turns it off; see
            [`ChunkedEncoder`].
    """

    config_class = SSLConfig
    main_input_name = "views"
    # The loss is a mean over the batch: the Trainer divides by its accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: SSLConfig, encoder: Encoder | None = None):
        super().__init__(config)
        self.encoder = encoder or load_encoder(config.backbone, image_size=config.image_size, **config.backbone_config)
        self.method = build_method(config.method, self.encoder, config.method_config)
        self.regularizer = None
        if config.regularizer is not None:
            self.regularizer = OrthogonalityRegularizer(self.encoder, config.regularizer, **config.regularizer_config)
        self.gradient_cache: int | None = None
        self.post_init()
        # What FSDP shards block by block.
        self._no_split_modules = block_classes(self.encoder)

    def _init_weights(self, module):
        """Nothing: encoder and heads initialize themselves, and timm's initialization must survive."""

    def get_input_embeddings(self) -> None:
        """None: images have no table of embeddings; accelerate asks for it before it shards a model."""
        return None

    def initialize_weights(self):
        super().initialize_weights()
        # `from_pretrained` leaves buffers that are not in the checkpoint (Swin's index tables) uninitialized.
        for module in self.modules():
            if isinstance(module, Encoder):
                module.restore_buffers()

    # Not compiled itself, what it calls is: it depends on the number of the step, and would be compiled at every one.
    @torch.compiler.disable(recursive=False)
    def forward(self, views: list[Tensor], penalty_weight: float = 1.0) -> SSLOutput:
        """The loss of one batch: the method's, plus `penalty_weight`·γ·Σ OR(W) at the steps that compute it.

        The part `orthogonality` is γ·Σ OR(W) at these steps, and missing from the others.

        Args:
            views (`list[Tensor]`): V tensors of shape `(B, 3, H, W)`, normalized as the encoder expects.
            penalty_weight (`float`, defaults to 1.0): 0 leaves the penalty out. With n accumulation steps, pass n
                to the last and 0 to the others: it then counts once per optimizer step. Where the penalty is computed
                at every k-th step only, it is multiplied by k in here.
        """
        encoder = self.encoder
        if self.gradient_cache is not None:
            encoder = ChunkedEncoder(encoder, self.gradient_cache)
        output = self.method(encoder, views)
        output.parts["ssl"] = output.loss.detach()
        if self.config.whitening:
            whitening = self.config.whitening * sum(whitening_terms(all_gather(p)) for p in output.predictions)
            output.parts["whitening"] = whitening.detach()
            output.loss = output.loss + whitening
        every = self.config.penalty_every
        if self.regularizer is not None and penalty_weight and self.method.progress.step % every == 0:
            # After the layers, so that it is differentiated before them: FSDP passes a layer's gradients on only once.
            penalty = self.config.gamma * self._shared_penalty()
            output.parts["orthogonality"] = penalty.detach()
            output.loss = output.loss + (penalty_weight * every) * penalty
        return output

    def penalty(self) -> Tensor:
        """Σ OR(W) over the encoder's matrices, before γ; its random vectors follow from seed and step."""
        return self.regularizer(self.method.progress.generator(self.device))

    @torch.compiler.disable
    def _shared_penalty(self) -> Tensor:
        """This process's share of [`penalty`], which is the mean over processes."""
        generator = self.method.progress.generator(self.device)
        return self.regularizer(generator, process=rank(), processes=world_size())

    def begin_step(self, progress: Progress) -> None:
        """Call before the first forward pass of an optimizer step."""
        self.method.begin_step(progress)

    def before_optimizer_step(self) -> None:
        """Call when the gradients are final, before the optimizer."""
        self.method.before_optimizer_step()

    def end_step(self, skipped: bool = False) -> None:
        """Call after the optimizer; `skipped` says that mixed precision made it skip the step."""
        self.method.end_step(self.encoder, skipped)
