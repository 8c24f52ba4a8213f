"""Every system call from a program's side of the door, and not a page missing afterwards."""


async def test_usertests(house):
    before = house.n_pages_used()
    program = house.kernel.installed("usertests")
    args = house.kernel.bind(program, {})
    status = await house.kernel.spawn(program, args, owner="local", client=None).wait_exit()
    assert status.code == 0, f"{status.error} {status.result!r}"
    assert house.n_pages_used() == before
