"""Words for what the Hugging Face hub refuses; the only place for them. Imports `huggingface_hub` late."""

from __future__ import annotations

from speechlmm_core.errors import CheckpointError

FORBIDDEN = (401, 403)
"""Status codes of HTTP for who may not read something."""

_TOKEN = "make a token with read access at https://huggingface.co/settings/tokens, and give it as $HF_TOKEN or by"


class HubOfflineError(CheckpointError):
    """The hub may not be asked, by $HF_HUB_OFFLINE."""


def hub_refusal(error: Exception, name: str) -> CheckpointError | None:
    """The error to raise where the hub refuses a model; None where the hub, the network or the disk fails.

    Args:
        error: What the hub's client raised.
        name: ``<repository>[@<revision>]``.
    """
    from huggingface_hub import constants, errors

    repo, _, revision = name.partition("@")
    offline = isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    if offline or isinstance(error, errors.OfflineModeIsEnabled):
        return HubOfflineError(
            f"$HF_HUB_OFFLINE is set, which forbids to ask the hub for {repo!r}; unset it, or download the checkpoint "
            "beforehand and put its folder below $PRETRAINED_COMPONENTS"
        )
    code = getattr(getattr(error, "response", None), "status_code", None)
    words = None
    if isinstance(error, errors.GatedRepoError):
        words = (
            f"{repo!r} is gated: accept its terms at https://huggingface.co/{repo} (some are granted by hand, later), "
            f"{_TOKEN} `hf auth login`{_token_hint()}"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        words = (
            f"the hub has no model {repo!r}, or it is private; check the name at https://huggingface.co/models, or "
            f"give a token that may read it as $HF_TOKEN{_token_hint()}"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        words = f"{repo!r} has no revision {revision!r}; leave it out, or name a commit or tag"
    elif isinstance(error, errors.HFValidationError):
        words = f"{name!r} is no name on the hub (<organisation>/<model>), and no folder that is there"
    elif isinstance(error, errors.HfHubHTTPError) and code in FORBIDDEN:
        words = f"the hub refuses {repo!r} ({code}); {_TOKEN} `hf auth login`{_token_hint()}"
    return None if words is None else CheckpointError(words)


def first_line(error: Exception) -> str:
    """What an error of the hub's client says, shortened to a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _token_hint() -> str:
    from huggingface_hub import get_token

    return " (a token was sent; it has no access)" if get_token() else " (no token was sent)"
