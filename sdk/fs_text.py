"""How what is known of KV files is written for people: sizes, times, modes, places, trees.

Called by `sdk/cli_fs.py`, with entries as `sdk/client.py` has them. Pure. Never add here: printing.
"""

from typing import Any


def size(n_bytes: float) -> str:
    """For people: 0, 512, 1.5K, 23M."""
    units = iter("KMGTP")
    unit = ""
    while n_bytes >= 1024:
        n_bytes, unit = n_bytes / 1024, next(units)
    return f"{n_bytes:.1f}{unit}" if unit and n_bytes < 10 else f"{n_bytes:.0f}{unit}"


def branches(found: list[dict[str, Any]]) -> list[str]:
    """The lines of a tree, from entries whose names are paths, each directory before what is in it."""
    lines: list[str] = []
    parents = [entry["name"].rpartition("/")[0] for entry in found]
    last = {parent: i for i, parent in enumerate(parents)}  # the entry that comes last in each directory
    for i, entry in enumerate(found):
        steps = entry["name"].split("/")
        above = ("/".join(steps[:n]) for n in range(1, len(steps)))
        bars = "".join("    " if _is_last(path, last, found) else "│   " for path in above)
        branch = "└── " if last[parents[i]] == i else "├── "
        tokens = "" if entry["kind"] == "directory" else f"  ({counted(entry['n_tokens'], 'token')})"
        lines.append(f"{bars}{branch}{entry_name(entry | {'name': steps[-1]})}{tokens}")
    return lines


def _is_last(path: str, last: dict[str, int], found: list[dict[str, Any]]) -> bool:
    return bool(found[last[path.rpartition("/")[0]]]["name"] == path)


def counted(n: int, one: str, more: str = "") -> str:
    """1 file, 2 files."""
    return f"{n} {one if n == 1 else more or f'{one}s'}"


def entry_name(entry: dict[str, Any]) -> str:
    return f"{entry['name']}{'/' if entry['kind'] == 'directory' else ''}"


def mode_bits(entry: dict[str, Any]) -> str:
    """As `ls -l` has it: -rwxr-x---."""
    bits = "".join(letter if entry["mode"] >> 8 - i & 1 else "-" for i, letter in enumerate("rwxrwxrwx"))
    return f"{'d' if entry['kind'] == 'directory' else '-'}{bits}"


def of_file(entry: dict[str, Any], *cells: object) -> tuple[object, ...]:
    """What only files have."""
    return ("-",) * len(cells) if entry["kind"] == "directory" else cells


def where(entry: dict[str, Any]) -> str:
    """Where the KV of a file is, and for how long it stays there."""
    if entry["n_tokens"] == entry["n_resident"]:
        where = "device" if entry["n_tokens"] else "-"
    elif entry["n_host_pages"]:
        where = "host" if not entry["n_pages"] else "host, device"
    elif entry["n_resident"]:
        where = "partial"
    else:
        where = "disk" if entry["is_saved"] else "dropped"
    return f"{where}, pinned {pinned(entry)}" if entry["n_pinned_pages"] else where


def pinned(entry: dict[str, Any]) -> str:
    left = entry["pinned_for_s"]
    return "while open" if left is None else f"for {duration(left)}"


def duration(seconds: float) -> str:
    """In one unit, as what is over of it: 59s, 2h."""
    for unit, length in (("s", 60), ("m", 60), ("h", 24)):
        if seconds < length:
            return f"{int(seconds)}{unit}"
        seconds /= length
    return f"{int(seconds)}d"


def lock_state(opened: dict[str, Any]) -> str:
    held, wanted = opened["lock"], opened["waits_for"]
    if wanted is None:
        return held or "-"
    return f"{held}, waits for {wanted}" if held else f"waits for {wanted}"
