"""Turns at the engine: short jobs as they come, long work in the order it was asked for, both side by side."""

import asyncio
import threading

import pytest

from cloud_bridge.server.engines.engine_thread import EngineThread


def run(scenario):
    """Run a coroutine with a thread whose first job waits until everything else has been given to it."""

    async def main():
        thread = EngineThread()
        started, go = threading.Event(), threading.Event()
        order: list[str] = []

        def hold() -> None:
            started.set()
            go.wait(20)

        first = asyncio.ensure_future(thread.run(hold))
        await asyncio.to_thread(started.wait, 20)
        tasks = await scenario(thread, order)
        await asyncio.sleep(0.01)
        go.set()
        await asyncio.gather(first, *tasks, return_exceptions=True)
        assert thread.waiting == 0
        thread.close()
        return order

    return asyncio.run(main())


def test_short_jobs_and_long_work_take_turns_and_older_work_is_finished_first():
    async def scenario(thread, order):
        def long(name, since):
            parts = iter(range(3))

            def part():
                order.append(f"{name}{(number := next(parts))}")
                return number if number == 2 else None

            return thread.run_parts(part, since)

        async def short(name):
            for turn in range(2):
                await thread.run(order.append, f"{name}{turn}")

        works = [long("new", 3.0), long("old", 1.0), long("other", 2.0), short("a"), short("b"), short("c")]
        return [asyncio.ensure_future(work) for work in works]

    order = run(scenario)
    # First parts and short jobs as they came, and in between what is left of the work, the oldest first.
    assert [one for one in order if one[0] in "abc" or one[-1] == "0"][:6] == [
        "new0",
        "old0",
        "other0",
        "a0",
        "b0",
        "c0",
    ]
    assert [one for one in order if one[0] in "no" and one[-1] != "0"] == [
        *("new1", "old1", "old2", "other1", "other2", "new2")
    ]
    assert order[:4] in (["new0", "new1", "old0", "old1"], ["new0", "old0", "new1", "other0"])


def test_a_cancelled_job_never_runs_and_a_failing_one_harms_nobody():
    async def scenario(thread, order):
        def fail() -> None:
            raise ValueError("the job's own")

        cancelled = asyncio.ensure_future(thread.run(order.append, "cancelled"))
        failing = asyncio.ensure_future(thread.run(fail))
        thread.later(fail)
        last = asyncio.ensure_future(thread.run(order.append, "last"))
        await asyncio.sleep(0.01)
        assert thread.waiting == 4 and thread.expected_wait == 0  # nothing is known yet of how long jobs take
        cancelled.cancel()

        async def check():
            with pytest.raises(ValueError, match="own"):
                await failing
            order.append("raised")

        return [asyncio.ensure_future(check()), last]

    assert sorted(run(scenario)) == ["last", "raised"]
