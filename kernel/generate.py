"""`generate`: the loop that lives in the kernel. Pure.

The sequence stays in the running batch: a step feeds the token sampled before and samples the next, and the
program is not woken per token. The job's phases:

    PROMPT   feed the prompt in chunks; the last chunk samples. With no prompt the file's stored tail is sampled.
    DECODE   feed the accepted token, sample the next, until a stop.
    SETTLE   make the file hold exactly the text: feed the last accepted token, or cut a stop string off again.

Every accepted token is fed once, so a generation of n tokens computes n of them. A stop string may begin inside
a token: then the file is cut at the token boundary before it and the rest of the text is fed anew, in tokens.
"""

from collections.abc import Callable

from gpuworker.wire import Answer, Ask, Draw
from kernel.jobs import Job, Step, needs_history
from kernel.language import Language
from kvfs.openfile import OpenFile
from sdk.abi.errors import SyscallError
from sdk.abi.values import Chunk, Decoding, FinishReason, Generation, Sampling, TokenLogprob

FORBIDDEN = -1e9  # logit bias of a token that may not be drawn


class GenerateJob(Job):
    """One generation on one file."""

    def __init__(
        self,
        file: OpenFile,
        prompt: list[int],
        decoding: Decoding,
        *,
        language: Language,
        eos_tokens: frozenset[int],
        n_room: int,
        next_position: int,
        last_token: int,
        seed: int,
        history: Callable[[], list[int]],
        on_done: Callable[[Generation], None],
        on_fail: Callable[[SyscallError], None],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> None:
        super().__init__(file, on_done, on_fail)
        self.decoding = decoding
        self.seed = seed
        self.next_position = next_position  # of the next token to be fed
        self.last_token = last_token  # of the file
        self.history = history
        self._language = language
        self._on_chunk = on_chunk
        self._eos = frozenset() if decoding.ignore_eos else eos_tokens
        self._stops = self._eos | frozenset(decoding.stop_tokens)
        self._n_max = min(decoding.max_tokens or n_room, n_room)  # n_room: what the context has left

        self.prompt = prompt  # yet to be fed
        self._whole_prompt = prompt
        self.pending: list[int] = []  # accepted, yet to be fed
        self.tokens: list[int] = []  # accepted
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.n_sampled = 0
        self.n_again = 0

        self._decoder = language.decoder()
        self._text = ""
        self._ends: list[tuple[int, bool]] = []  # per token: characters of text after it, whether a boundary is there
        self._n_told = 0  # characters streamed
        self._n_told_tokens = 0
        self._settled = False
        if self._n_max == 0:
            self.finish_reason = FinishReason.LENGTH

    @property
    def over(self) -> bool:
        """Whether nothing is left to compute; true from the start when the file fills the context."""
        return self.finish_reason is not None and not self.prompt and not self.pending

    # --- steps ---

    def again(self) -> None:
        self.prompt = [self.last_token, *self.prompt]
        self.next_position -= 1
        self.n_again = 1

    @property
    def keeps_partial(self) -> bool:
        return True

    @property
    def n_wanted(self) -> int:
        return len(self.prompt) or len(self.pending)

    def next_step(self, n_tokens_max: int) -> Step:
        feed = (self.prompt or self.pending)[:n_tokens_max]
        last_chunk = len(feed) == len(self.prompt or self.pending)
        asks: list[Ask] = []
        history: list[int] = []
        if last_chunk and self.finish_reason is None:
            asks.append(self._ask(len(feed), history))
        return Step(feed, None, asks, history, self.n_again)

    def _ask(self, n_feed: int, history: list[int]) -> Ask:
        sampling = self._sampling()
        if needs_history(sampling):
            history.extend(self.history()[: self.n_file] + self._whole_prompt + self.tokens)
        draw = Draw(sampling, self.seed, self.next_position + n_feed, len(history), len(self.tokens) if history else 0)
        return Ask(n_feed - 1, draw, self.decoding.logprobs or 0)

    def _sampling(self) -> Sampling:
        """Before `min_tokens` a stop token may not be drawn at all."""
        sampling = self.decoding.sampling
        if len(self.tokens) >= self.decoding.min_tokens or not self._stops:
            return sampling
        bias = dict(sampling.logit_bias) | dict.fromkeys(self._stops, FORBIDDEN)
        return Sampling(**{f: getattr(sampling, f) for f in Sampling.__struct_fields__} | {"logit_bias": bias})

    def computed(self, step: Step) -> None:
        if self.prompt:
            self.n_prompt_tokens += len(step.tokens)
        else:
            self.n_generated_tokens += len(step.tokens)

    def took(self, step: Step, answers: list[Answer], logits: list[bytes]) -> bool:
        n_fed = len(step.tokens)
        self.computed(step)
        self.next_position += n_fed
        if self.prompt:
            self.prompt = self.prompt[n_fed:]
            self.n_again = 0
        else:
            self.pending = self.pending[n_fed:]
        for answer in answers:
            self._sampled(answer)
        if self.finish_reason is not None and not self.prompt and not self._settled:
            self._settle()
        return self.over

    # --- tokens ---

    def _sampled(self, answer: Answer) -> None:
        token = answer.sample
        assert token is not None, "a step of generate always draws"
        self.n_sampled += 1
        if token in self._stops:
            self.finish_reason = FinishReason.STOP
            self.stop_reason = None if token in self._eos and token not in self.decoding.stop_tokens else token
            if self.decoding.include_stop:
                self._accept(token, answer)
            return
        self._accept(token, answer)
        if self._find_stop():
            self.finish_reason = FinishReason.STOP
        elif len(self.tokens) >= self._n_max:
            self.finish_reason = FinishReason.LENGTH

    def _accept(self, token: int, answer: Answer) -> None:
        self.tokens.append(token)
        self.pending.append(token)
        if self.decoding.logprobs is not None:
            top = list(zip(answer.top_tokens, answer.top_logprobs, strict=True))
            self.logprobs.append(TokenLogprob(token, answer.sample_logprob or 0.0, top))
        self._text += self._decoder.push(token)
        self._ends.append((len(self._text), not self._decoder.holds_back))

    def _find_stop(self) -> bool:
        """Look for the first stop string that the newest text completes, and cut the text there."""
        if len(self.tokens) < self.decoding.min_tokens or not self.decoding.stop:
            return False
        begun = self._ends[-2][0] if len(self._ends) > 1 else 0
        found = [
            (at, stop)
            for stop in self.decoding.stop
            if (at := self._text.find(stop, max(0, begun - len(stop) + 1, self._n_told))) >= 0
        ]
        if not found:
            return False
        at, stop = min(found, key=lambda f: f[0])
        self.stop_reason = stop
        self._cut(at + len(stop) if self.decoding.include_stop else at)
        return True

    def _cut(self, n_chars: int) -> None:
        """Keep the first `n_chars` characters, of text and tokens alike."""
        n_keep = len(self._ends)
        while n_keep and not (self._ends[n_keep - 1][0] <= n_chars and self._ends[n_keep - 1][1]):
            n_keep -= 1
        n_fed = len(self.tokens) - len(self.pending)
        at = self._ends[n_keep - 1][0] if n_keep else 0
        rest = self._language.encode(self._text[at:n_chars])
        self._text = self._text[:n_chars]
        self.tokens[n_keep:] = rest
        self.logprobs[n_keep:] = []
        self._ends[n_keep:] = [(n_chars, True)] * len(rest)
        if n_fed > n_keep:
            self.truncate_to = self.n_file + len(self._whole_prompt) + n_keep
            self.next_position -= n_fed - n_keep
        self.pending = self.tokens[min(n_fed, n_keep) :]

    def _settle(self) -> None:
        self._settled = True
        if self._decoder.holds_back and not isinstance(self.stop_reason, str):
            self._text += self._decoder.flush()

    # --- telling ---

    def tell(self) -> None:
        """Stream what can no longer be part of a stop string; say `finish` once the file is settled."""
        if self._on_chunk is None:
            return
        over = self.finish_reason is not None
        n_chars = len(self._text) if over else len(self._text) - self._n_held()
        n_tokens = len(self.tokens) if over else self._n_safe(n_chars)
        settled = self.over
        if n_tokens == self._n_told_tokens and n_chars == self._n_told and not settled:
            return
        chunk = Chunk(
            self._text[self._n_told : n_chars],
            self.tokens[self._n_told_tokens : n_tokens],
            self.logprobs[self._n_told_tokens : n_tokens],
            self.finish_reason if settled else None,
            self.stop_reason if settled else None,
            self.n_sampled,
        )
        self._n_told, self._n_told_tokens = n_chars, n_tokens
        self._on_chunk(chunk)

    def _n_safe(self, n_chars: int) -> int:
        """Tokens whose text, and no half character more, lies within the first `n_chars`."""
        n = len(self._ends)
        while n > self._n_told_tokens and not (self._ends[n - 1][0] <= n_chars and self._ends[n - 1][1]):
            n -= 1
        return n

    def _n_held(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        longest = 0
        for stop in self.decoding.stop:
            for n in range(min(len(stop) - 1, len(self._text) - self._n_told), longest, -1):
                if self._text.endswith(stop[:n]):
                    longest = n
                    break
        return longest

    def result(self) -> Generation:
        assert self.finish_reason is not None
        return Generation(self._text, self.tokens, self.finish_reason, self.stop_reason, self.logprobs, self.n_sampled)
