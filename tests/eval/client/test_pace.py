"""The gate of changing width: how it narrows, widens, and whom it lets in."""

import asyncio

import pytest

from retinaserve.eval.client.pace import Pace


def test_as_many_as_it_may_at_first_and_no_more() -> None:
    async def crowd() -> int:
        pace, inside, most = Pace(3), 0, 0

        async def one() -> None:
            nonlocal inside, most
            async with pace.slot():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(one() for _ in range(20)))
        return most

    assert asyncio.run(crowd()) == 3


def test_refusals_of_one_burst_halve_once() -> None:
    async def burst() -> list[int]:
        pace, widths = Pace(40), []
        async with pace.slot() as first, pace.slot() as second:
            pace.refused(first)
            widths.append(pace.width)
            pace.refused(second)  # it was inside at the halving
            widths.append(pace.width)
        async with pace.slot() as later:
            pace.refused(later)
            widths.append(pace.width)
        return widths

    assert asyncio.run(burst()) == [20, 20, 10]


def test_it_never_closes_and_widens_by_one_a_round() -> None:
    async def narrow() -> list[int]:
        pace = Pace(4)
        for _ in range(5):
            async with pace.slot() as ticket:
                pace.refused(ticket)
        widths = [pace.width]
        for _ in range(100):
            pace.answered()
            widths.append(pace.width)
        return widths

    widths = asyncio.run(narrow())
    assert widths[:2] == [1, 2] and widths[-1] == 4, "from 1, an answer is a round"
    assert widths == sorted(widths)
    assert widths.index(4) >= 1 + 2 + 2, "at 2 a round is two answers, at 3 three"


def test_who_comes_again_goes_first() -> None:
    async def order() -> list[str]:
        pace, entered = Pace(1), []

        async def one(name: str, again: bool) -> None:
            async with pace.slot(again=again):
                entered.append(name)

        async with pace.slot():
            tasks = [asyncio.create_task(one(name, name == "again")) for name in ("a", "b", "again")]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return entered

    assert asyncio.run(order()) == ["again", "a", "b"]


@pytest.mark.parametrize("granted", [False, True], ids=["while it waits", "when it was just let in"])
def test_a_cancelled_one_takes_no_place(granted: bool) -> None:
    async def cancelled() -> bool:
        pace = Pace(1)

        async def one() -> bool:
            async with pace.slot():
                return True

        async with pace.slot():
            waiting = asyncio.create_task(one())
            await asyncio.sleep(0)
            if not granted:
                waiting.cancel()
                await asyncio.sleep(0)
        if granted:
            waiting.cancel()  # its place is given, and it has not run since
        await asyncio.gather(waiting, return_exceptions=True)
        return await asyncio.wait_for(one(), 1)

    assert asyncio.run(cancelled())
