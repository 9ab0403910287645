"""Check what a backbone must do to be supported; each check returns nothing, or raises `CheckError` with the reason."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_orthossl.configuration import SSLConfig
from hf_orthossl.encoders import Encoder, export_encoder, load_encoder
from hf_orthossl.messages import first_line
from hf_orthossl.modeling import SSLModel
from hf_orthossl.regularization import OrthogonalityRegularizer
from hf_orthossl.spectra import spectral_report

# Images of the training steps and of the spectra.
IMAGES = 4
CHECKS = (
    "load",
    "pretrained",
    "representation",
    "stages",
    "penalty",
    "unpenalized",
    "export",
    "training",
    "spectra",
    "reloaded",
)


class CheckError(Exception):
    """Say what a check found wrong, in one line."""


def check_backbone(name: str, library: str, folder: Path) -> dict[str, Any]:
    """Check one backbone but for its reload without this package, which needs another process.

    Args:
        name (`str`): The name for `load_encoder`.
        library (`str`): `"timm"` or `"transformers"`; a folder of the latter has weights too.
        folder (`Path`): The folder for the export in `export/`, and for what its reload must give in `expected.pt`.

    Returns:
        `dict`: `checks`, by name "ok" or the reason; `unpenalized`, the number of parameters by reason; `pooling`,
        `image_size`, `num_features` and `stages`.
    """
    found: dict[str, Any] = {"checks": {}}
    torch.manual_seed(0)
    try:
        encoder = load_encoder(name)
    except Exception as error:  # what a user would see
        found["checks"]["load"] = _line(error)
        found["refused"] = isinstance(error, ValueError)
        return found
    found["checks"]["load"] = "ok"
    found |= {"image_size": encoder.image_size, "num_features": encoder.num_features, "pooling": encoder.pooling}
    found["stages"] = encoder.stage_names
    images = torch.randn(IMAGES, 3, encoder.image_size, encoder.image_size)
    with torch.no_grad():  # what starts at zero would hide mistakes
        for parameter in encoder.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    _adopt_statistics(encoder, images)
    found["unused"] = encoder.unused_parameters

    def attempt(check: str, run: Callable[[], Any]) -> Any:
        try:
            result = run()
            found["checks"][check] = "ok"
            return result
        except Exception as error:  # a failure of any class is what is looked for
            found["checks"][check] = _line(error)

    encoder.eval()
    if library == "transformers":
        attempt("pretrained", lambda: _loads_its_weights(name))
    attempt("representation", lambda: _represents(encoder, images))
    attempt("stages", lambda: _has_stages(encoder, images[:2]))
    attempt("penalty", lambda: _penalizes(encoder))
    found["unpenalized"] = attempt("unpenalized", lambda: _left_out(encoder))
    attempt("export", lambda: _exports(encoder, images[:2], folder))
    attempt("spectra", lambda: _has_spectra(encoder, images))
    found["without_gradient"] = attempt("training", lambda: _trains(encoder, images))
    return found


def _adopt_statistics(encoder: Encoder, images: Tensor) -> None:
    """Give batch norms the statistics of these images; with those of their start, deep networks forget the image."""
    norms = [(m, m.momentum) for m in encoder.modules() if hasattr(m, "running_mean") and hasattr(m, "momentum")]
    for norm, _ in norms:
        norm.momentum = 1.0
    with contextlib.suppress(Exception), torch.no_grad():  # what fails here, fails in a check
        encoder.train()(images)
    for norm, momentum in norms:
        norm.momentum = momentum


def _line(error: BaseException) -> str:
    if isinstance(error, CheckError):
        return str(error)
    line = " ".join(str(error).split()) if isinstance(error, ValueError) else first_line(error)
    return f"{type(error).__name__}: {line}"[:400]


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise CheckError(reason)


def _loads_its_weights(name: str) -> None:
    """Compare the weights of a pretrained encoder with those that the library saved."""
    saved = {key: tensor for file in Path(name).glob("*.safetensors") for key, tensor in load_file(file).items()}
    encoder = load_encoder(name, pretrained=True)
    for key, parameter in encoder.backbone.named_parameters():
        own = [tensor for k, tensor in saved.items() if k == key or k.endswith(f".{key}")]
        if own:
            _require(any(t.shape == parameter.shape and torch.equal(t, parameter) for t in own), f"{key} is not loaded")
    matched = sum(any(k == key or k.endswith(f".{key}") for k in saved) for key, _ in encoder.named_parameters())
    _require(matched > 0 or bool(saved), "no weight is the saved one")


def _represents(encoder: Encoder, images: Tensor) -> None:
    with torch.no_grad():
        both, single = encoder(images[:2]), encoder(images[:1])
    shape = tuple(both.shape)
    _require(shape == (2, encoder.num_features), f"two images have a representation of shape {shape}")
    _require(bool(both.isfinite().all()), "the representation is not finite")
    spread = (both[0] - both[1]).abs().max() / both.abs().max()
    _require(bool(spread > 1e-4), "two images have the same representation")
    error = (both[0] - single[0]).abs().max() / both.abs().max()
    _require(bool(error < 1e-3), f"an image's representation depends on the others (by {error:.1g} of the largest)")


def _has_stages(encoder: Encoder, images: Tensor) -> None:
    with torch.no_grad():
        stages = encoder.stages(images)
    stages.pop("representation")
    _require(bool(stages), "no stages were found")
    stated = _stated_channels(encoder, images)
    for name, output in stages.items():
        _require(output.ndim in (3, 4), f"stage {name} has shape {tuple(output.shape)}")
        _require(len(output) == 2, f"stage {name} has {len(output)} rows for two images")
        channels = output.shape[1] if output.ndim == 4 else output.shape[2]
        _require(
            channels in stated,
            f"stage {name} has {channels} channels ({tuple(output.shape)}), the library states {sorted(stated)}",
        )


def _stated_channels(encoder: Encoder, images: Tensor) -> set[int]:
    """Return the numbers of channels that the library states of a backbone's stages."""
    backbone: Any = encoder.backbone
    if encoder.library == "timm":
        return {int(stage["num_chs"]) for stage in backbone.feature_info}
    config = backbone.config
    stated: set[int] = set(getattr(backbone, "channels", None) or ())
    for key in (
        *("hidden_size", "hidden_sizes", "embed_dim", "embed_dims", "neck_hidden_sizes", "out_channels"),
        *("stage_out_channels", "embed_dim_per_stage", "num_features", "width"),
    ):
        value = getattr(config, key, None)
        stated |= {value} if isinstance(value, int) else set(value) if isinstance(value, list | tuple) else set()
    if isinstance(getattr(config, "embed_dim", None), int) and isinstance(getattr(config, "depths", None), list):
        stated |= {config.embed_dim * 2**stage for stage in range(len(config.depths))}
    try:
        with torch.no_grad():
            hidden = backbone(images, output_hidden_states=True).hidden_states
        stated |= {size for state in hidden for size in (state.shape[-1], state.shape[1]) if state.ndim in (3, 4)}
    except Exception:  # not every model has hidden states; its configuration states the channels then
        pass
    return stated


def _penalizes(encoder: Encoder) -> None:
    """Compare the SO penalty with sums of squares in float64, from matrices that are read here."""
    regularizer = OrthogonalityRegularizer(encoder, "so")
    expected = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for W in _own_reading(regularizer):
            G = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
            expected += (G - torch.eye(len(G), dtype=G.dtype)).square().sum()
        value = regularizer().double()
    _require(bool(value.isfinite()), "the penalty is not finite")
    error = (value - expected).abs() / expected
    _require(bool(error < 1e-4), f"the penalty is {value:.6g}, and {expected:.6g} in float64")


def _own_reading(regularizer: OrthogonalityRegularizer) -> Iterator[Tensor]:
    """Yield the regularized matrices, one for each group and part, cut by a loop from the weights themselves."""
    for matrix in regularizer.matrices:
        weight = matrix.parameter.detach().double()
        module = matrix.module
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            rows = weight.shape[0] // matrix.count
            part = weight[matrix.index * rows : (matrix.index + 1) * rows]
            yield part.transpose(0, 1).flatten(1)
        elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention):
            rows = weight.shape[0] // matrix.count
            yield weight[matrix.index * rows : (matrix.index + 1) * rows].flatten(1)
        else:
            yield matrix.matrix().detach().double()


def _left_out(encoder: Encoder) -> dict[str, int]:
    """Return how many parameters of two or more dimensions are not penalized, by reason; each must have been named."""
    regularizer = OrthogonalityRegularizer(encoder, "so")
    taken = {id(matrix.parameter) for matrix in regularizer.matrices}
    named = {entry.name for entry in regularizer.left_out}
    others = {encoder.published_name(n): p for n, p in encoder.named_parameters() if p.ndim > 1 and id(p) not in taken}
    silent = sorted(others.keys() - named)
    _require(not silent, f"neither penalized nor listed: {', '.join(silent[:4])}")
    return dict(Counter(entry.reason for entry in regularizer.left_out))


def _exports(encoder: Encoder, images: Tensor, folder: Path) -> None:
    """Export the encoder, load it again with this package, and leave what others must compute from it."""
    exported = export_encoder(encoder, folder / "export")
    with torch.no_grad():
        expected = encoder(images)
        found = load_encoder(str(exported), pretrained=True).eval()(images)
    torch.save({"images": images, "expected": expected}, folder / "expected.pt")
    how = {"library": encoder.library, "pooling": encoder.pooling}
    (folder / "expected.json").write_text(json.dumps(how), encoding="utf-8")
    error = (found - expected).abs().max() / expected.abs().max()
    _require(bool(error < 1e-3), f"loaded from its own export it differs by {error:.1g} of the largest")


def _has_spectra(encoder: Encoder, images: Tensor) -> None:
    report = spectral_report(encoder, images)
    wanted = {"input", *encoder.stage_names}
    _require(wanted <= set(report.features), f"no spectrum of {sorted(wanted - set(report.features))}")
    _require(bool(report.weights), "no spectra of weights")


def _trains(encoder: Encoder, images: Tensor) -> list[str]:
    """Take two steps of SimCLR, and return the trainable parameters that have no gradient."""
    model = SSLModel(SSLConfig(method="simclr", method_config={"hidden_dim": 32, "output_dim": 16}), encoder).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        loss = model([images + 0.1 * torch.randn_like(images) for _ in range(2)], penalty_weight=0.0).loss
        _require(bool(loss.isfinite()), f"the loss of step {step + 1} is {loss.item()}")
        loss.backward()
        missing = [n for n, p in encoder.backbone.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()
    _require(not missing, f"{len(missing)} parameters have no gradient, such as {', '.join(missing[:3])}")
    return missing
