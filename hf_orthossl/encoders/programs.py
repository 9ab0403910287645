"""Write an encoder as a program that runs without the network's Python code: ONNX, TorchScript or torch.export."""

import contextlib
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..files import replacing_folder
from ..messages import describe, first_line, suggest
from .description import PROCESSOR
from .encoder import Encoder
from .export import image_processor

# Format → the file that is written.
FORMATS = {"onnx": "model.onnx", "torchscript": "model.ts", "torch.export": "model.pt2"}
# Packages of the extra [onnx]: what torch writes the file with, and what runs it.
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
RECORD = "program.json"
INPUT = "images"
# The largest difference from the encoder, relative to its largest output.
TOLERANCE = 1e-4
# protobuf, and so one file of ONNX, holds 2 GB; larger weights go to a file beside it.
MOST_BYTES = 1_900_000_000
EXTERNAL_WEIGHTS = f"{FORMATS['onnx']}.data"
# Two images are traced, because torch takes a batch of one for a constant.
TRACED = 2

Run = Callable[[Tensor], list[Tensor]]


class EncoderProgram(nn.Module):
    """Map normalized images to a tuple of representations and, on request, of tokens.

    Args:
        encoder ([`Encoder`]): The encoder.
        tokens (`bool`): Whether to return tokens `(B, N, d)` too, in raster order: the patches of a vision transformer
            after its last norm, or the places of another network's last feature map.
    """

    def __init__(self, encoder: Encoder, tokens: bool) -> None:
        super().__init__()
        self.backbone = encoder.backbone
        # No submodule: torch.jit reads every attribute of those, and the layout of patches may raise.
        self._encoder = (encoder,)
        self._tokens = tokens

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return representations `(B, D)`, and tokens `(B, N, d)`, of images `(B, C, S, S)`."""
        (encoder,) = self._encoder
        if not self._tokens:
            return (encoder(images),)
        representation, places = encoder.representation_and_map(images)
        return representation, places.flatten(2).mT


@dataclass(frozen=True)
class ProgramExport:
    """Describe a program that was written.

    Args:
        folder (`Path`): Its folder.
        file (`Path`): The program in it.
        size (tuple of `int`): C, S, S of its images.
        outputs (`dict`): Output → its shape, of which the first dimension is "batch".
        grid (tuple of `int`, *optional*): Rows and columns of the tokens.
        differences (`dict`): Output → the largest difference from the encoder's, relative to its largest value.
        images (`int`): How many images were compared.
    """

    folder: Path
    file: Path
    size: tuple[int, int, int]
    outputs: dict[str, list[Any]]
    grid: tuple[int, int] | None
    differences: dict[str, float]
    images: int


def check_format(format: str) -> None:
    """Check that a format is known, and that its packages are installed.

    Raises:
        ValueError: It is unknown, or a package is missing.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: {suggest(format, FORMATS)}")
    if format == "onnx" and (missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]):
        raise ValueError(f"format 'onnx' needs {', '.join(missing)}: pip install 'hf-orthossl[onnx]'")


def export_program(
    encoder: Encoder, folder: str | Path, images: Tensor, *, format: str = "onnx", tokens: bool = False
) -> ProgramExport:
    """Write an encoder as a program with a dynamic batch, and check it against the encoder on images.

    The folder receives the program, `preprocessor_config.json`, by which images become its input (transformers'
    `AutoImageProcessor` reads it), and `program.json`, which names inputs, outputs, versions and the measured
    differences. The input `images` has the shape `(batch, C, S, S)`, float32, normalized; the outputs are
    `representation` `(batch, D)` and, on request, `tokens` `(batch, N, d)`.

    Args:
        encoder ([`Encoder`]): The encoder. Its train or eval mode and its device are restored.
        folder (`str` or `Path`): The folder to write. A program that is in it is replaced; other files are kept.
        images (`Tensor` of shape `(M, C, S, S)`): At least 3 normalized images, best real ones: the written file is
            run on all of them and on one alone.
        format (`str`, defaults to `"onnx"`): `"onnx"` (needs the extra `[onnx]`), `"torchscript"` or `"torch.export"`.
        tokens (`bool`, defaults to `False`): Write the output `tokens` too, in raster order: patches of a vision
            transformer after its last norm, or places of another network's last feature map.

    Returns:
        [`ProgramExport`]: What was written.

    Raises:
        TypeError: `encoder` is not an [`Encoder`].
        ValueError: The format is unknown or its packages are missing, the images do not fit, the encoder has no
            tokens, or torch cannot write the network in this format.
        ArithmeticError: An output differs from the encoder's by more than 1e-4.
        OSError: The files cannot be written.

    Example:
        >>> export_program(encoder, "programs/mine", images, tokens=True)
        >>> onnxruntime.InferenceSession("programs/mine/model.onnx").run(None, {"images": images.numpy()})
    """
    check_format(format)
    if not isinstance(encoder, Encoder):
        raise TypeError(f"encoder must be an Encoder, got {describe(encoder)}: pass one from load_encoder")
    size = (encoder.channels, encoder.image_size, encoder.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != size or len(images) <= TRACED:
        raise ValueError(
            f"images have the shape {tuple(images.shape)}: they must be {TRACED + 1} or more of the shape {size}"
        )
    with _on_cpu(encoder):
        images = images.to("cpu", torch.float32)
        program = EncoderProgram(encoder, tokens).eval()
        # The layout of patches is found here: what is found in a trace would become a part of the program.
        expected = program(images)
        names = ["representation", "tokens"][: len(expected)]
        outputs = {name: ["batch", *output.shape[1:]] for name, output in zip(names, expected, strict=True)}
        grid = _grid(encoder, images) if tokens else None
        files = [*FORMATS.values(), EXTERNAL_WEIGHTS, PROCESSOR, RECORD]
        with replacing_folder(Path(folder), files) as unfinished:
            file = unfinished / FORMATS[format]
            with _quiet():
                try:
                    run = _WRITERS[format](program, images[:TRACED], file, names)
                except Exception as error:  # each exporter raises its own
                    raise ValueError(
                        f"torch cannot write {encoder.name!r} as {format} ({first_line(error)}): choose another format "
                        f"of {', '.join(FORMATS)}"
                    ) from error
                differences = _differences(run, program, images, names)
            for name, difference in differences.items():
                if not difference <= TOLERANCE:
                    raise ArithmeticError(
                        f"{name} of {encoder.name!r} as {format} differs from the encoder's by {difference:.1e}, more "
                        f"than {TOLERANCE:g}, and nothing was written: choose another format of {', '.join(FORMATS)}"
                    )
            image_processor(encoder).save_pretrained(unfinished)
            record = _record(encoder, format, outputs, grid, differences, len(images))
            (unfinished / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    folder = Path(folder)
    return ProgramExport(folder, folder / FORMATS[format], size, outputs, grid, differences, len(images))


def _write_onnx(program: nn.Module, images: Tensor, file: Path, names: list[str]) -> Run:
    import onnxruntime

    weights = sum(tensor.nbytes for tensor in program.state_dict().values())
    torch.onnx.export(
        program,
        (images,),
        file,
        input_names=[INPUT],
        output_names=names,
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=weights > MOST_BYTES,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda batch: [torch.from_numpy(output) for output in session.run(names, {INPUT: batch.numpy()})]


def _write_torchscript(program: nn.Module, images: Tensor, file: Path, names: list[str]) -> Run:
    torch.jit.trace(program, images, check_trace=False).save(str(file))
    return lambda batch: list(torch.jit.load(str(file))(batch))


def _write_torch_export(program: nn.Module, images: Tensor, file: Path, names: list[str]) -> Run:
    exported = torch.export.export(program, (images,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}})
    torch.export.save(exported, file)
    return lambda batch: list(torch.export.load(file).module()(batch))


_WRITERS: dict[str, Callable[[nn.Module, Tensor, Path, list[str]], Run]] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "torch.export": _write_torch_export,
}


def _differences(run: Run, program: EncoderProgram, images: Tensor, names: list[str]) -> dict[str, float]:
    """Return how far the outputs of a file are from the program's, for a whole batch and for an image alone."""
    largest = dict.fromkeys(names, 0.0)
    for batch in (images, images[1:2]):
        for name, found, expected in zip(names, run(batch), program(batch), strict=True):
            difference = float((found - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
            # A NaN is a difference, which Python's max would drop.
            largest[name] = difference if math.isnan(difference) else max(largest[name], difference)
    return largest


def _grid(encoder: Encoder, images: Tensor) -> tuple[int, int]:
    rows, columns = encoder.representation_and_map(images[:1])[1].shape[2:]
    return rows, columns


def _record(
    encoder: Encoder,
    format: str,
    outputs: dict[str, list[Any]],
    grid: tuple[int, int] | None,
    differences: dict[str, float],
    images: int,
) -> dict[str, Any]:
    packages = ["torch", *(ONNX_PACKAGES if format == "onnx" else ())]
    return {
        "encoder": encoder.name,
        "format": format,
        "file": FORMATS[format],
        "input": {
            "name": INPUT,
            "shape": ["batch", encoder.channels, encoder.image_size, encoder.image_size],
            "dtype": "float32",
            "preprocessing": PROCESSOR,
        },
        "outputs": outputs,
        **({"grid": list(grid)} if grid else {}),
        "parity": {"images": images, "differences": differences, "tolerance": TOLERANCE},
        "versions": {"hf_orthossl": __version__, **{name: version(name) for name in packages}},
    }


@contextlib.contextmanager
def _on_cpu(encoder: Encoder) -> Iterator[None]:
    """Keep an encoder on the CPU, in eval mode and without gradients within this context."""
    device, training = next(encoder.parameters()).device, encoder.training
    encoder.to("cpu").eval()
    try:
        with torch.no_grad():
            yield
    finally:
        encoder.to(device).train(training)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say of Python code that became constants: the file's outputs are compared instead."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
