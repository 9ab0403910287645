"""`orthossl report`: write a page that says what a run came to, where it has collapsed and what to try."""

from ..reporting import write_report
from .options.report import ReportArguments


def main(args: ReportArguments) -> None:
    """Run the command.

    Args:
        args ([`ReportArguments`]): The options.
    """
    print(f"report   {write_report(args.run, args.output, images=args.images)}")
