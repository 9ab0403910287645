"""Batches of the fronts over several processes: shared out once, and continued where they stopped."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from streams import write_files

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, StreamingImageDataset, load_source
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.data import TrainingData, build_dataloader

FRONTS = ("trainer", "loop")
IMAGES = 70
PIXELS = torch.zeros(IMAGES, 8, 8, 3, dtype=torch.uint8).numpy()


def arguments(batch_size: int, folder: Path = Path("unused"), **settings) -> OrthoSSLTrainingArguments:
    settings = {"output_dir": str(folder), "seed": 5, "bf16": False, "use_cpu": True, **settings}
    return OrthoSSLTrainingArguments(per_device_train_batch_size=batch_size, **settings)


def numbered_images() -> ImageDataset:
    rows = Dataset.from_dict({"image": [image.tolist() for image in PIXELS], "label": list(range(IMAGES))})
    return ImageDataset(load_source(rows, image_column="image", label_column="label"), image_size=8)


def training_data(dataset, args) -> TrainingData:
    return TrainingData(dataset, SSLModel(SSLConfig("resnet10t", image_size=32, method="simclr")), args)


def epochs_of(loader, count: int) -> list[list[list[int]]]:
    found = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        found.append([batch["labels"].tolist() for batch in loader])
    return found


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("processes", [2, 4])
def test_a_step_of_many_processes_has_the_images_of_one_with_the_same_step(processes, drop_last):
    """In rank order, in two epochs, with what accelerate makes of our loader in both fronts."""
    data = numbered_images()
    settings = {"dispatch_batches": False, "even_batches": True}
    whole, *shares = (
        epochs_of(prepare_data_loader(loader, num_processes=count, process_index=index, **settings), 2)
        for loader, count, index in [
            (build_dataloader(data, arguments(8 * processes, dataloader_drop_last=drop_last)), 1, 0),
            *(
                (build_dataloader(data, arguments(8, dataloader_drop_last=drop_last)), processes, rank)
                for rank in range(processes)
            ),
        ]
    )
    assert whole[0] != whole[1]
    for epoch, batches in enumerate(whole):
        steps = list(zip(*(share[epoch] for share in shares), strict=True))
        together = [[label for batch in step for label in batch] for step in steps]
        full = len(batches) if drop_last else len(batches) - 1
        assert together[:full] == batches[:full]
        assert (
            len(set(itertools.chain(*together[:full])))
            == full * 8 * processes
            == IMAGES // (8 * processes) * 8 * processes
        )
        if not drop_last:
            # The last step is filled up from the epoch's beginning.
            rest = together[full]
            assert rest[: len(batches[full])] == batches[full]
            assert rest[len(batches[full]) :] == together[0][: len(rest) - len(batches[full])]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_prepared_stream_is_skipped_by_accelerate(workers, tmp_path):
    data = StreamingImageDataset(
        load_source(str(write_files(tmp_path / "data", [100, 60])), streaming=True), image_size=8
    )
    args, accelerator = arguments(16, dataloader_num_workers=workers), Accelerator(cpu=True)
    args.views = "digits"
    first, again = training_data(data, args), training_data(data, args)
    loader = first.loader(accelerator)
    whole = [batch["labels"].tolist() for batch in itertools.islice(loader, 25)]
    assert sorted(itertools.chain(*whole[:10])) == sorted(itertools.chain(*whole[10:20])) == list(range(160))
    assert first.position(13) == {"epoch": 1, "images": 48, "groups": 1}
    loader = again.loader(accelerator)
    again.resume(13, first.position(13))
    rest = [batch["labels"].tolist() for batch in itertools.islice(skip_first_batches(loader, 13), 12)]
    assert rest == whole[13:]


def test_data_with_a_length_have_no_position_of_their_own():
    data = training_data(numbered_images(), arguments(16))
    data.loader(Accelerator(cpu=True))
    assert data.position(2) == {}
    data.resume(2, {})


@pytest.mark.parametrize("front", FRONTS)
def test_a_run_on_a_stream_is_resumed_exactly(front, tmp_path):
    """Stopped in the second epoch, of five batches, two of which make a step."""
    rows = load_source("digits").dataset.select(range(90))

    def train(folder: Path, **settings) -> SSLModel:
        torch.manual_seed(0)
        config = {"backbone": "resnet10t", "backbone_config": {"channels": [8, 8, 16, 16]}, "image_size": 32}
        model = SSLModel(SSLConfig(**config, method="byol"))
        settings |= {"gradient_accumulation_steps": 2, "max_steps": 7, "save_steps": 3, "logging_steps": 1}
        args = arguments(16, folder, views="digits", disable_tqdm=True, save_total_limit=5, **settings)
        source = load_source(rows, streaming=True)
        if front == "loop":
            return pretrain_loop(model, source, args)
        OrthoSSLTrainer(model=model, args=args, train_dataset=source).train()
        return model

    whole = train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again = train(tmp_path / "again", resume=True)
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


# --- Show 3: 10,000 images, 2 processes, 2 workers each -----------------------------------------------------------

EPOCH = """
import itertools, json, os, sys, time
from pathlib import Path
import datasets
from accelerate import Accelerator, skip_first_batches
from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.data import StreamingImageDataset, load_source
from hf_orthossl.training import OrthoSSLTrainingArguments, TrainingData

if __name__ == "__main__":
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    data, out, pause = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    args = OrthoSSLTrainingArguments(
        output_dir=str(out), per_device_train_batch_size=50, dataloader_num_workers=2, bf16=False, use_cpu=True
    )
    # The arguments take their own look at the processes first.
    accelerator = Accelerator(cpu=True)
    stream = StreamingImageDataset(load_source(data, streaming=True), image_size=8, shuffle_buffer=1000)
    training_data = TrainingData(stream, SSLModel(SSLConfig("resnet10t", image_size=32, method="simclr")), args)
    loader = training_data.loader(accelerator)
    saved, done = out / "position.json", 0
    if saved.exists():
        done, position = json.loads(saved.read_text())
        training_data.resume(done, position)
    (out / f"pid-{accelerator.process_index}").write_text(str(os.getpid()))
    file = (out / f"labels-{accelerator.process_index}.txt").open("a")
    for number, batch in enumerate(itertools.islice(skip_first_batches(loader, done), 100 - done), start=done):
        file.write(f"{number} " + " ".join(map(str, batch["labels"].tolist())) + "\\n")
        file.flush()
        if (number + 1) % 10 == 0:
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                aside = saved.with_suffix(".tmp")
                aside.write_text(json.dumps([number + 1, training_data.position(number + 1)]))
                aside.replace(saved)
            accelerator.wait_for_everyone()
        time.sleep(pause)
"""


def run_epoch(data: Path, out: Path, pause: float = 0.0) -> subprocess.Popen:
    out.mkdir(exist_ok=True)
    (out / "epoch.py").write_text(EPOCH)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    return subprocess.Popen([*launch, str(out / "epoch.py"), str(data), str(out), str(pause)])


def seen(out: Path) -> list[int]:
    """Labels of each process's batches; a batch that was read again after the kill counts once."""
    labels = []
    for rank in range(2):
        batches = {}
        for line in (out / f"labels-{rank}.txt").read_text().splitlines():
            number, *values = line.split()
            assert batches.setdefault(number, values) == values
        labels += [int(value) for values in batches.values() for value in values]
    return labels


@pytest.mark.slow
@pytest.mark.parametrize("files", [8, 3, 1])
def test_ten_thousand_images_killed_and_resumed(files, tmp_path):
    counts = [10_000 * (i + 1) // files - 10_000 * i // files for i in range(files)]
    data, out = write_files(tmp_path / "data", counts), tmp_path / "run"
    first = run_epoch(data, out, pause=0.1)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and first.poll() is None and not (out / "position.json").exists():
            time.sleep(0.2)
        assert first.poll() is None
        time.sleep(1.0)
    finally:
        for process in out.glob("pid-*"):
            os.kill(int(process.read_text()), signal.SIGKILL)
        first.wait()
    early = seen(out)
    assert 0 < len(early) < 10_000
    assert len(set(early)) == len(early)
    second = run_epoch(data, out)
    assert second.wait(timeout=240) == 0
    assert sorted(seen(out)) == list(range(10_000))
