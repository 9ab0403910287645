"""Images given as Python objects: the same pixels and labels as in the user's hands."""

import io

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from hf_orthossl import OrthoSSLTrainer, SSLConfig, SSLModel, load_source
from hf_orthossl.data import ImageDataset, get_recipe


def images(count=6):
    return [
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)) for i in range(count)
    ]


class Pairs(torch.utils.data.Dataset):
    classes = ("cat", "dog")

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def pixels(source):
    stored = source.dataset[:][source.image_column]
    return [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in stored]


def test_lists_keep_their_pixels_also_those_that_were_read_from_jpeg():
    file = io.BytesIO()
    images(1)[0].save(file, "JPEG", quality=30)
    given = [*images(), Image.open(file)]
    source = load_source(given)
    assert source.label_column is None
    for found, image in zip(pixels(source), given, strict=True):
        np.testing.assert_array_equal(found, np.asarray(image))


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor])
def test_pairs_keep_labels_and_the_names_of_classes(kind):
    source = load_source(Pairs([(image, kind(i % 2)) for i, image in enumerate(images())]))
    assert source.dataset[:]["label"] == [0, 1] * 3
    assert source.class_names == ["cat", "dog"]
    np.testing.assert_array_equal(pixels(source)[3], np.asarray(images()[3]))


def test_torchvision_folders_are_read_when_needed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images(3)):
            image.save(tmp_path / name / f"{number}.png")
    data = torchvision.datasets.ImageFolder(str(tmp_path), transform=torchvision.transforms.ToTensor())
    source = load_source(torchvision.datasets.ImageFolder(str(tmp_path)))
    assert source.class_names == ["a", "b"]
    assert source.dataset[0]["image"]["bytes"] is None
    found = ImageDataset(source, views=get_recipe("digits"), image_size=32)[4]
    np.testing.assert_array_equal(found["pixel_values"].numpy(), (data[4][0] * 255).round().byte().numpy())


def test_items_that_are_no_images_are_named():
    with pytest.raises(TypeError, match=r"item 2 of the data set is .*: it must be a Pillow image"):
        load_source(Pairs([*((image, 0) for image in images(2)), (torch.zeros(3, 8, 8), 0)]))


def test_a_trainer_takes_them(tmp_path):
    from survival_runs import tiny_arguments

    model = SSLModel(SSLConfig("resnet10t", image_size=32, backbone_config={"channels": [8, 8, 8, 8]}))
    args = tiny_arguments(tmp_path, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=1)
    trainer = OrthoSSLTrainer(model, args, train_dataset=Pairs([(image, 0) for image in images()]))
    assert trainer.data.source.num_rows == 6
    assert OrthoSSLTrainer(model, args, train_dataset=images()).data.source.num_rows == 6
