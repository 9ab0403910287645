"""Keep where this process is: what its peers are told while they wait for it, and what a user is told when it ends."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass
class Progress:
    """The position of this process in its command.

    Attributes:
        command (`str`): Its name, for lines that are printed.
        arrivals (`int`): How many collectives it has entered: of all processes, those with fewest are waited for.
        step (`int`, *optional*): The optimizer step that it takes.
        training (`bool`): Whether it is between the first step and the last.
        busy (`int`): How many tasks it is in that may take long without computing, such as an upload.
        remedy (`Callable`): Returns how the user can go on if it ends now.
        resumed (`str`): How the same command continues a run that has a checkpoint.
    """

    command: str = "orthossl"
    arrivals: int = 0
    step: int | None = None
    training: bool = False
    busy: int = 0
    remedy: Callable[[], str] = lambda: "start the command again"
    resumed: str = "with --resume"

    def begin(self, command: str) -> None:
        """Begin a command, without a position yet."""
        vars(self).update(vars(Progress(command)))

    @contextlib.contextmanager
    def waiting_elsewhere(self) -> Iterator[None]:
        """Declare a task that may take long without computing."""
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1


here = Progress()
