"""Results on disk: those that were stored, and `peers.json`, what other servers did on the same workloads.

`perf/results/peers.json` holds medians by the names of our figures, and the machine they were taken on. A ratio
to a peer says how many times as fast we are. It is ours to say whenever two machines differ.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from perf import show
from perf.harness import Figure, Result
from perf.machine import Machine

RESULTS = Path(__file__).parent / "results"
PEERS = RESULTS / "peers.json"

T = TypeVar("T")


class NoResults(Exception):
    """There is nothing to compare; the text is one line."""


class Peer(Struct, frozen=True):
    """Another server."""

    version: str
    flags: str
    date: str
    figures: dict[str, float]  # medians
    note: str = ""


class Peers(Struct, frozen=True):
    """What peers.json holds."""

    machine: Machine
    date: str
    client: str  # how it was measured
    peers: dict[str, Peer]


def load_peers(path: Path = PEERS) -> Peers | None:
    """None when nobody has measured any. Raises NoResults for a file that cannot be read."""
    if not path.exists():
        return None
    return _read(path, Peers)


def ratios(figures: Mapping[str, Figure], peers: Peers) -> dict[str, dict[str, float]]:
    """For each figure that is a speed and that a peer has too: how many times as fast we are."""
    found: dict[str, dict[str, float]] = {}
    for name, ours in figures.items():
        for who, peer in peers.peers.items():
            speed = show.speedup(ours, peer.figures[name]) if name in peer.figures else None
            if speed is not None:
                found.setdefault(name, {})[who] = float(f"{speed:.4g}")
    return found


def caveat(peers: Peers, here: Machine) -> str:
    """What must be said whenever these peers are named."""
    if peers.machine.like(here):
        return f"peers were measured on this kind of machine on {peers.date}, with the same workloads"
    return (
        f"peers were measured on ANOTHER MACHINE ({peers.machine}) on {peers.date}: a ratio to one compares the "
        "machines as well as the servers; measure it here with --base for a verdict"
    )


def table(paths: Sequence[Path]) -> str:
    """Markdown of the newest stored result, or of those in the first of `paths`, against the peers and the rest.

    A smoke test is compared with nobody: its workloads are others. Raises NoResults."""
    ours = load_results(paths[0]) if paths else [_newest()]
    if not ours:
        raise NoResults(f"{paths[0]} holds no results")
    others = {path.stem: {n: f.median for r in load_results(path) for n, f in r.figures.items()} for path in paths[1:]}
    peers = load_peers()
    return "\n\n".join(_one(result, others, None if result.quick else peers) for result in ours)


def _one(ours: Result, others: Mapping[str, Mapping[str, float]], peers: Peers | None) -> str:
    known = {} if peers is None else {w: p for w, p in peers.peers.items() if p.figures.keys() & ours.figures.keys()}
    said = show.remarks(ours)
    if peers is not None and known:
        about = [caveat(peers, ours.machine), *(f"{who}: {p.note}" for who, p in known.items() if p.note)]
        said += [line for line in (f"note: {text}" for text in about) if line not in said]
    columns = dict(others) | {who: peer.figures for who, peer in known.items()}
    return "\n\n".join([show.markdown(ours, columns), "\n".join(said)])


def load_results(path: Path) -> list[Result]:
    """What `--json` wrote. Raises NoResults."""
    return _read(path, list[Result])


def _newest() -> Result:
    """Of what is stored: with ratios to peers before one without. Raises NoResults."""
    files = [path for path in sorted(RESULTS.glob("*.json")) if path != PEERS]
    results = [result for path in files for result in load_results(path) if not result.quick]
    if not results:
        raise NoResults(f"no results are stored: run `python -m perf openai --json {RESULTS}/NAME.json` first")
    return max(results, key=lambda r: (bool(r.ratios), r.date))


def _read(path: Path, tp: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=tp)
    except OSError as e:
        raise NoResults(f"cannot read {path}: {e.strerror}") from None
    except msgspec.DecodeError as e:
        raise NoResults(f"{path} is not what `python -m perf --json` writes: {e}") from None
