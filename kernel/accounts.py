"""What everybody has had so far: accounts of processes, of the families they form, and of tenants. Pure.

Service is counted in weighted tokens. A prompt token counts `PROMPT_WEIGHT`, a generated one `GENERATED_WEIGHT`, and
the device's time on them counts as much again: a second of it weighs as many tokens as a second has brought on
average so far. So equal tokens in a long context, which take the device longer, count for more.

An `Account` is one process's. A `Family` is a process with all that it started: what a user calls the program, and
the unit that fairness is about, since how urgent a call is depends on what all calls of its program have had
(Autellix: Luo et al., 2025). A `Tenant` is whoever has a share of the machine.

Tenants, and the families within each, have a *virtual time*: service by share. It is the order in which they are
served, so it must not become a savings book: whoever asks for something (`enter`) is lifted to at most a *window*
behind the one that is furthest, as a start tag in fair queueing (Goyal et al., 1996). A newcomer, or one that comes
back after an hour, so has the precedence of a window, which lets short programs end early, and no more than that.

`kernel/scheduler.py` opens and closes accounts; `kernel/core.py` has them `enter` with each call on the model,
`kernel/batcher.py` charges them, once per row and step. Never add here who goes first.
"""

from sdk.abi.errors import QuotaExceeded
from sdk.abi.values import Limits

# Of the virtual token counter (Sheng et al., OSDI 2024), and about what providers charge: a generated token takes a
# step of its own, while the tokens of a prompt share one.
PROMPT_WEIGHT = 1.0
GENERATED_WEIGHT = 2.0

WINDOW_S = 1.0  # of the device's time
WINDOW_TOKENS = 4096.0  # weighted, while nothing is known of the device


class Ledger:
    """Totals of one kernel since the start."""

    __slots__ = ("device_s", "tokens", "top")

    def __init__(self) -> None:
        self.tokens = 0.0  # weighted
        self.device_s = 0.0
        self.top = 0.0  # virtual time of the tenant that is furthest

    @property
    def window(self) -> float:
        """Service that the device brings in `WINDOW_S`, going by what it brought so far."""
        return WINDOW_S * 2 * self.tokens / self.device_s if self.device_s else WINDOW_TOKENS


class Tenant:
    """Whoever has a share of the machine."""

    __slots__ = ("n_processes", "name", "per_share", "service", "top", "vt")

    def __init__(self, name: str, share: float) -> None:
        self.name = name
        self.per_share = 1.0 / share
        self.service = 0.0
        self.vt = 0.0  # virtual time
        self.top = 0.0  # virtual time of its family that is furthest
        self.n_processes = 0


class Family:
    """A process with all that it has started."""

    __slots__ = ("began", "horizon", "n_tokens", "name", "number", "service", "vt")

    def __init__(self, name: str, number: int, began: float) -> None:
        self.name = name
        self.number = number  # by age
        self.began = began
        self.service = 0.0
        self.vt = 0.0  # virtual time, among the families of its tenant
        self.n_tokens = 0  # computed
        self.horizon: int | None = None  # tokens that it says it will have computed at its end


class Allowance:
    """Tokens that a process may compute, together with all that it starts."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int, used: int) -> None:
        self.limit = limit
        self.used = used


class Account:
    """One process's."""

    __slots__ = (
        "_own",
        "_seen_tokens",
        "_served_at",
        "allowances",
        "device_s",
        "family",
        "ledger",
        "limits",
        "most_urgent",
        "n_generated_tokens",
        "n_prompt_tokens",
        "n_recomputed_tokens",
        "n_swapped_tokens",
        "priority",
        "service",
        "tenant",
    )

    def __init__(self, ledger: Ledger, tenant: Tenant, family: Family, priority: int) -> None:
        self.ledger = ledger
        self.tenant = tenant
        self.family = family
        self.priority = priority  # lower goes first
        self.most_urgent = priority  # it may not become more urgent than it was started
        self.limits = Limits()
        self.allowances: tuple[Allowance, ...] = ()  # its own, and those of whoever started it
        self._own: Allowance | None = None
        self.service = 0.0
        self.device_s = 0.0  # of the steps it took part in, its share
        self.n_prompt_tokens = 0  # computed, by kind
        self.n_generated_tokens = 0
        self.n_swapped_tokens = 0  # whose KV was moved to main memory
        self.n_recomputed_tokens = 0  # whose KV was computed again
        self._seen_tokens = 0
        self._served_at = float("-inf")

    @property
    def age(self) -> tuple[float, ...]:
        """Smaller is older: priority class, then when its family began."""
        return self.priority, self.family.began, self.family.number

    @property
    def n_tokens(self) -> int:
        """Computed so far."""
        return self.n_prompt_tokens + self.n_generated_tokens

    def charge(self, n_prompt: int, n_generated: int, device_s: float) -> None:
        """So many tokens were computed, and took that much of the device's time. Called for every row of every step."""
        ledger, family, tenant = self.ledger, self.family, self.tenant
        n_tokens = n_prompt + n_generated
        tokens = PROMPT_WEIGHT * n_prompt + GENERATED_WEIGHT * n_generated
        ledger.tokens = total = ledger.tokens + tokens
        ledger.device_s += device_s
        service = tokens + device_s * total / ledger.device_s if device_s else tokens
        self.n_prompt_tokens += n_prompt
        self.n_generated_tokens += n_generated
        self.device_s += device_s
        self.service += service
        family.n_tokens += n_tokens
        family.service += service
        family.vt += service
        if family.vt > tenant.top:
            tenant.top = family.vt
        tenant.service += service
        tenant.vt += service * tenant.per_share
        if tenant.vt > ledger.top:
            ledger.top = tenant.vt
        for allowance in self.allowances:
            allowance.used += n_tokens

    def enter(self) -> None:
        """Something is asked for on the process's behalf."""
        ledger, family, tenant = self.ledger, self.family, self.tenant
        window = ledger.window
        if family.vt < tenant.top - window:
            family.vt = tenant.top - window
        if tenant.vt < ledger.top - window * tenant.per_share:
            tenant.vt = ledger.top - window * tenant.per_share

    def waited(self, now: float, since: float) -> float:
        """Seconds that something of its has waited since `since` with nothing computed for the process meanwhile."""
        if self._seen_tokens != (n_tokens := self.n_prompt_tokens + self.n_generated_tokens):
            self._seen_tokens = n_tokens
            self._served_at = now
        return now - max(since, self._served_at)

    # --- limits ---

    @property
    def is_limited(self) -> bool:
        """Whether `afford` is worth asking, or there is a limit of pages."""
        return bool(self.allowances) or self.limits.pages is not None

    @property
    def n_left(self) -> int | None:
        """Tokens that it may still compute; None: as many as it likes."""
        return min((max(0, a.limit - a.used) for a in self.allowances), default=None)

    def afford(self, n_tokens: int) -> None:
        """Raises QuotaExceeded when so many tokens more are over its limit."""
        for a in self.allowances:
            if a.used + n_tokens > a.limit:
                raise QuotaExceeded(
                    f"the limit is {a.limit} tokens: {a.used} are computed, and {n_tokens} more are wanted; "
                    "whoever started this program may give it a higher one"
                )

    def inherit(self, parent: "Account", limits: Limits) -> None:
        """Begin with what a parent has left."""
        self.allowances = parent.allowances
        self.limits = limits

    def narrow(self, wanted: Limits) -> None:
        """Take over what `wanted` names. Raises AccessDenied when that is more than it may have now."""
        self.limits = self.limits.narrowed(wanted)
        if wanted.tokens is not None:
            if self._own is None:
                self._own = Allowance(wanted.tokens, self.n_tokens)
                self.allowances = (*self.allowances, self._own)
            self._own.limit = wanted.tokens
        if wanted.horizon_tokens is not None:
            self.family.horizon = wanted.horizon_tokens
