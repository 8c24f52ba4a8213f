"""`python -m tests.sim --seed N --runs M`: simulate these seeds, and say how to replay those that fail.

Exit status 0 when nothing broke and, in a run of many seeds with all faults, every rare path was taken.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tests.sim.plan import FAULTS, PAGES, Options
from tests.sim.run import Report, run_one, simulate
from tests.sim.sometimes import N_SEEDS_FOR_ALL, missing

CHUNK = 10  # seeds handed to a process at once


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    options = Options(faults=args.faults, pages=args.pages, strict=args.strict)
    if args.trace:
        report = simulate(args.seed, options, keeps_story=True)
        Path(args.trace).write_text("\n".join(report.story) + "\n")
        print(f"{len(report.story)} lines in {args.trace}")
        return conclude(show([report]), options)
    return conclude(show(run_all(range(args.seed, args.seed + args.runs), options, args.jobs), args.runs), options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Simulate the kernel, seed by seed.")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--runs", type=int, default=100, help="how many seeds (100)")
    parser.add_argument(
        "--faults", type=groups, default=tuple(FAULTS), help=f"all, none, or some of {','.join(FAULTS)}"
    )
    parser.add_argument("--pages", choices=PAGES, default="any", help="room for KV")
    parser.add_argument("--strict", action="store_true", help="check after every pass of the event loop")
    parser.add_argument("--trace", metavar="FILE", help="write the story of the one seed to a file")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    return parser.parse_args(arguments)


def groups(text: str) -> tuple[str, ...]:
    """The groups of faults that are meant by `all`, `none`, or their names."""
    if text in ("all", "none"):
        return tuple(FAULTS) if text == "all" else ()
    names = tuple(text.split(","))
    for name in names:
        if name not in FAULTS:
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(FAULTS)}")
    return names


def run_all(seeds: range, options: Options, n_jobs: int) -> Iterator[Report]:
    """The reports of all seeds, in their order."""
    if n_jobs == 1:
        yield from (run_one(seed, options) for seed in seeds)
        return
    with ProcessPoolExecutor(n_jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(run_one, options=options), seeds, chunksize=CHUNK)


def show(reports: Iterator[Report] | Sequence[Report], n_runs: int = 1) -> list[Report]:
    """Print what fails as it fails, and how it goes on."""
    began, done = time.perf_counter(), []
    for report in reports:
        done.append(report)
        if report.broken:
            print(f"\nseed {report.seed} is broken after {report.virtual_s:.3f} s: {report.command}")
            for line in report.broken[:60]:
                print(f"    {line}")
        if len(done) % 100 == 0 or len(done) == n_runs:
            seconds = time.perf_counter() - began
            n_broken = sum(bool(r.broken) for r in done)
            print(f"{len(done)} of {n_runs} seeds, {n_broken} broken, {len(done) / seconds:.0f} a second", flush=True)
    return done


def conclude(reports: list[Report], options: Options) -> int:
    """Print what was seen, and judge."""
    seen: Counter[str] = Counter()
    for report in reports:
        seen.update(report.sometimes)
    for name, n in sorted(seen.items()):
        print(f"{n:8} {name}")
    broken = [report.seed for report in reports if report.broken]
    if broken:
        print(f"broken seeds: {broken}")
    if len(reports) < N_SEEDS_FOR_ALL or set(options.faults) != set(FAULTS):
        return int(bool(broken))
    never = missing(seen)
    for name in never:
        print(f"never seen in {len(reports)} seeds: {name}")
    return int(bool(broken or never))


if __name__ == "__main__":
    sys.exit(main())
