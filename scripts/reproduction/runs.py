"""One run: trained by `orthossl pretrain`'s own code, then measured as the paper does."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.measure import machine
from transformers import set_seed

from hf_orthossl.cli import perform
from hf_orthossl.data import ImageDataset
from hf_orthossl.encoders import Encoder, load_encoder
from hf_orthossl.evaluation import (
    LabelledFeatures,
    Result,
    knn_results,
    labelled_splits,
    linear_results,
    write_results,
)
from hf_orthossl.evaluation.features import normalized_batches
from hf_orthossl.files import replace_file
from hf_orthossl.hub.encoder_folder import spectra_rows
from hf_orthossl.hub.measurements import public_result
from hf_orthossl.options import parse_assignments, read_config
from hf_orthossl.regularization import OrthogonalityRegularizer
from hf_orthossl.spectra import SpectralReport, spectral_report
from hf_orthossl.training.checkpoints import checkpoints

from .presets import Arm, Experiment

MEASURED = "measured.json"
SPECTRA = "spectra"


@dataclass(frozen=True)
class Run:
    """One arm of an experiment from one seed, in a folder of its own.

    Args:
        experiment ([`Experiment`]), arm ([`Arm`]): What is run.
        weight (`float`, *optional*): γ of the arm.
        seed (`int`): Of weights, batches and views.
        epochs (`float`): Passes over the training images.
        dataset (`str`): Where CIFAR-10 is.
        folder (`Path`): Where everything of the run goes.
        device (`str`): Where it runs.
    """

    experiment: Experiment
    arm: Arm
    weight: float | None
    seed: int
    epochs: float
    dataset: str
    folder: Path
    device: str

    @property
    def encoder(self) -> Path:
        """Return the folder of its encoder, which loads without the package."""
        return self.folder / "encoder"

    @property
    def spectra(self) -> Path:
        """Return the folder of the spectra of its weights, and of the features of test images."""
        return self.folder / SPECTRA

    @property
    def steps(self) -> int:
        """Return the optimizer steps that a trained run has taken."""
        return json.loads((self.encoder / "config.json").read_text(encoding="utf-8"))["orthossl"]["training"]["steps"]

    @property
    def is_measured(self) -> bool:
        """Return whether [`measure`] has been called."""
        return (self.folder / MEASURED).is_file()

    def options(self) -> dict:
        """Return the options of `orthossl pretrain` for this run."""
        chosen = {} if self.arm.option is None else {self.arm.option: self.weight}
        if self.arm.regularizer_config:
            chosen["regularizer_config"] = list(self.arm.regularizer_config)
        fixed = {
            "knn_images": 0,
            "save_steps": 0.25,
            "save_total_limit": 1,
            "logging_steps": 0.02,
            "disable_tqdm": True,
        }
        return {
            "dataset": self.dataset,
            "split": self.experiment.train,
            "method": self.experiment.method,
            "backbone": self.experiment.backbone,
            **self.experiment.options,
            "regularizer": self.arm.regularizer,
            **chosen,
            **fixed,
            "num_train_epochs": self.epochs,
            "seed": self.seed,
            "use_cpu": self.device == "cpu",
            "output_dir": str(self.folder),
        }

    def train(self) -> None:
        """Train it, or go on where an earlier call was stopped; a run that has ended stays as it is.

        Raises:
            ValueError: its folder holds a run with other settings.
        """
        self._check()
        if (self.encoder / "README.md").is_file():
            return
        if checkpoints(self.folder):
            argv = ["--output_dir", str(self.folder), "--resume"]
        else:
            argv = [text for name, value in self.options().items() for text in (f"--{name}", *_texts(value))]
        perform("pretrain", argv, prog="reproduce.py", front="loop")

    def score(self) -> float:
        """Return the kNN top-1 on the experiment's validation split, by which γ is chosen."""
        features = self._features(self._load(), self.experiment.validation)
        return knn_results(features, temperatures=[0.1])[0].value

    def measure(self) -> dict:
        """Measure kNN, linear probe, penalties and spectra of the trained encoder once, and keep them.

        Returns:
            `dict`: JSON values; accuracies in [0, 1], penalties before γ.

        Raises:
            ValueError: its folder holds a run with other settings.
        """
        self._check()
        path = self.folder / MEASURED
        if self.is_measured:
            return json.loads(path.read_text(encoding="utf-8"))
        encoder = self._load()
        results = self._accuracies(encoder)
        report = self._spectra(encoder)
        report.save(self.spectra)
        # Beside the weights, for whoever publishes them.
        write_results(self.encoder / "results.json", [public_result(result) for result in results])
        summary, last = report.summary(), report.features["representation"]
        row = {
            "experiment": self.experiment.name,
            "arm": self.arm.name,
            "weight": self.weight,
            "seed": self.seed,
            "epochs": self.epochs,
            "steps": self.steps,
            "knn": results[0].value,
            "knn_interval": results[0].protocol["interval"],
            "linear": results[1].value,
            "linear_interval": results[1].protocol["interval"],
            "representation_effective_rank": last.effective_rank,
            "representation_positive": last.num_positive,
            "representation_dim": last.dim,
            "weights_relative_rank": summary["weights/relative_rank_mean"],
            **{kind: self._penalty(encoder, kind) for kind in ("so", "srip")},
            "untrained": self._untrained() if self.arm == self.experiment.arms[0] else None,
            "machine": machine(self.device),
            "results": [public_result(result).to_dict() for result in results],
        }
        replace_file(path, json.dumps(row, indent=2) + "\n", durable=True)
        return row

    def _check(self) -> None:
        """Refuse a run that was started with other settings: a trial must not pass for the real one."""
        path = self.folder / "config.yaml"
        before = read_config(path) if path.is_file() else {}
        for name in ("dataset", "num_train_epochs", "per_device_train_batch_size", "seed", "gamma", "whitening"):
            value = self.options().get(name)
            if value is not None and name in before and before[name] != value:
                raise ValueError(
                    f"{self.folder} holds a run with {name} {before[name]}, not {value}: pass the options it was "
                    "started with, or another --output_dir"
                )

    def _load(self) -> Encoder:
        return load_encoder(str(self.encoder), pretrained=True).to(self.device).eval()

    def _features(self, encoder: Encoder, split: str) -> LabelledFeatures:
        train, test = labelled_splits(self.dataset, train_split=self.experiment.train, test_split=split)
        return LabelledFeatures.extract(encoder, train, test)

    def _untrained(self) -> dict[str, float]:
        """Return the results of the untrained encoder, with which all arms of a seed begin."""
        set_seed(self.seed)
        options = self.experiment.options
        config = parse_assignments(options.get("backbone_config", []))
        encoder = load_encoder(self.experiment.backbone, image_size=options.get("image_size"), **config)
        knn, linear = self._accuracies(encoder.to(self.device).eval())
        return {"knn": knn.value, "linear": linear.value}

    def _accuracies(self, encoder: Encoder) -> list[Result]:
        """Return the top-1 of kNN and of the linear probe, as the paper's two frameworks measure them."""
        features = self._features(encoder, self.experiment.test)
        return [knn_results(features, temperatures=[0.1])[0], linear_results(features)[0]]

    def _spectra(self, encoder: Encoder) -> SpectralReport:
        _, test = labelled_splits(self.dataset, train_split=self.experiment.train, test_split=self.experiment.test)
        rows = spectra_rows(test.num_rows, self.experiment.spectra_images)
        images = normalized_batches(encoder, ImageDataset(test, image_size=encoder.image_size, indices=rows))
        return spectral_report(encoder, images, metadata={"model": self.arm.name, "dataset": test.name})

    @torch.no_grad()
    def _penalty(self, encoder: Encoder, kind: str) -> float:
        """Return Σ OR(W) before γ; SRIP with enough iterations to be σ_max."""
        options = {"iterations": 50} if kind == "srip" else {}
        penalty = OrthogonalityRegularizer(encoder, kind, **options)
        return float(penalty(torch.Generator(self.device).manual_seed(0)))


def _texts(value: object) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]
