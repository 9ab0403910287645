"""Fine-tuning: the best epoch's weights, chosen without the test split, and an encoder that stays as it was."""

import copy

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PIL

from hf_orthossl import load_encoder
from hf_orthossl.data import ImageDataset
from hf_orthossl.evaluation import FineTuningArguments, extract_features, finetune_encoder, labelled_splits
from hf_orthossl.evaluation.finetune import validation_split


def images(labels, names, seed, size=16):
    rng = np.random.default_rng(seed)
    shade = {"dark": 60, "grey": 128, "light": 196}
    pixels = [np.clip(shade[names[i]] + rng.normal(0, 40, (size, size, 3)), 0, 255).astype("uint8") for i in labels]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": [PIL.fromarray(a) for a in pixels], "label": labels}, features=features)


@pytest.fixture(scope="module")
def splits():
    """Both splits name their classes in different orders; two training images have no label."""
    train = images([0, 1, 2] * 20, ["dark", "grey", "light"], 0)
    rows = train.to_dict()
    rows["label"][:2] = [-1, -1]
    train = Dataset.from_dict(rows, features=train.features)
    return labelled_splits(DatasetDict(train=train, test=images([0, 1, 2] * 8, ["light", "dark", "grey"], 1)))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return load_encoder("resnet10t", image_size=16, channels=[8, 8, 16, 16])


def settings(folder, **more):
    usual = {"num_train_epochs": 6, "learning_rate": 1e-2, "per_device_train_batch_size": 9, "validation_share": 0.3}
    return FineTuningArguments(str(folder), use_cpu=True, disable_tqdm=True, report_to=[], **usual | more)


def scores(model, source, rows=None):
    dataset = ImageDataset(source, image_size=16, indices=rows)
    features = extract_features(model.encoder, dataset)
    return model.head(features.representations), features.labels


def test_it_learns_reports_and_leaves_the_encoder_alone(encoder, splits, tmp_path):
    train, test = splits
    encoder.eval()
    before = copy.deepcopy(encoder.state_dict())
    tuned = finetune_encoder(encoder, train, test, settings(tmp_path))
    assert not encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert tuned.class_names == ["dark", "grey", "light"]
    assert tuned.notes == ["2 images of train have no label and were excluded."]
    assert [r.metric for r in tuned.results] == ["top1", "top5"]
    top1 = tuned.results[0]
    assert (top1.task, top1.split, top1.protocol["test_images"]) == ("finetune", "test", 24)
    assert top1.protocol["train_images"] + top1.protocol["validation_images"] == 58
    assert top1.value > 0.8
    # Test labels count in another order: [light, dark, grey].
    found, labels = scores(tuned.model.eval(), test)
    right = found.argmax(1) == torch.tensor([2, 0, 1])[labels]
    assert top1.value == pytest.approx(right.double().mean().item())
    assert list(tmp_path.iterdir()) == []


def test_the_best_epoch_wins_and_training_stops_early(encoder, splits, tmp_path):
    """A rate that ruins the weights again: the last epoch is not the best."""
    train, test = splits
    args = settings(tmp_path, num_train_epochs=30, learning_rate=0.3, patience=2, warmup_steps=0, layer_decay=1.0)
    args.lr_scheduler_type = "constant"
    tuned = finetune_encoder(encoder, train, test, args)
    about = tuned.results[0].protocol
    labels = torch.tensor([-1 if label is None else label for label in train.dataset["label"]])
    _, aside = validation_split(labels, 0.3, args.seed)
    found, truth = scores(tuned.model.eval(), train, aside.tolist())
    assert about["validation_top1"] == pytest.approx((found.argmax(1) == truth).double().mean().item())
    assert about["best_epoch"] < 28
    assert about["epochs_run"] == about["best_epoch"] + 2


def test_the_test_split_decides_nothing(encoder, splits, tmp_path):
    train, test = splits
    _, other = labelled_splits(DatasetDict(train=train.dataset, test=images([0, 1] * 3, ["grey", "dark"], 9)))
    one = finetune_encoder(encoder, train, test, settings(tmp_path, num_train_epochs=2))
    two = finetune_encoder(encoder, train, other, settings(tmp_path, num_train_epochs=2))
    assert one.results[0].protocol["validation_top1"] == two.results[0].protocol["validation_top1"]
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name


@pytest.mark.parametrize("mix", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_mixed_images_and_crops_at_decode(mix, splits, encoder, tmp_path):
    """Images far larger than the input are cropped at decode, and the last batch may be of one image."""
    large = DatasetDict(
        train=images([0, 1] * 10, ["dark", "light"], 0, size=80), test=images([0, 1], ["dark", "light"], 1, size=80)
    )
    args = settings(tmp_path, num_train_epochs=1, per_device_train_batch_size=13, label_smoothing_factor=0.1, **mix)
    tuned = finetune_encoder(encoder, *labelled_splits(large), args)
    assert tuned.results[0].protocol["train_images"] == 14
    for name, value in mix.items():
        assert tuned.results[0].protocol[name] == value


def test_bfloat16_is_used_where_asked_for(splits, tmp_path):
    """Of a ViT: the CPU's bfloat16 convolutions give NaN gradients now and then."""
    vit = load_encoder("vit_tiny_patch16_224", image_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    seen = []
    vit.backbone.blocks[0].mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for bf16 in (True, False):
        tuned = finetune_encoder(vit, *splits, settings(tmp_path, num_train_epochs=1, bf16=bf16))
        assert {p.dtype for p in tuned.model.parameters()} == {torch.float32}
        assert set(seen) == {torch.bfloat16 if bf16 else torch.float32}
        seen.clear()


def test_frozen_parameters_stay_as_they_are(encoder, splits, tmp_path):
    frozen = [name for name, _ in encoder.named_parameters() if "layer" not in name]
    for name in frozen:
        encoder.get_parameter(name).requires_grad_(False)
    tuned = finetune_encoder(encoder, *splits, settings(tmp_path, num_train_epochs=1))
    changed = dict(tuned.model.encoder.named_parameters())
    assert all(torch.equal(changed[name], encoder.get_parameter(name)) for name in frozen)
    assert not torch.equal(changed["backbone.layer1.0.conv1.weight"], encoder.backbone.layer1[0].conv1.weight)


def test_validation_takes_its_share_of_every_class():
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 2 + [3] + [-1] * 7)
    rows, aside = validation_split(labels, 0.2, seed=0)
    assert torch.bincount(labels[aside], minlength=4).tolist() == [20, 2, 1, 0]
    assert sorted([*rows.tolist(), *aside.tolist()]) == list(range(113))
    assert not torch.equal(aside, validation_split(labels, 0.2, seed=1)[1])
    with pytest.raises(ValueError, match="too few"):
        validation_split(torch.tensor([0, 1, 2, -1]), 0.5, seed=0)


def test_a_diverging_run_says_what_to_do(encoder, splits, tmp_path):
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        finetune_encoder(encoder, *splits, settings(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mixup": -1}, "mixup is -1"),
        ({"cutmix": float("nan")}, "cutmix is nan"),
        ({"min_crop": 0}, "min_crop is 0"),
        ({"flip": 2}, "flip 2"),
        ({"validation_share": 1}, "validation_share is 1"),
        ({"patience": 0}, "patience is 0"),
    ],
)
def test_settings_out_of_range(wrong, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        settings(tmp_path, **wrong)
