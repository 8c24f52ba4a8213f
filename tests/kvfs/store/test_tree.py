from kvfs.store.tree import ROOT, Attributes, ClearName, SetAttributes, SetDirectory, SetFile, SetName, Tree

A, B = Attributes("me", "us", 0o644, 1.0, 2.0), Attributes("you", "us", 0o600, 1.0, 3.0)


def file(ino, version=1, n_bytes=10):
    return SetFile(ino, A, version, n_bytes, 5)


def again(tree):
    """The tree that its own changes make."""
    other = Tree()
    for changes in tree.changes():
        other.apply(changes)
    return other


def same(a, b):
    return (a.directories, a.files, a.names, a.n_bytes) == (b.directories, b.files, b.names, b.n_bytes)


def grown():
    tree = Tree()
    tree.apply([SetDirectory(2, A), SetName(ROOT, "d", 2)])
    tree.apply([file(3), SetName(2, "f", 3)])
    tree.apply([SetName(ROOT, "link", 3)])
    return tree


def test_its_changes_make_it_again():
    tree = grown()
    tree.apply([SetAttributes(ROOT, B), SetAttributes(3, B), SetDirectory(9, A), SetName(2, "e", 9)])
    assert same(tree, again(tree))
    assert again(tree).files[3].attributes == B


def test_changes_can_be_made_twice():
    tree = grown()
    for changes in list(tree.changes()):
        assert tree.apply(changes) == []
    assert same(tree, grown())


def test_a_file_goes_with_its_last_name():
    tree = grown()
    assert tree.apply([ClearName(ROOT, "link")]) == []
    assert tree.apply([ClearName(2, "f")]) == [1]
    assert tree.files == {}
    assert tree.n_bytes == 0


def test_a_new_version_frees_the_old():
    tree = grown()
    assert tree.apply([file(3, version=4, n_bytes=7)]) == [1]
    assert tree.n_bytes == 7


def test_renaming_a_directory_keeps_what_is_in_it():
    tree = grown()
    assert tree.apply([ClearName(ROOT, "d"), SetName(ROOT, "e", 2)]) == []
    assert list(tree.walk()) == [(ROOT, "link", 3), (ROOT, "e", 2), (2, "f", 3)]
    assert same(tree, again(tree))


def test_a_name_that_is_taken_over():
    tree = grown()
    tree.apply([file(5, version=8), SetName(ROOT, "g", 5)])
    assert tree.apply([ClearName(ROOT, "g"), SetName(ROOT, "link", 5)]) == []
    assert tree.apply([file(6, version=9), SetName(ROOT, "link", 6)]) == [8]


def test_what_makes_no_sense_does_nothing():
    """As records of a damaged journal may."""
    tree = grown()
    tree.apply([SetName(77, "x", 3), SetName(ROOT, "y", 88), SetName(2, "self", 2), SetName(2, "root", ROOT)])
    tree.apply([ClearName(77, "x"), ClearName(ROOT, "nothing"), SetAttributes(99, A), file(50, version=3)])
    assert same(tree, grown())


def test_a_directory_takes_along_what_is_in_it():
    tree = grown()
    assert tree.apply([ClearName(ROOT, "d")]) == []
    assert list(tree.walk()) == [(ROOT, "link", 3)]
    assert tree.apply([ClearName(ROOT, "link")]) == [1]
