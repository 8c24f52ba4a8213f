"""Which policies serve programs best? Traces through the simulator: batching and process policies compared.

The real kernel in virtual time, on a simulated worker whose steps cost what its cost model says
(`tests/sim/scenarios.py`); figures are therefore exact and the same on every machine. One mixed trace of programs
that arrive at random (long and short answers, and agents that wait for tools) is replayed under each firing policy
of `kernel/pacing.py` and each process policy of `kernel/scheduler.py`; then fairness, a greedy tenant and agents whose
memory does not suffice, each by itself.
"""

import random
from typing import Any

import msgspec

from perf.harness import Findings
from tests.sim.scenarios import BASE, Job, fairness, greedy_tenant, jain, perform, tool_user, tool_waits, writer

FIRING = ("eager", "k", "t", "k-or-t", "adaptive")
PROCESS = ("fcfs", "fair", "srpt")
N_PROGRAMS = 60
MAX_ROWS = 8
N_TOKENS = 100_000  # room for all
MODES = ("auto", "recompute")


def measure(quick: bool = False, seed: int = 1) -> Findings:
    n_programs = 12 if quick else N_PROGRAMS
    found = Findings()
    for policy in FIRING:
        replay(found, f"firing {policy}", n_programs, seed, batch_policy=policy, batch_k=MAX_ROWS)
    for policy in PROCESS:
        replay(found, f"programs {policy}", n_programs, seed, scheduling_policy=policy)
    for policy in PROCESS:
        equal = fairness(n_programs=8 if quick else 32, scheduling_policy=policy)
        found.add(f"programs {policy}: Jain of service, half way", "x", equal.jain_service)
    greedy = greedy_tenant(n_greedy=8 if quick else 64)
    found.add("a modest tenant beside a greedy one, by its time beside an equal", "x", greedy.ratio)
    found.expect(greedy.ratio <= 1.3, f"a greedy tenant costs a modest one {greedy.ratio:.2f} times its time")
    for mode in MODES:
        waits = tool_waits(n_agents=4 if quick else 16, preemption_mode=mode)
        found.add(f"agents that wait, memory for half, {mode}: recomputed", "%", 100 * waits.recomputed_share)
        found.add(
            f"agents that wait, memory for half, {mode}: time by that with room",
            "x",
            waits.seconds / waits.ample_seconds,
        )
        found.expect(waits.same_results, f"{mode}: results differ from those with room for all")
    found.note(f"virtual time; {n_programs} programs on one worker with batches of {MAX_ROWS} rows, seed {seed}")
    return found


def replay(found: Findings, name: str, n_programs: int, seed: int, **settings: Any) -> None:
    """The mixed trace under one policy."""
    jobs = trace(n_programs, seed)
    plan = msgspec.structs.replace(BASE, max_rows=MAX_ROWS)
    world, seconds = perform(jobs, plan, n_tokens=N_TOKENS, beside=None, **settings)
    times = sorted(job.seconds for job in jobs)
    counters = world.kernel.counters
    n_tokens = counters.n_prompt_tokens + counters.n_generated_tokens
    found.add(f"{name}: completion p50", "s", times[len(times) // 2])
    found.add(f"{name}: completion p99", "s", times[-1 - len(times) // 100])
    found.add(f"{name}: tokens", "1/s", n_tokens / seconds)
    found.add(f"{name}: Jain of slowdowns", "x", jain([job.seconds / weight(job) for job in jobs]))
    found.add(f"{name}: recomputed", "%", 100 * counters.n_recomputed_tokens / n_tokens)


def trace(n_programs: int, seed: int) -> list[Job]:
    """Programs as they arrive: Poisson, two thirds writers with answers of very different lengths, one third agents."""
    dice = random.Random(seed)
    at_s, jobs = 0.0, []
    for i in range(n_programs):
        at_s += dice.expovariate(8.0)
        size = {"seed": i, "n_prompt": dice.choice([16, 64, 256]), "n_tokens": dice.choice([8, 32, 192])}
        if i % 3 == 2:
            job = Job(tool_user, size | {"n_tokens": 16, "n_turns": 3, "wait_s": 0.2}, owner=f"tenant-{i % 4}")
        else:
            job = Job(writer, size, owner=f"tenant-{i % 4}")
        job.at_s = at_s
        jobs.append(job)
    return jobs


def weight(job: Job) -> float:
    """How much a program wants, to which its time is to be in proportion."""
    a = job.args
    turns = a.get("n_turns", 1)
    return float(turns * a["n_tokens"] + a["n_prompt"] / 16 + 100 * turns * a.get("wait_s", 0.0))
