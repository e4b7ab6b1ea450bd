"""Tasks, the engine and the drivers, without MPI."""

from __future__ import annotations

import threading

import pytest

from mpimomentum.transport.driver import InlineDriver, ThreadDriver
from mpimomentum.transport.lane import Lane
from mpimomentum.transport.progress import Backoff, Engine, NextPoll, Poll, Task
from mpimomentum.worker import Handle


def nothing(*args: object) -> None:
    pass


@pytest.fixture(params=["thread", "inline"])
def driver(request: pytest.FixtureRequest):
    if request.param == "inline":
        made = InlineDriver(Engine(), Lane(), nothing, nothing, Backoff())
    else:
        made = ThreadDriver(Engine(), Lane, nothing, nothing, Backoff())
    yield made
    made.close()


def test_coroutines_run_on_the_communication_thread_and_gradients_here(driver) -> None:
    threads = {}

    async def body() -> int:
        threads["coroutine"] = threading.current_thread()

        def gradient() -> int:
            threads["gradient"] = threading.current_thread()
            return 42

        return await driver.compute(gradient, "a gradient")

    assert driver.run(body(), "body") == 42
    assert threads["gradient"] is threading.current_thread()
    own = isinstance(driver, ThreadDriver)
    assert (threads["coroutine"] is not threading.current_thread()) == own


@pytest.mark.parametrize("where", ["coroutine", "gradient"])
def test_an_exception_reaches_the_caller_and_the_driver_goes_on(driver, where) -> None:
    def gradient() -> None:
        raise ArithmeticError("here")

    async def body() -> None:
        if where == "coroutine":
            raise ArithmeticError("here")
        await driver.compute(gradient, "a gradient")

    async def fine() -> str:
        return "fine"

    with pytest.raises(ArithmeticError, match="here"):
        driver.run(body(), "body")
    assert driver.run(fine(), "fine") == "fine"


def test_a_failing_background_task_fails_the_run_that_does_not_await_it(driver) -> None:
    async def background() -> None:
        await NextPoll()
        raise ArithmeticError("in the background")

    async def body() -> None:
        driver.engine.spawn(background(), "background")
        await Handle("what never comes")

    with pytest.raises(ArithmeticError, match="in the background"):
        driver.run(body(), "body")


def test_a_failing_poller_fails_every_run_from_then_on() -> None:
    driver = ThreadDriver(Engine(), Lane, nothing, nothing, Backoff())

    def broken() -> bool:
        raise ArithmeticError("poller")

    async def body() -> None:
        driver.engine.pollers.append(broken)
        await Handle("what never comes")

    async def fine() -> None:
        pass

    with pytest.raises(ArithmeticError, match="poller"):
        driver.run(body(), "body")
    with pytest.raises(RuntimeError, match="communication thread has failed"):
        driver.run(fine(), "fine")
    assert isinstance(driver.failure, ArithmeticError)
    driver.close()


def test_a_failing_set_up_is_raised_where_the_driver_is_made() -> None:
    def broken() -> None:
        raise RuntimeError("no MPI here")

    with pytest.raises(RuntimeError, match="no MPI here"):
        ThreadDriver(Engine(), broken, nothing, nothing, Backoff())


def test_tasks_interleave_only_at_await() -> None:
    engine = Engine()
    order = []

    async def body(name: str) -> None:
        for k in range(3):
            order.append(f"{name}{k}")
            await NextPoll()

    tasks = [engine.spawn(body(name), name) for name in "ab"]
    while not all(t.test() for t in tasks):
        engine.poll()
    assert sorted(order) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert order[:2] == ["a0", "b0"]


def test_a_task_says_what_its_innermost_coroutine_waits_for() -> None:
    engine = Engine()

    async def inner() -> None:
        await Handle("rank 3 to answer")

    async def outer() -> None:
        await engine.spawn(inner(), "inner")

    engine.spawn(outer(), "outer")
    assert "rank 3 to answer" in engine.waiting_for()


def test_one_task_may_cancel_another_during_a_poll() -> None:
    engine = Engine()
    gate = Handle("gate")
    closed = []

    async def serve() -> None:
        try:
            await Handle("a message")
        finally:
            closed.append(True)

    service = Task(serve(), "service")

    async def main() -> None:
        await gate
        engine.cancel(service)

    engine.spawn(main(), "main")
    service.test()
    engine.tasks.append(service)
    gate.resolve(None)
    engine.poll()
    engine.poll()
    assert closed == [True]
    assert engine.tasks == []


def test_a_handle_is_raised_through_and_polled_until_it_answers() -> None:
    answers = iter([None, None, 7])
    poll: Poll[int] = Poll(lambda: next(answers), "seven")
    assert [poll.test(), poll.test(), poll.test()] == [False, False, True]
    assert poll.result() == 7
    failed: Handle[int] = Handle("x")
    with pytest.raises(RuntimeError, match="not done yet: x"):
        failed.result()
    failed.fail(ArithmeticError("no"))
    with pytest.raises(ArithmeticError, match="no"):
        failed.result()


def test_what_may_never_come_does_not_hold_up_the_end_but_its_effect_does() -> None:
    engine = Engine()
    effect: Handle[None] = Handle("an add")

    class Message(Handle):
        may_never_come = True

    arrives = Message("a message")

    async def serve() -> None:
        await arrives
        await effect
        await Message("the next message")

    engine.spawn(serve(), "serving")
    assert engine.open_tasks == 0
    arrives.resolve(None)
    engine.poll()
    assert engine.open_tasks == 1
    effect.resolve(None)
    engine.poll()
    assert engine.open_tasks == 0


def test_ctrl_c_leaves_the_driver_unusable_rather_than_wrong() -> None:
    driver = ThreadDriver(Engine(), Lane, nothing, nothing, Backoff())

    async def body() -> None:
        await driver.compute(lambda: None, "a gradient")

    def interrupt() -> None:
        raise KeyboardInterrupt

    driver._jobs.put(interrupt)
    with pytest.raises(KeyboardInterrupt):
        driver.run(body(), "body")
    with pytest.raises(RuntimeError, match="was interrupted"):
        driver.run(body(), "body")
    driver.close()
