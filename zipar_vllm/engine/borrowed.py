"""vLLM's fields that carry what they were not made for, all of them, each with its reason.

vLLM 0.32 has no open field in the messages between its processes. Whoever moves the project to
another version, or wants a feature that one of these fields belongs to, looks here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zipar_vllm.decoding.policy import DraftCount

from .vllm_api import Request, RequestOutput, SchedulerStats

_STATS_PREFIX = "zipar."
_STEPS = "zipar_steps"
_DRAFTS = "zipar_drafts"


@dataclass(frozen=True, slots=True)
class ImageStats:
    """What the engine did since the last statistics, and does now.

    Attributes:
        tokens: Tokens sampled.
        passes: Forward passes that sampled them.
        rows: Rows in progress now.
        guidance_lanes: Images under guidance now.
        drafts: Drafts made.
        accepted_drafts: How many of them were accepted.
    """

    tokens: int
    passes: int
    rows: int
    guidance_lanes: int
    drafts: int = 0
    accepted_drafts: int = 0


def put_stats(carrier: SchedulerStats, stats: ImageStats) -> None:
    """Send statistics from the scheduler to the API server, in ``running_lora_adapters``.

    It is the one open mapping of what is sent after every step, and nothing reads it here: the
    engine refuses LoRA (:func:`~zipar_vllm.engine.arguments.check_config`).
    """
    carrier.running_lora_adapters = {_STATS_PREFIX + k: v for k, v in asdict(stats).items()}


def get_stats(carrier: SchedulerStats) -> ImageStats | None:
    """Read what :func:`put_stats` sent; None for the statistics of another scheduler."""
    sent = carrier.running_lora_adapters
    names = ImageStats.__slots__
    if any(_STATS_PREFIX + name not in sent for name in names):
        return None
    return ImageStats(**{name: sent[_STATS_PREFIX + name] for name in names})


def put_steps(
    transfer: dict[str, Any] | None, steps: int, drafts: DraftCount | None = None
) -> dict[str, Any]:
    """Send the number of an image's forward passes with its last output, in KV transfer's table.

    With it go its drafts, made and accepted, where it made any. It reaches any vLLM client; KV
    transfer is refused.
    """
    sent = {**(transfer or {}), _STEPS: steps}
    return sent if drafts is None else {**sent, _DRAFTS: [drafts.made, drafts.accepted]}


def get_steps(output: RequestOutput) -> int | None:
    """Read what :func:`put_steps` sent; None until the image is finished."""
    transfer = output.kv_transfer_params
    return transfer.get(_STEPS) if transfer else None


def get_accepted_drafts(output: RequestOutput) -> float | None:
    """The share of an image's drafts that were accepted; None until it is finished, or of none."""
    made, accepted = (output.kv_transfer_params or {}).get(_DRAFTS, (0, 0))
    return accepted / made if made else None


def refuse(scheduler: Any, request: Request) -> None:
    """End a request with an error at the next step, as one whose grammar does not compile.

    vLLM ends the requests of that set with an error of their own, and no others.
    """
    scheduler.grammar_compile_error_reqs.add(request.request_id)


def is_refused(scheduler: Any, request: Request) -> bool:
    """Whether :func:`refuse` was called for a request."""
    return request.request_id in scheduler.grammar_compile_error_reqs
