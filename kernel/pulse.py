"""Whether a worker is to be given up. Pure: the clock is an argument.

Silence of a moment is enough when another worker can go on with what it has: a loss costs only time. The last one
gets the benefit of the doubt for longer. One that answers pings and no batch is stuck.
"""

from kernel.attachment import Attached
from kernel.config import Config
from kernel.workers import State, Workers

STUCK = 10  # times as long as a batch should take


def sick(attached: Attached, workers: Workers, config: Config, now: float) -> str | None:
    """Why a worker is to be given up; None while it is well."""
    worker = attached.worker
    if worker.state is State.JOINING:
        return None
    silent_s = now - worker.heard
    others = [w for w in workers if w is not worker and w.state is State.READY]
    elsewhere = any(now - w.heard < config.worker_suspect_s for w in others)
    if silent_s > config.worker_silence_s or (silent_s > config.worker_suspect_s and elsewhere):
        return f"it was silent for {silent_s:.1f} s"
    since = attached.batcher.running_since
    if since is not None:
        expected_s = attached.batcher.expected_s
        limit_s = max(config.batch_deadline_s, STUCK * expected_s) if expected_s else config.first_batch_deadline_s
        if now - since > limit_s:
            return f"it answers pings, and a batch not for {now - since:.1f} s"
    return None
