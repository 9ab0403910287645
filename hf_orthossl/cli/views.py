"""`orthossl views`: draw the augmented views that a run would see."""

from ..data.view_sheet import draw_views
from .options.views import ViewsArguments


def main(args: ViewsArguments) -> None:
    """Run the command.

    Args:
        args ([`ViewsArguments`]): The options.
    """
    assert args.views is not None
    sheet = draw_views(
        args.location,
        args.views,
        args.output,
        image_size=args.image_size,
        images=args.images,
        seed=args.seed,
        split=args.split,
        **args.reading(),
    )
    changed = f" ({sheet.changes})" if sheet.changes else ""
    print(f"views    {sheet.recipe.name}: {len(sheet.views)} of each of {len(sheet.rows)} images{changed}")
    print(f"sheet    {args.output}")
