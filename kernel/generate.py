"""`generate`: the loop that lives in the kernel. Pure.

The sequence stays in the running batch: a step feeds the token sampled before and samples the next, and the
program is not woken per token. The job's phases:

    PROMPT   feed the prompt in chunks; the last chunk samples. With no prompt the file's stored tail is sampled.
    DECODE   feed the accepted token, sample the next, until a stop.
    SETTLE   make the file hold exactly the text: feed the last accepted token, or cut a stop string off again.

A step need not wait for the one before it: it is *chained*, and feeds whatever that one draws, on the worker. So
a stop is seen when one more step is in flight already. If the token which that step feeds is part of the result its
draw is ignored; otherwise the step is surplus, and the batcher takes it back.

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
from sdk.abi.visible import Runs

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
        visible: Runs = (),
    ) -> None:
        super().__init__(file, on_done, on_fail)
        self.visible = visible
        self.decoding = decoding
        self.seed = seed
        self.last_token = last_token  # of the file
        self.history = history
        self._language = language
        self._on_chunk = on_chunk
        self._eos = frozenset() if decoding.ignore_eos else eos_tokens
        self._stops = self._eos | frozenset(decoding.stop_tokens)
        self._n_max = min(decoding.max_tokens or n_room, n_room)  # n_room: what the context has left
        self._reads_history = needs_history(decoding.sampling)
        self._reads_text = bool(decoding.stop) or on_chunk is not None  # as it comes, and not only at the end

        self.prompt = prompt  # with the file's last token before it, if that is computed again
        self.tokens: list[int] = []  # accepted
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.n_sampled = 0
        self._first_position = next_position  # of the prompt
        self._n_again = 0
        self._n_prompt_sent = 0
        self._n_sent = 0  # accepted tokens that are fed or in flight, and one more if a step is chained to a draw
        self._n_fed = 0  # of those, fed
        self._n_draws = 0  # in flight
        self._surplus = False

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
        return (
            self.finish_reason is not None
            and self._n_prompt_sent == len(self.prompt)
            and self._n_fed == len(self.tokens)
            and not self.sent
        )

    # --- steps ---

    def again(self) -> None:
        self.prompt = [self.last_token, *self.prompt]
        self._first_position -= 1
        self._n_again = 1

    @property
    def keeps_partial(self) -> bool:
        return True

    @property
    def ready(self) -> bool:
        if self._n_prompt_sent < len(self.prompt) or self._n_sent < len(self.tokens):
            return True
        if self.finish_reason is not None:
            return False
        if self._n_draws:
            return self._n_sent == len(self.tokens) and not self._reads_history
        return not self.tokens and not self.sent  # nothing but the file's tail to draw from

    @property
    def n_wanted(self) -> int:
        return len(self.prompt) - self._n_prompt_sent or len(self.tokens) - self._n_sent or 1

    def next_step(self, n_tokens_max: int) -> Step:
        n_prompt, position = self._n_prompt_sent, self._first_position + self._n_prompt_sent + self._n_sent
        if n_prompt < len(self.prompt):
            again = 0 if n_prompt else self._n_again
            if again and self.visible:
                n_tokens_max = again  # alone, since it is no new token and sees all
            feed = self.prompt[n_prompt : n_prompt + n_tokens_max]
            self._n_prompt_sent += len(feed)
            draws = self._n_prompt_sent == len(self.prompt) and self.finish_reason is None
            step = Step(feed, None, [], n_again=again, visible=() if again else self.visible, mark=True)
        elif self._n_sent < len(self.tokens):
            feed = self.tokens[self._n_sent : self._n_sent + n_tokens_max]
            self._n_sent += len(feed)
            draws = self._n_sent == len(self.tokens) and self.finish_reason is None
            step = Step(feed, None, [], visible=self.visible, mark=False)
        elif self._n_draws:
            feed = [0]
            self._n_sent += 1
            draws = self._n_sent < self._n_max
            step = Step(feed, None, [], chained=True, visible=self.visible, mark=False)
        else:
            feed, draws = [], True
            step = Step(feed, None, [], mark=False)
        if draws:
            history: list[int] = []
            step.asks.append(self._ask(len(feed), position + len(feed), history))
            step.history = history
            self._n_draws += 1
        return step

    def retract(self, step: Step) -> None:
        self._n_draws -= len(step.asks)
        if step.mark:
            self._n_prompt_sent -= len(step.tokens)
        else:
            self._n_sent -= len(step.tokens)

    def _ask(self, n_feed: int, position: int, history: list[int]) -> Ask:
        sampling = self._sampling()
        if self._reads_history:
            history.extend(self.history()[: self.n_file] + self.prompt[self._n_again :] + self.tokens)
        draw = Draw(sampling, self.seed, position, len(history), len(self.tokens) if history else 0)
        return Ask(n_feed - 1, draw, self.decoding.logprobs or 0)

    def _sampling(self) -> Sampling:
        """Before `min_tokens` a stop token may not be drawn at all."""
        sampling, n_min = self.decoding.sampling, self.decoding.min_tokens
        if not n_min or len(self.tokens) + self._n_draws >= n_min or not self._stops:
            return sampling
        bias = dict(sampling.logit_bias) | dict.fromkeys(self._stops, FORBIDDEN)
        return Sampling(**{f: getattr(sampling, f) for f in Sampling.__struct_fields__} | {"logit_bias": bias})

    def computed(self, step: Step) -> None:
        if step.mark:
            self.n_prompt_tokens += len(step.tokens)
        else:
            self.n_generated_tokens += len(step.tokens)

    def took(self, step: Step, answers: list[Answer], logits: list[bytes]) -> None:
        self.computed(step)
        self._surplus = False
        if not step.mark:
            self._n_fed += len(step.tokens)
        for answer in answers:
            self._n_draws -= 1
            if self.finish_reason is None:
                self._sampled(answer)
        if self._surplus:
            self._n_draws = 0
        if self.finish_reason is not None and not self._settled and self._n_prompt_sent == len(self.prompt):
            self._settle()

    @property
    def surplus(self) -> bool:
        return self._surplus

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
            elif self._n_sent > len(self.tokens):
                self._surplus = True
                self._n_sent = len(self.tokens)
            return
        self._accept(token, answer)
        if self._find_stop():
            self.finish_reason = FinishReason.STOP
        elif len(self.tokens) >= self._n_max:
            self.finish_reason = FinishReason.LENGTH

    def _accept(self, token: int, answer: Answer) -> None:
        self.tokens.append(token)
        if self.decoding.logprobs is not None:
            top = list(zip(answer.top_tokens, answer.top_logprobs, strict=True))
            self.logprobs.append(TokenLogprob(token, answer.sample_logprob or 0.0, top))
        if self._reads_text:
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
        at = self._ends[n_keep - 1][0] if n_keep else 0
        rest = self._language.encode(self._text[at:n_chars])
        self._text = self._text[:n_chars]
        self.tokens[n_keep:] = rest
        self.logprobs[n_keep:] = []
        self._ends[n_keep:] = [(n_chars, True)] * len(rest)
        if self._n_sent > n_keep:
            self._surplus = self._n_sent > self._n_fed
            self._n_sent = min(self._n_fed, n_keep)
        if self._n_fed > n_keep:
            self.truncate_to = self.n_file + len(self.prompt) - self._n_again + n_keep
            self._n_fed = n_keep

    def _settle(self) -> None:
        self._settled = True
        if not self._reads_text:
            self._text = self._language.decode(self.tokens, skip_special=True)
        elif self._decoder.holds_back and not isinstance(self.stop_reason, str):
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
