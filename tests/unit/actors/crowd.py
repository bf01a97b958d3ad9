"""Rows at an admission, for tests of who enters when."""

import asyncio

from actors.window import Admission


class Crowd:
    """Rows that wait at an admission; those that are in stay until told to leave."""

    def __init__(self, admission: Admission, prompt_tokens: int = 0) -> None:
        self.admission = admission
        self.prompt_tokens = prompt_tokens
        self.entered: list[str] = []
        self.doors: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str, alone: bool = False) -> None:
        for name in names:
            self.doors[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._stay(name, alone))
        await settle()

    async def go(self, *names: str) -> None:
        for name in names:
            self.doors[name].set()
            await self.tasks.pop(name)
        await settle()

    async def _stay(self, name: str, alone: bool) -> None:
        async with self.admission.place(prompt_tokens=self.prompt_tokens):
            if alone:
                await self.admission.go_alone()
            self.entered.append(name)
            await self.doors[name].wait()


async def settle() -> None:
    """Let everything happen that can happen without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)
