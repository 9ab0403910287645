"""The states of all random number generators of a process, in a JSON file of each checkpoint."""

import json
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch


def save_random_states(checkpoint: Path, process: int) -> None:
    """Write the states of the generators of Python, NumPy and torch, and of this process's accelerator.

    Args:
        checkpoint (`Path`): The checkpoint that is being written.
        process (`int`): Rank of this process, which is part of the name of the file.
    """
    name, keys, *rest = cast(tuple, np.random.get_state(legacy=True))
    device = _device_module()
    states = {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": _to_text(torch.get_rng_state()),
        "device": None if device is None else _to_text(device.get_rng_state()),
    }
    random_file(checkpoint, process).write_text(json.dumps(states), encoding="utf-8")


def read_random_states(checkpoint: Path, process: int) -> dict[str, Any]:
    """Return the states that [`save_random_states`] wrote, for [`set_random_states`].

    Raises:
        ValueError: The file is missing or cannot be read.
    """
    path = random_file(checkpoint, process)
    try:
        states = json.loads(path.read_text(encoding="utf-8"))
        version, words, gauss = states["python"]
        name, keys, *rest = states["numpy"]
        read: dict[str, Any] = {
            "python": (version, tuple(words), gauss),
            "numpy": (name, np.array(keys, dtype=np.uint32), *rest),
            "torch": _from_text(states["torch"]),
            "device": None if states["device"] is None else _from_text(states["device"]),
        }
        # Generators of their own tell whether the states are valid, without a change of the global ones.
        random.Random().setstate(read["python"])
        np.random.RandomState().set_state(read["numpy"])
        torch.Generator().set_state(read["torch"])
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else "it cannot be read"
        raise ValueError(
            f"{path} does not give the states of the random number generators, because {reason}: restore the file, or "
            f"remove {checkpoint} to resume from the checkpoint before it"
        ) from error
    return read


def set_random_states(states: dict[str, Any]) -> None:
    """Set all generators to saved states; an accelerator that the run did not have before keeps its own."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    device = _device_module()
    if device is not None and states["device"] is not None:
        device.set_rng_state(states["device"])


def random_file(checkpoint: Path, process: int) -> Path:
    """Return the path of the file of one process."""
    return checkpoint / f"random_states_{process}.json"


def _device_module() -> Any:
    """Return torch's module of the accelerator, such as `torch.cuda`, or `None` on a CPU."""
    if not torch.accelerator.is_available():
        return None
    return torch.get_device_module(torch.accelerator.current_accelerator())


def _to_text(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_text(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
