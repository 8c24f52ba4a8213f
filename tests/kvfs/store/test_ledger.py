"""The ledger against the file system that it follows: the tree it makes is what should be found after a restart."""

import random
from array import array

import pytest

from kvfs.access import OPERATOR, Who
from kvfs.directory import Directory
from kvfs.fs import Kvfs
from kvfs.inode import Inode
from kvfs.store.ledger import Copy, Ledger
from kvfs.store.tree import Tree
from sdk.abi.errors import SyscallError
from sdk.abi.values import OpenMode

WALL_S = 1_000_000.0
ANN = Who("ann", ("acme",), tenant="acme", pid=7)


class Kept:
    """A file system, its ledger, and the tree that its records make."""

    def __init__(self):
        self.tree = Tree()
        self.fs = Kvfs()
        self.ledger = Ledger(self.fs, self.tree, WALL_S)
        self.version = 0

    def settle(self):
        taken = self.ledger.take()
        self.tree.apply(taken.changes)
        for inode in taken.unsaved:
            self.save(inode)

    def save(self, inode):
        self.version += 1
        changes = self.ledger.saved(inode, len(inode.tokens), Copy(self.version, 10, 0))
        self.tree.apply(changes)

    def create(self, path, n=1, who=OPERATOR):
        """Made, written and closed, as by a program."""
        f = self.fs.create(path, who=who, now=1.0)
        f.inode.tokens.extend(range(n))
        f.inode.positions.extend(range(n))
        self.close(f)

    def close(self, f):
        inode = f.inode
        self.settle()
        if self.ledger.is_kept(inode):
            self.save(inode)
        self.fs.close(f, 1.0)
        self.settle()

    def paths(self):
        """What is on disk: {path: number of tokens, None for directories}."""
        found, above = {}, {1: ""}
        for parent, name, ino in self.tree.walk():
            path = above[ino] = f"{above[parent]}/{name}"
            found[path] = None if ino in self.tree.directories else self.tree.files[ino].n_tokens
        return found

    def again(self):
        """The next kernel's."""
        other = Kept()
        other.tree, other.fs = self.tree, Kvfs()
        other.ledger = Ledger(other.fs, self.tree, WALL_S + 5.0)
        other.version = self.version
        return other


@pytest.fixture
def kept():
    return Kept()


def expected(fs):
    """All that should be kept of a file system in which nothing is open."""
    found = {}
    for path, node in fs.names.walk(fs.names.root):
        parts = path.split("/")[1:]
        if parts[0] == "tmp" or (parts[0] == "tenants" and parts[2:3] == ["tmp"]):
            continue
        found[path] = None if isinstance(node, Directory) else node.n_unread or len(node.tokens)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_random_use_of_names(seed, kept):
    dice = random.Random(seed)

    def path():
        return dice.choice(["", "/d", "/e", "/d/e", "/tmp", "~"]) + "/" + dice.choice("abde")

    for step in range(60):
        who = dice.choice([OPERATOR._replace(pid=3), ANN])
        act = dice.choice(["create", "create", "mkdir", "rename", "rename", "unlink", "link", "chmod", "chown", "end"])
        try:
            if act == "create":
                kept.create(path(), dice.randint(0, 9), who)
            elif act in ("rename", "link"):
                getattr(kept.fs, act)(path(), path(), who=who, now=1.0)
            elif act == "end":
                kept.fs.end_process(who, 1.0)
            elif act == "chmod":
                kept.fs.chmod(path(), dice.choice([0o700, 0o755]), who=who, now=1.0)
            elif act == "chown":
                kept.fs.chown(path(), dice.choice([None, "bob"]), dice.choice([None, "crew"]), who=OPERATOR, now=1.0)
            else:
                getattr(kept.fs, act)(path(), who=who, now=1.0)
        except SyscallError:
            pass
        if dice.random() < 0.8:  # else two calls are settled together
            kept.settle()
        if step == 30:
            kept.settle()
            kept = kept.again()
    kept.settle()
    assert kept.paths() == expected(kept.fs)
    after = kept.again()
    assert expected(after.fs) == expected(kept.fs)
    for path_, node in kept.fs.names.walk(kept.fs.names.root):
        if path_ in kept.paths():
            other = after.fs.names.find(path_, OPERATOR, 0.0)
            assert (other.ino, other.owner, other.group, other.mode) == (node.ino, node.owner, node.group, node.mode)


def test_times_mean_something_to_the_next_kernel(kept):
    kept.create("/a")
    node = kept.again().fs.names.find("/a", OPERATOR, 0.0)
    assert node.created_s == pytest.approx(1.0 - 5.0)


def test_tenants_pay_for_their_files_again(kept):
    kept.create("/a", who=ANN)
    node = kept.again().fs.names.find("/a", ANN, 0.0)
    assert (node.tenant, node.owner) == ("acme", "ann")


def test_numbers_are_not_used_again(kept):
    kept.create("/a")
    after = kept.again()
    after.create("/b")
    inos = {node.ino for _, node in after.fs.names.walk(after.fs.names.root) if isinstance(node, Inode)}
    assert len(inos) == 2


def test_a_file_that_is_open_takes_over_a_name_when_it_is_saved(kept):
    kept.create("/doc", 5)
    f = kept.fs.create("/new", who=OPERATOR, now=2.0)
    f.inode.tokens = f.inode.positions = array("I", [1, 2])
    kept.fs.rename("/new", "/doc", who=OPERATOR, now=2.0)
    kept.settle()
    assert kept.paths() == {"/doc": 5}
    kept.close(f)
    assert kept.paths() == {"/doc": 2}


def test_a_name_that_was_taken_over_and_is_removed(kept):
    kept.create("/doc", 5)
    f = kept.fs.create("/new", who=OPERATOR, now=2.0)
    kept.fs.rename("/new", "/doc", who=OPERATOR, now=2.0)
    kept.settle()
    kept.fs.unlink("/doc", who=OPERATOR, now=2.0)
    kept.settle()
    assert kept.paths() == {}
    kept.close(f)
    assert kept.paths() == {}


def test_renaming_a_directory_is_one_short_record(kept):
    kept.fs.mkdir("/d", who=OPERATOR, now=1.0)
    for i in range(50):
        kept.create(f"/d/{i}")
    kept.fs.rename("/d", "/e", who=OPERATOR, now=1.0)
    assert len(kept.ledger.take().changes) == 2


def test_what_moves_out_of_tmp_is_saved_and_what_moves_there_is_not_kept(kept):
    who = OPERATOR._replace(pid=4)
    kept.fs.mkdir("/tmp/d", who=who, now=1.0)
    kept.create("/tmp/d/a", 3, who)
    assert kept.paths() == {}
    kept.fs.rename("/tmp/d", "/d", who=who, now=1.0)
    kept.settle()
    assert kept.paths() == {"/d": None, "/d/a": 3}
    kept.fs.rename("/d", "/tmp/d", who=who, now=1.0)
    kept.settle()
    assert kept.paths() == {}


def test_a_save_that_fails_does_not_count(kept):
    kept.create("/doc", 5)
    inode = kept.fs.open("/doc", OpenMode.READ, who=OPERATOR, now=1.0).inode
    before = kept.ledger.copies[inode.ino]
    kept.ledger.saved(inode, 5, Copy(9, 10, 0))
    kept.ledger.unsaved(inode, before)
    assert kept.ledger.copies[inode.ino] == before
    kept.ledger.unsaved(inode, None)
    assert inode.ino not in kept.ledger.copies
