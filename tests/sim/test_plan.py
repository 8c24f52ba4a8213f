"""A plan is a function of its seed and options."""

from tests.sim import faults
from tests.sim.plan import FAULTS, Options, draw


def test_a_seed_is_a_plan():
    assert draw(7, Options()) == draw(7, Options())
    assert draw(7, Options()) != draw(8, Options())


def test_programs_are_the_same_with_other_faults():
    assert draw(7, Options()).starts == draw(7, Options(faults=())).starts


def test_only_what_was_asked_for_goes_wrong():
    for seed in range(50):
        assert draw(seed, Options(faults=())).faults == []
        assert {f.name for f in draw(seed, Options(faults=("kill",))).faults} <= FAULTS["kill"].keys()


def test_room_is_as_asked_for():
    assert all(draw(seed, Options(pages="ample")).demand is None for seed in range(50))
    assert all(draw(seed, Options(pages="4x")).demand == 4.0 for seed in range(50))
    assert {draw(seed, Options()).demand for seed in range(50)} > {None}


def test_each_fault_that_is_drawn_is_there():
    assert {name for group in FAULTS.values() for name in group} == set(faults.BY_NAME)


def test_options_are_spelt_as_on_the_command_line():
    assert Options().words() == "--faults all --pages any"
    assert Options(faults=(), pages="4x", strict=True).words() == "--faults none --pages 4x --strict"
    assert Options(faults=("kill", "net")).words() == "--faults kill,net --pages any"
