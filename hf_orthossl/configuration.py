"""Say what an [`SSLModel`] is made of: architecture, method, penalty and regularizers, checked before any is built."""

from typing import Any

from transformers import PretrainedConfig

from .data.options import NORMALIZATIONS, PUBLISHED
from .messages import suggest
from .methods import EMBEDDING_REGULARIZERS, METHODS, get_embedding_regularizer, get_method
from .options import named_backbone
from .regularization import MAX_STRENGTH, PENALTIES, check_options, without_step

# How a penalty acts on the weights, the default first.
PENALTY_MODES = ("loss", "decoupled")
# The γ of a penalty that the first steps of a run measure.
AUTO = "auto"
# What the weights can be constrained to.
CONSTRAINTS = ("orthogonal",)
# What an embedding regularizer can act on, the default first.
EMBEDDING_LAYERS = ("embedding", "representation")


def default_gamma(regularizer: str | None) -> float:
    """Return the default weight γ of a penalty, 0 for "none" and `None`."""
    return PENALTIES[regularizer].default_gamma if regularizer in PENALTIES else 0.0


def default_strength(regularizer: str | None) -> float:
    """Return the default strength λ of a penalty's decoupled step, 0 for one without such a step."""
    return PENALTIES[regularizer].default_strength if regularizer in PENALTIES else 0.0


def _check_gamma(gamma: float | str, regularizer: str | None) -> None:
    """Reject a weight γ that is out of range, or that cannot be measured for a penalty."""
    if not isinstance(gamma, str):
        if not gamma >= 0:
            raise ValueError(f"gamma is {gamma}: the penalty's weight must be 0 or more, as in 1e-6")
        return
    if gamma != AUTO:
        raise ValueError(f"gamma is {gamma!r}: it must be a number, as in 1e-6, or {AUTO}")
    if regularizer is None:
        raise ValueError(
            f"gamma is {AUTO}, but there is no penalty to weight: pass a regularizer, as in so, or leave gamma out"
        )
    if PENALTIES[regularizer].has_reference:
        raise ValueError(
            f"gamma is {AUTO}, which compares gradients of the first steps, and {regularizer} has none at the start: "
            "pass a number, as in 1e-6"
        )
    if PENALTIES[regularizer].is_noisy:
        raise ValueError(
            f"gamma is {AUTO}, which compares gradients of single steps, and those of {regularizer} are mostly noise: "
            "pass a number, as in 1e-6"
        )


def default_embedding_weight(kind: str | None) -> float | None:
    """Return the default weight w of an embedding regularizer, `None` for "none" and `None`."""
    return EMBEDDING_REGULARIZERS[kind].default_weight if kind in EMBEDDING_REGULARIZERS else None


class SSLConfig(PretrainedConfig):
    """Architecture and loss of an [`SSLModel`], with the defaults of `orthossl pretrain`.

    `SSLConfig()` is the model that `orthossl pretrain` trains without options: `resnet10t`, small enough for the
    embedded digits on a CPU, with SimCLR and the SO penalty. State all three explicitly in a run to be published.

    Args:
        backbone (`str`, *optional*): A timm name, a Hub id or an encoder folder; by default that of `pretrained`, else
            "resnet10t".
        image_size (`int`, *optional*): Side of the encoder's input in pixels; by default that of the backbone.
        backbone_config (`dict`, *optional*): Further arguments of the backbone, such as `{"patch_size": 4}`.
        channels (`int`, *optional*): Number of channels of the images; by default that of the backbone, mostly 3.
        normalization (`str`, *optional*): The mean and standard deviation of each channel by which images are
            normalized: those of the "backbone", of "data", which are measured before training, or the published ones of
            "cifar10", "cifar100" or "imagenet". By default the backbone's, and the data's for channels that it has
            never seen.
        mean (`list[float]`, *optional*): The mean of each channel on the scale [0, 1], once it is known.
        std (`list[float]`, *optional*): The standard deviation of each channel.
        measured_gamma (`float`, *optional*): The γ in use where `gamma` is "auto"; a training run sets it.
        method (`str`, defaults to "simclr"): A name from `orthossl methods`, or one given to [`register_method`].
        method_config (`dict`, *optional*): The method's hyper-parameters; by default those of its recipe.
        regularizer (`str`, *optional*, defaults to "so"): The name of a penalty, see `PENALTIES`; `None` or "none"
            trains without one.
        gamma (`float` or "auto", *optional*): Weight γ ≥ 0 of the penalty; by default the `default_gamma` of the
            penalty, which is the middle of the range the NeurIPS 2024 paper tuned over: 1e-5…1e-7 for SO, 1e-3…1e-5 for
            SRIP. With "auto" the first steps measure it, see [`~training.auto_gamma.AutoGamma`].
        penalty_mode (`str`, defaults to "loss"): "loss" adds γ times the penalty to the loss. "decoupled" instead steps
            the weights after each optimizer step, as AdamW decouples weight decay:
            `W ← W − λ·(lr/peak)·W(WᵀW − I)` for SO, see [`OrthogonalityRegularizer.step`]. Such a step passes neither
            through the gradients, which the loss, clipping and the optimizer's scaling change, nor through momentum.
            lr/peak is the schedule's factor at that step, the same for all weights: `layer_decay` says how fast a
            layer learns from the loss, not how orthogonal it is to be.
        strength (`float`, *optional*): λ of the decoupled step, from 0 to 0.5; by default the `default_strength` of the
            penalty.
        regularizer_config (`dict`, *optional*): Further arguments of [`OrthogonalityRegularizer`].
        penalty_every (`int`, defaults to 1): Compute the penalty at every `penalty_every`-th optimizer step, starting
            with the first, multiplied by `penalty_every`: its gradient is the same on average (the lazy regularization
            of Karras et al., StyleGAN2, CVPR 2020, §3.1; the settings of the optimizer are not adapted). A decoupled
            step is then taken at these steps, with `penalty_every` times the strength, bounded all the same.
        constrain (`str`, *optional*): "orthogonal" keeps the matrices of the encoder that penalties select orthonormal
            on their smaller side: they are at the start, those of given weights too, and are replaced by the nearest
            orthonormal ones after each optimizer step, see [`~regularization.OrthogonalConstraint`]. There is no
            penalty beside it. By default weights are free.
        whitening (`float`, defaults to 0): Weight γ_vic ≥ 0 of feature whitening, the paper's baseline: VICReg's
            variance term, and its covariance term times 0.004, on the output of the predictor. The paper tuned it over
            1e-3…1e-5.
        embedding_regularizer (`str`, *optional*): The name of an embedding regularizer, see `EMBEDDING_REGULARIZERS`;
            by default there is none. w times its term, of the batch of all processes, is added to the method's loss.
        embedding_weight (`float`, *optional*): Weight w ≥ 0; by default the `default_weight` of the regularizer.
        embedding_layer (`str`, defaults to "embedding"): What it acts on: the "embedding", which is the projector's
            output, or the "representation", which is the encoder's.
        embedding_config (`dict`, *optional*): Options of the embedding regularizer; by default the published ones.
        pretrained (`str`, *optional*): The weights that the encoder starts from: a timm name, a Hub id, an encoder
            folder or a run folder, which names the backbone too. Position embeddings are resampled to `image_size`. By
            default the weights are random. [`SSLModel.from_pretrained`] does not read them again.
        kwargs: Further arguments of `PretrainedConfig`.

    Raises:
        ValueError: Unknown method, penalty, regularizer or hyper-parameter, a negative weight, `penalty_every` < 1, a
            `strength` above 0.5 or with "loss", `gamma` with "decoupled", a penalty without decoupled step,
            whitening with a method that has no predictor, an embedding regularizer that compares more views than the
            method needs, or `pretrained` beside another `backbone`.
    """

    model_type = "orthossl"

    def __init__(
        self,
        backbone: str | None = None,
        image_size: int | None = None,
        backbone_config: dict[str, Any] | None = None,
        method: str = "simclr",
        method_config: dict[str, Any] | None = None,
        regularizer: str | None = "so",
        gamma: float | str | None = None,
        regularizer_config: dict[str, Any] | None = None,
        penalty_every: int = 1,
        constrain: str | None = None,
        whitening: float = 0.0,
        embedding_regularizer: str | None = None,
        embedding_weight: float | None = None,
        embedding_layer: str = "embedding",
        embedding_config: dict[str, Any] | None = None,
        penalty_mode: str = "loss",
        strength: float | None = None,
        pretrained: str | None = None,
        channels: int | None = None,
        normalization: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        measured_gamma: float | None = None,
        **kwargs: Any,
    ):
        self.backbone = named_backbone(backbone, pretrained)
        self.pretrained = pretrained
        self.image_size = image_size
        self.backbone_config = dict(backbone_config or {})
        self.method = method
        # Stored with their defaults, so that a saved run records the values that it used.
        self.method_config = get_method(method).config_class.from_dict(method_config).to_dict()
        self.regularizer = None if regularizer in (None, "none") else regularizer
        if self.regularizer not in (None, *PENALTIES):
            raise ValueError(f"regularizer {regularizer!r} is unknown: {suggest(regularizer, ['none', *PENALTIES])}")
        self._set_penalty_weight(penalty_mode, gamma, strength)
        self.measured_gamma = measured_gamma
        self.regularizer_config = dict(regularizer_config or {})
        if self.regularizer is not None:
            check_options(self.regularizer, self.regularizer_config)
        elif self.regularizer_config:
            raise ValueError('regularizer_config is given without a regularizer: pass regularizer="so", or omit it')
        if penalty_every < 1 or penalty_every != int(penalty_every):
            raise ValueError(
                f"penalty_every is {penalty_every}: it must be a whole number of optimizer steps, 1 or more"
            )
        self.penalty_every = int(penalty_every)
        self.constrain = None if constrain in (None, "none") else constrain
        if self.constrain not in (None, *CONSTRAINTS):
            raise ValueError(f"constrain is {constrain!r}: {suggest(constrain, ['none', *CONSTRAINTS])}")
        if self.constrain and self.regularizer:
            raise ValueError(
                f"regularizer is {regularizer}, but constrain is {constrain}, which leaves a penalty nothing to do: "
                "pass regularizer none, or leave out constrain"
            )
        if self.constrain and gamma:
            raise ValueError(f"gamma is {gamma}, but with constrain {constrain} there is no penalty: leave it out")
        if not whitening >= 0:
            raise ValueError(f"whitening is {whitening}: its weight must be 0 or more, as in 1e-4")
        if whitening and not get_method(method).has_predictor:
            able = ", ".join(name for name, kind in METHODS.items() if kind.has_predictor)
            raise ValueError(f"whitening acts on the predictor's output and {method} has none: choose from {able}")
        self.whitening = whitening
        self._set_embedding(embedding_regularizer, embedding_weight, embedding_layer, embedding_config)
        if named := next((key for key in ("in_chans", "num_channels") if key in self.backbone_config), None):
            raise ValueError(
                f"backbone_config has {named}={self.backbone_config[named]}: pass it as channels, by which images are "
                "read too"
            )
        self.channels = channels
        if normalization not in (None, *NORMALIZATIONS):
            raise ValueError(f"normalization {normalization!r} is unknown: {suggest(normalization, NORMALIZATIONS)}")
        if normalization in PUBLISHED and channels not in (None, 3):
            raise ValueError(
                f"normalization is {normalization}, which is of 3 channels, and channels is {channels}: pass "
                "--normalization data"
            )
        self.normalization = normalization
        if mean is None and normalization in PUBLISHED:
            mean, std = map(list, PUBLISHED[normalization])
        self.mean, self.std = mean, std
        super().__init__(**kwargs)

    def _set_penalty_weight(self, mode: str, gamma: float | str | None, strength: float | None) -> None:
        """Set how the penalty acts, and γ or λ, or refuse them."""
        if mode not in PENALTY_MODES:
            raise ValueError(f"penalty_mode is {mode!r}: {suggest(mode, PENALTY_MODES)}")
        self.gamma: float | str | None
        self.penalty_mode, self.gamma, self.strength = mode, gamma, strength
        if mode == "loss":
            if strength is not None:
                raise ValueError(
                    f"strength is {strength}, but penalty_mode is loss, which has a gamma: pass penalty_mode "
                    "decoupled, or leave it out"
                )
            self.gamma = default_gamma(self.regularizer) if gamma is None else gamma
            _check_gamma(self.gamma, self.regularizer)
            return
        if self.regularizer is None:
            raise ValueError("penalty_mode is decoupled, but there is no penalty: pass regularizer so, or leave it out")
        if not PENALTIES[self.regularizer].has_decoupled_step():
            raise ValueError(without_step(self.regularizer))
        if gamma is not None:
            raise ValueError(
                f"gamma is {gamma}, but penalty_mode is decoupled, which has a strength: pass strength, or leave gamma "
                "out"
            )
        self.strength = default_strength(self.regularizer) if strength is None else strength
        if not 0 <= self.strength <= MAX_STRENGTH:
            raise ValueError(
                f"strength is {strength}: it must lie in [0, {MAX_STRENGTH}], as in 0.05, because a larger step would "
                "take singular values beyond 1"
            )

    def _set_embedding(
        self, name: str | None, weight: float | None, layer: str, options: dict[str, Any] | None
    ) -> None:
        """Set the attributes of the embedding regularizer, or refuse them."""
        self.embedding_regularizer = None if name in (None, "none") else name
        if layer not in EMBEDDING_LAYERS:
            raise ValueError(f"embedding_layer is {layer!r}: {suggest(layer, EMBEDDING_LAYERS)}")
        self.embedding_layer = layer
        if self.embedding_regularizer is None:
            useless: dict[str, Any] = {"embedding_weight": weight, "embedding_config": options or None}
            # Who says "none" may leave the layer of a recipe as it is.
            useless["embedding_layer"] = layer if name is None and layer != EMBEDDING_LAYERS[0] else None
            for option, value in useless.items():
                if value is not None:
                    raise ValueError(
                        f"{option} is {value}, but there is no embedding_regularizer: pass one of "
                        f"{', '.join(EMBEDDING_REGULARIZERS)}, or leave it out"
                    )
            self.embedding_weight, self.embedding_config = None, {}
            return
        kind = get_embedding_regularizer(self.embedding_regularizer)
        self.embedding_config = kind.from_dict(options).to_dict()
        self.embedding_weight = kind.default_weight if weight is None else weight
        if not self.embedding_weight >= 0:
            raise ValueError(f"embedding_weight is {weight}: the regularizer's weight must be 0 or more, as in 0.1")
        method = get_method(self.method)
        if method.views_needed < kind.views_needed:
            raise ValueError(
                f"embedding_regularizer is {kind.name}, which compares {kind.views_needed} views of an image, and "
                f"{method.title} takes {method.views_needed}: choose another regularizer or method"
            )
