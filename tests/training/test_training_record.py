"""What a card says of a run is what the run does."""

import json

import pytest

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel, load_encoder
from hf_orthossl.data import load_source
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.loop import STATE
from hf_orthossl.training.publishing import training_record
from hf_orthossl.training.resume import begin_run


@pytest.fixture(scope="module")
def model():
    encoder = load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16])
    return SSLModel(SSLConfig("resnet10t", image_size=32, method="simclr"), encoder)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_epochs": 3},
        {"num_train_epochs": 2.5, "gradient_accumulation_steps": 3},
        {"max_steps": 7, "dataloader_drop_last": False},
    ],
)
def test_steps_are_those_the_trainer_takes(model, tmp_path, settings):
    args = OrthoSSLTrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, report_to=[], use_cpu=True, **settings
    )
    trainer = OrthoSSLTrainer(model=model, args=args, train_dataset=load_source("digits", split="train[:53]"))
    steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    assert training_record(model, trainer.data, front="Trainer")["planned_steps"] == steps
    trainer.data.record.steps = steps
    record = training_record(model, trainer.data, front="Trainer")
    assert record["steps"] == steps
    assert "planned_steps" not in record
    assert record["images_per_step"] == 8 * settings.get("gradient_accumulation_steps", 1)
    assert record["epochs"] == pytest.approx(trainer_epochs(53, record, args), abs=1e-3)


def trainer_epochs(images, record, args):
    batches = images // 8 if args.dataloader_drop_last else -(-images // 8)
    return record["steps"] / -(-batches // args.gradient_accumulation_steps)


def test_what_was_left_open_is_the_recipes_and_all_is_json(model, tmp_path):
    args = OrthoSSLTrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=16, seed=3, max_steps=1, save_strategy="no"
    )
    data = begin_run(model, load_source("digits", split="train[:64]"), args, STATE)
    pretrain_loop(model, data, write_encoder=False)
    record, recipe = training_record(model, data, front="accelerate loop"), model.method.recipe
    assert record["optim"] == recipe.optim
    assert record["learning_rate"] == recipe.learning_rate * 16 / recipe.lr_batch_size
    assert record["weight_decay"] == recipe.weight_decay
    assert (record["views"], record["seed"], record["precision"]) == ("digits", 3, "float32")
    assert json.loads(json.dumps(record)) == record


def test_a_stream_has_steps_but_no_epochs(model, tmp_path):
    args = OrthoSSLTrainingArguments(output_dir=str(tmp_path), max_steps=5)
    data = begin_run(model, load_source("digits", streaming=True), args, STATE)
    record = training_record(model, data, front="accelerate loop")
    assert (record["steps"], record["planned_steps"]) == (0, 5)
    assert "epochs" not in record
