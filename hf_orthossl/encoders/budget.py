"""Limits of what a configuration may ask for, checked on torch's meta device before anything is allocated.

A network of the meta device has shapes but no numbers, so that building it and passing one image through it costs
neither memory nor time worth mentioning, whatever its size. Its parameters, modules and operations are counted as they
come, and the count stops it: no entry of a configuration has to be understood for that.
"""

import contextlib
import copy
import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..messages import first_line, readable_size
from ..untrusted import Refused

# Without weights, whose file would say how many there are. The largest vision networks of timm have 5 billion.
MAX_PARAMETERS = 5_000_000_000
# The largest networks of timm have 2,300.
MAX_MODULES = 8_000
# Floating-point operations for one image: the first, or the second for each parameter where that is more. A ViT takes 2
# for each parameter and patch.
MAX_FLOP, FLOP_PER_PARAMETER = 2e12, 20_000
# Numbers in one activation of one image: 8 GiB.
MAX_ACTIVATION = 2**31
# Seconds on the meta device. The largest networks of timm take one.
SECONDS = 30.0
# Operations that draw initial weights, and others that change them in place.
_DRAWING = {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_}
_IN_PLACE = _DRAWING | {Tensor.mul_, Tensor.add_, Tensor.clamp_, Tensor.fill_, Tensor.zero_}


def plan(
    name: str,
    build: Callable[[], nn.Module],
    stored: int | None = None,
    side: int | None = None,
    channels: int = 3,
) -> nn.Module:
    """Return the network that a configuration describes, on the meta device, if it is within the limits.

    Args:
        name (`str`): The name that the user gave, for errors.
        build (callable): Builds the network.
        stored (`int`, *optional*): How many numbers the file of weights holds, which the network may not exceed;
            without weights, `MAX_PARAMETERS` is the limit.
        side (`int`, *optional*): Side of the images in pixels, to count the operations for one image.
        channels (`int`, defaults to 3): Number of channels of the images.

    Raises:
        Refused: The network is too large, takes too long, or cannot be built.
    """
    limit = MAX_PARAMETERS if stored is None else stored
    too_slow = f"backbone {name!r} was not built within {SECONDS:.0f} s: correct its depth and its image size"
    with building(name), deadline(too_slow, SECONDS), torch.device("meta"), Unfilled(_IN_PLACE):
        # A parameter that replaces another is counted again, so that the exact count comes at the end.
        with _Counter(name, 2 * limit + 2**20, stored):
            network = build()
        # Weights may lack mask tokens.
        count = sum(tensor.numel() for key, tensor in network.named_parameters() if not key.endswith("mask_token"))
        if count > limit:
            raise Refused(_too_many(name, count, stored))
        needed, free = 4 * count, psutil.virtual_memory().available
        if needed > free:
            raise Refused(
                f"backbone {name!r} has {count:,} parameters, which need {readable_size(needed)} of memory: "
                f"{readable_size(free)} are free, choose a smaller one"
            )
        if side is not None:
            _check_forward(name, network, (channels, side, side), max(MAX_FLOP, FLOP_PER_PARAMETER * count))
    _forget(network)
    return network


@contextlib.contextmanager
def building(name: str) -> Iterator[None]:
    """Turn whatever a library raises while it builds or loads a network into one line; our own lines pass.

    Raises:
        Refused: The block raised an exception of any class.
    """
    try:
        yield
    except Refused:
        raise
    except ImportError as error:
        raise Refused(
            f"backbone {name!r} needs a package that is missing ({_short(error)}): install it, or choose another"
        ) from error
    except Exception as error:  # any class: what libraries raise for odd values is not documented
        raise Refused(
            f"backbone {name!r} cannot be built ({_short(error)}): check its arguments and weights"
        ) from error


def _forget(network: nn.Module) -> None:
    """Empty the caches of functions of a network's library, which now hold tensors of the meta device.

    Real networks share them, and would read memory at random: indexing with such a tensor is no error (BEiT's table of
    relative positions, which transformers keeps in an `lru_cache`).
    """
    for place in {type(module).__module__ for module in network.modules()}:
        values = list(vars(sys.modules[place]).values())
        values += [value for kind in values if isinstance(kind, type) for value in vars(kind).values()]
        for value in values:
            function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            inner = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
            for cache in (function, *inner):
                if isinstance(cache, functools._lru_cache_wrapper):
                    cache.cache_clear()


class Unfilled(TorchFunctionMode):
    """Skip the drawing of initial weights, which takes longer than reading those that replace them.

    Args:
        skipped (set): The operations in place to skip.
    """

    def __init__(self, skipped: set[Any] = _DRAWING) -> None:
        super().__init__()
        self.skipped = skipped

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation, or return its tensor unchanged."""
        return args[0] if func in self.skipped else func(*args, **(kwargs or {}))


class _Counter:
    """Count what this thread registers with modules, and raise `Refused` beyond the limits."""

    def __init__(self, name: str, parameters: int, stored: int | None) -> None:
        self.name, self.most, self.stored = name, parameters, stored
        self.parameters = self.modules = 0
        self.thread = threading.get_ident()

    def __enter__(self) -> None:
        self.handles = [
            register_module_parameter_registration_hook(self._add_numbers),
            register_module_buffer_registration_hook(self._add_numbers),
            register_module_module_registration_hook(self._add_module),
        ]

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _add_numbers(self, module: nn.Module, key: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != self.thread:
            return
        self.parameters += tensor.numel()
        if self.parameters > self.most:
            raise Refused(_too_many(self.name, self.parameters, self.stored))

    def _add_module(self, module: nn.Module, key: str, submodule: nn.Module | None) -> None:
        if threading.get_ident() != self.thread:
            return
        self.modules += 1
        if self.modules > MAX_MODULES:
            raise Refused(
                f"backbone {self.name!r} has more than {MAX_MODULES:,} modules by its config.json: correct its depth"
            )


def _too_many(name: str, count: int, stored: int | None) -> str:
    if stored is None:
        limit, remedy = f"the limit is {MAX_PARAMETERS:,}", "correct its widths, its depth and its image size"
    else:
        limit = f"its weights hold {stored:,} numbers"
        remedy = "config.json and weights belong to different networks, pass the folder of one network"
    return f"backbone {name!r} has {count:,} parameters or more by its config.json, and {limit}: {remedy}"


class _Operations(TorchDispatchMode):
    """Add up the floating-point operations, and raise `Refused` beyond the limit or for a huge activation."""

    def __init__(self, name: str, side: int, most: float) -> None:
        super().__init__()
        self.name, self.side, self.most = name, side, most
        self.flop = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self.largest = max(self.largest, output.numel() if isinstance(output, Tensor) else 0)
        if self.largest > MAX_ACTIVATION:
            raise Refused(
                f"backbone {self.name!r} needs {readable_size(4 * self.largest)} for one activation of one image of "
                f"{self.side}×{self.side} pixels: choose a smaller image_size, or a larger patch"
            )
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flop += count(*args, **kwargs, out_val=output)
            if self.flop > self.most:
                raise Refused(
                    f"backbone {self.name!r} takes more than {self.most / 1e12:.0f} TFLOP for one image of "
                    f"{self.side}×{self.side} pixels: choose a smaller image_size, or a larger patch"
                )
        return output


def _check_forward(name: str, network: nn.Module, shape: tuple[int, int, int], most: float) -> None:
    """Pass one image through; networks that look at numbers, which there are none of, are tried when they are built."""
    network.eval()
    try:
        with torch.no_grad(), _Operations(name, shape[-1], most):
            network(torch.empty(1, *shape))
    except Refused:
        raise
    except Exception:  # only the limits count here: whatever is wrong with the network shows when it is built
        return


def image_cost(network: nn.Module, side: int, channels: int = 3) -> tuple[int, int]:
    """Return the floating-point operations for one image of a network, and the numbers in its largest activation.

    What a network that cannot be passed without numbers does after that point is not counted.

    Args:
        network (`nn.Module`): The network; it does not change.
        side (`int`): Height and width of the image, in pixels.
        channels (`int`, defaults to 3): Number of channels of the image.
    """
    planned = copy.deepcopy(network).to("meta").eval()
    operations = _Operations("", side, float("inf"))
    with contextlib.suppress(Exception), torch.device("meta"), torch.no_grad(), operations:
        planned(torch.empty(1, channels, side, side))
    _forget(planned)
    return operations.flop, operations.largest


class _TooSlow(BaseException):
    """Raised when the time is over; no `Exception`, so that no handler of a library takes it for an error."""


@contextlib.contextmanager
def deadline(message: str, seconds: float) -> Iterator[None]:
    """Interrupt this thread when the time is over, between two operations of Python; loops of any kind end so.

    Args:
        message (`str`): The line to refuse with.
        seconds (`float`): The time.

    Raises:
        Refused: The time is over.
    """
    thread, lock, over = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def interrupt() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_TooSlow))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    try:
        try:
            timer.start()
            yield
        finally:
            timer.cancel()
            with lock:
                over = True
    except _TooSlow:
        raise Refused(message) from None


def _short(error: BaseException) -> str:
    """Return an error's text in at most 200 characters of one line, after a heading that ends in a colon."""
    text = " ".join(str(error).split()) or first_line(error)
    return text if len(text) <= 200 else f"{text[:200]}…"
