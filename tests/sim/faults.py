"""What goes wrong, by name. Each fault is a function of the world and its own dice; it says when it is over.

A fault that cannot happen at its time (nobody is there to be killed) does nothing. `heal` ends all of them. Never add
here what the system should do about it.
"""

import asyncio
import random
from collections.abc import Callable

from gpuworker.serve import SILENCE_LIMIT_S
from kernel.core import AttachError
from tests.sim.plan import Fault
from tests.sim.world import Host, World

FaultFunction = Callable[[World, random.Random], None]
BY_NAME: dict[str, FaultFunction] = {}

N_HOSTS_MAX = 4


def fault(name: str) -> Callable[[FaultFunction], FaultFunction]:
    def register(function: FaultFunction) -> FaultFunction:
        BY_NAME[name] = function
        return function

    return register


def schedule(world: World, faults: list[Fault]) -> None:
    """Let them happen at their times, from now on."""
    for f in faults:
        world.loop.call_later(f.at_s, happen, world, f)


def happen(world: World, f: Fault) -> None:
    world.trace.event(f"fault {f.name}")
    BY_NAME[f.name](world, random.Random(f"fault {f.dice}"))


def heal(world: World) -> None:
    """From now on nothing is wrong: every host has a process that runs and can be reached."""
    for host in world.hosts:
        world.network.partition(host.address, to_worker=False, to_kernel=False)
        restart(host)
        if host.worker.is_hung:
            host.worker.resume()
        host.worker.slowness = 1.0
        host.worker.device.n_tokens_max = None
        host.worker.device.n_glitches = 0
        host.worker.device.n_balks = 0
        host.wanted = True


def restart(host: Host) -> None:
    if not host.worker.is_alive:
        host.start()


def some_host(world: World, dice: random.Random) -> Host | None:
    """One whose process runs."""
    up = [host for host in world.hosts if host.is_up]
    return dice.choice(up) if up else None


# --- programs ---------------------------------------------------------------------------------------------------


@fault("kill")
def kill(world: World, dice: random.Random) -> None:
    """The operator kills a program."""
    if world.runs:
        world.end(dice.choice(world.runs), "killed by the operator", leaves=False)


@fault("disconnect")
def disconnect(world: World, dice: random.Random) -> None:
    """A client goes away."""
    if world.runs:
        world.end(dice.choice(world.runs), "its client left", leaves=True)


# --- slow things ------------------------------------------------------------------------------------------------


@fault("slow")
def slow(world: World, dice: random.Random) -> None:
    """A device takes its time."""
    host = some_host(world, dice)
    if host is not None:
        host.worker.slowness = dice.choice([3.0, 20.0, 100.0])
        world.loop.call_later(dice.uniform(0.05, 0.5), setattr, host.worker, "slowness", 1.0)


@fault("storm")
def storm(world: World, dice: random.Random) -> None:
    """All frames of a worker arrive late, together."""
    host = some_host(world, dice)
    if host is not None:
        hold(world, host, True, True, dice.uniform(0.005, 0.05))


@fault("partition")
def partition(world: World, dice: random.Random) -> None:
    """Nothing gets through in one direction or in both, and then all of it, before silence is noticed."""
    host = some_host(world, dice)
    if host is not None:
        directions = dice.choice([(True, True), (True, False), (False, True)])
        hold(world, host, *directions, dice.uniform(0.05, 0.8 * (world.plan.silence_s - world.plan.heartbeat_s)))


def hold(world: World, host: Host, to_worker: bool, to_kernel: bool, for_s: float) -> None:
    world.network.partition(host.address, to_worker=to_worker, to_kernel=to_kernel)
    world.loop.call_later(for_s, lambda: world.network.partition(host.address, to_worker=False, to_kernel=False))


@fault("stop")
def stop(world: World, dice: random.Random) -> None:
    """SIGSTOP, and SIGCONT before silence is noticed."""
    hang_for(world, dice, dice.uniform(0.01, 0.8 * (world.plan.silence_s - world.plan.heartbeat_s)))


@fault("pause")
def pause(world: World, dice: random.Random) -> None:
    """The kernel's process does not run for a while: a debugger, a swapped machine."""
    world.loop.skip(dice.choice([0.5, 0.4 * SILENCE_LIMIT_S]))


# --- devices that refuse ----------------------------------------------------------------------------------------


@fault("short")
def short(world: World, dice: random.Random) -> None:
    """Large steps find no memory for a while; small ones do."""
    host = some_host(world, dice)
    if host is not None:
        device = host.worker.device
        device.n_tokens_max = dice.choice([16, 20, 40])
        world.loop.call_later(dice.uniform(0.02, 0.5), setattr, device, "n_tokens_max", None)


@fault("glitch")
def glitch(world: World, dice: random.Random) -> None:
    """The next step fails, whatever is in it; so does one more perhaps."""
    host = some_host(world, dice)
    if host is not None:
        host.worker.device.n_glitches += dice.choice([1, 1, 1, 2])


@fault("balk")
def balk(world: World, dice: random.Random) -> None:
    """The next time that they are to send or to store pages, workers will not."""
    for host in world.hosts:
        host.worker.device.n_balks += dice.choice([1, 2])


# --- workers that are lost --------------------------------------------------------------------------------------


@fault("crash")
def crash(world: World, dice: random.Random) -> None:
    """kill -9: seen at once. A new process comes up after a while."""
    host = some_host(world, dice)
    if host is not None:
        host.worker.crash(dice.uniform(0.0, 0.005))
        world.loop.call_later(dice.uniform(0.0, 1.0), restart, host)


@fault("power")
def power(world: World, dice: random.Random) -> None:
    """The machine goes dark: nobody says anything any more."""
    host = some_host(world, dice)
    if host is not None:
        host.worker.crash(None)
        world.loop.call_later(dice.uniform(0.0, 3.0), restart, host)


@fault("cut")
def cut(world: World, dice: random.Random) -> None:
    """The connection breaks and both ends go on living."""
    host = some_host(world, dice)
    if host is not None:
        world.network.cut(host.address, dice.choice([0.0, 0.001, 0.05]))


@fault("half-open")
def half_open(world: World, dice: random.Random) -> None:
    """The connection breaks and nobody is told."""
    host = some_host(world, dice)
    if host is not None:
        world.network.cut(host.address, None)


@fault("hang")
def hang(world: World, dice: random.Random) -> None:
    """SIGSTOP for so long that it is given up; then it goes on, and sends what nobody waits for any more."""
    hang_for(world, dice, world.plan.silence_s + dice.uniform(0.2, 3.0))


def hang_for(world: World, dice: random.Random, seconds: float) -> None:
    host = some_host(world, dice)
    if host is None:
        return
    worker = host.worker
    worker.hang()
    world.loop.call_later(seconds, lambda: worker.resume() if worker.is_hung else None)


@fault("isolate")
def isolate(world: World, dice: random.Random) -> None:
    """A partition that lasts until the worker is given up."""
    host = some_host(world, dice)
    if host is not None:
        directions = dice.choice([(True, True), (True, False), (False, True)])
        hold(world, host, *directions, world.plan.silence_s + dice.uniform(0.2, 3.0))


@fault("coma")
def coma(world: World, dice: random.Random) -> None:
    """The kernel's process does not run for so long that its workers give it up."""
    world.loop.skip(SILENCE_LIMIT_S + dice.uniform(0.5, 3.0))


@fault("leave")
def leave(world: World, dice: random.Random) -> None:
    """A worker ends itself and says so."""
    host = some_host(world, dice)
    if host is not None:
        host.worker.leave("it was stopped")
        world.loop.call_later(dice.uniform(0.1, 1.0), restart, host)


# --- the fleet --------------------------------------------------------------------------------------------------


@fault("attach")
def attach(world: World, dice: random.Random) -> None:
    """One more worker; the operator attaches it."""
    if len(world.hosts) < N_HOSTS_MAX:
        world.add_host()


@fault("detach")
def detach(world: World, dice: random.Random) -> None:
    """The operator lets a worker go at once, and takes it again later."""
    let_go(world, dice, drain=False)


@fault("drain")
def drain(world: World, dice: random.Random) -> None:
    """The operator lets a worker go when its files have moved, and takes it again later."""
    let_go(world, dice, drain=True)


def let_go(world: World, dice: random.Random, *, drain: bool) -> None:
    attached = [h for h in world.hosts if h.wanted and h.address in world.kernel.workers and not h.busy]
    if attached:
        host = dice.choice(attached)
        host.wanted = False
        world.background(detached(world, host, drain, dice.uniform(0.2, 1.5)))


async def detached(world: World, host: Host, drain: bool, for_s: float) -> None:
    n_jobs = world.observer.n_jobs_on(host.address)
    try:
        await world.kernel.detach(host.address, drain=drain)
        if n_jobs:
            world.saw(f"a worker is {'drained' if drain else 'detached'} while it works")
    except AttachError as e:
        world.trace.note(f"cannot let {host.address} go: {e}")
    await asyncio.sleep(for_s)
    host.wanted = True
