"""Checkpoints of the accelerate front: what accelerate saves, the scheduler, and where the run is."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from .arguments import OrthoSSLTrainingArguments
from .checkpoints import remove_old_checkpoints, staged
from .elastic import load_shape, save_shape, seed_if_processes_changed
from .engines import check_engine
from .step import SSLStep

# Tells this front's checkpoints from the Trainer's.
STATE = "loop_state.json"
SCHEDULER = "scheduler.pt"


class LoopState:
    """Saves and restores all that a run of the accelerate front consists of.

    Args:
        accelerator (`Accelerator`): Has prepared model and optimizer, and saves them with its generators and scaler.
        scheduler (`LRScheduler`): Not prepared.
        step ([`SSLStep`]): Its averages not yet logged are part of the state.
        loader (`DataLoader`): From [`prepared_dataloader`].
        args ([`OrthoSSLTrainingArguments`]): Arguments of the run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        scheduler: LRScheduler,
        step: SSLStep,
        loader: DataLoader,
        args: OrthoSSLTrainingArguments,
    ):
        self.accelerator, self.scheduler, self.step, self.loader = accelerator, scheduler, step, loader
        self.args = args

    def save(self, done: int) -> Path:
        """Writes `checkpoint-<done>` and removes those beyond `save_total_limit`; every process calls it.

        Raises:
            OSError: it could not be written; earlier checkpoints are intact.
        """
        folder, main = Path(self.args.output_dir), self.accelerator.is_main_process
        with staged(folder, done, write=main) as staging:
            checkpoint = staging / f"checkpoint-{done}"
            self.accelerator.save_state(str(checkpoint))
            save_shape(checkpoint, self.args, self.step, self.loader, done)
            if main:
                # Not registered with accelerate, which would unpickle whatever is in the file.
                torch.save(self.scheduler.state_dict(), checkpoint / SCHEDULER)
                (checkpoint / STATE).write_text(json.dumps({"step": done}))
        checkpoint = folder / checkpoint.name
        if main:
            remove_old_checkpoints(folder, self.args.save_total_limit, checkpoint)
        return checkpoint

    def load(self) -> int:
        """Restores what was saved in `resume_from_checkpoint`, and returns the number of optimizer steps done."""
        checkpoint = Path(self.args.resume_from_checkpoint)
        check_engine(checkpoint, self.accelerator)
        load_shape(checkpoint, self.args, self.step, self.loader)
        self.accelerator.load_state(str(checkpoint))
        # Checkpoints are made between optimizer steps, whatever the accumulation then and now.
        self.accelerator.step = 0
        self.scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER, weights_only=True))
        seed_if_processes_changed(checkpoint, self.args)
        return json.loads((checkpoint / STATE).read_text())["step"]
