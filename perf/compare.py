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
    """Markdown of the newest stored result, or of those in the first of `paths`, against the peers and the rest."""
    ours = [_newest(_stored())] if not paths else load_results(paths[0])
    if not ours:
        raise NoResults(f"{paths[0]} holds no results")
    others: dict[str, Mapping[str, float]] = {}
    for path in paths[1:]:
        others[path.stem] = {name: f.median for r in load_results(path) for name, f in r.figures.items()}
    peers = load_peers()
    parts = []
    for result in ours:
        columns = dict(others)
        names = [] if peers is None else [p for p in peers.peers if peers.peers[p].figures.keys() & result.figures.keys()]
        if peers is not None and names:
            columns |= {name: peers.peers[name].figures for name in names}
            said = caveat(peers, result.machine)
            if f"note: {said}" not in show.remarks(result):
                result.notes.append(said)
        parts.append(show.markdown(result, columns))
    return "\n\n".join(parts)


def load_results(path: Path) -> list[Result]:
    """What `--json` wrote. Raises NoResults."""
    return _read(path, list[Result])


def _stored() -> list[Result]:
    files = [path for path in sorted(RESULTS.glob("*.json")) if path != PEERS]
    return [result for path in files for result in load_results(path) if not result.quick]


def _newest(results: Sequence[Result]) -> Result:
    """Of those that peers have figures for, if there are any."""
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
