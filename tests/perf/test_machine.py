"""What is said of the machine."""

from msgspec.structs import replace

from perf.machine import FLAGS, Others, commit, this_machine


def test_the_machine_is_described():
    here = this_machine()
    assert here.cpu
    assert here.n_cores >= 1
    assert here.memory_gib > 0
    assert set(here.flags) <= set(FLAGS)
    assert str(here).startswith(f"{here.n_cores} x {here.cpu}")


def test_machines_are_alike_by_cpu_and_cores():
    here = this_machine()
    assert here.like(replace(here, python="3.99", memory_gib=1.0))
    assert not here.like(replace(here, n_cores=here.n_cores + 1))
    assert not here.like(replace(here, cpu="another"))


def test_the_commit_is_a_word():
    assert commit().split() == [commit()]


def test_others_never_give_cpu_back():
    assert Others().cores() >= 0
