"""What went wrong between this machine and the Hub."""

import json

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError


def hub_error(error: BaseException | None) -> Exception | None:
    """What the Hub or the way there caused, below the client's own wrapping; `None` if something else went wrong."""
    while error is not None:
        from_client = type(error).__module__.split(".")[0] in ("httpx", "httpx2")
        # An answer that is no JSON is a proxy's.
        named = HfHubHTTPError | LocalEntryNotFoundError | ConnectionError | TimeoutError | json.JSONDecodeError
        if from_client or isinstance(error, named):
            return error
        error = error.__cause__
    return None


def status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
