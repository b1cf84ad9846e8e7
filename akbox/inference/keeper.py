"""Budgets on disk, so that a supervisor that is killed gives no token back: written as soon as they change, one write
for all calls that change them meanwhile. No call waits for it, as a model answers later than a disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from akbox.kernel.effect import AgentId
from akbox.kernel.kernel import Kernel


class Keeper:
    """Of the gateway's event loop only. `on_failure`: a budget that cannot be kept ends the run."""

    def __init__(self, kernel: Kernel, on_failure: Callable[[str], None]) -> None:
        self._kernel, self._on_failure = kernel, on_failure
        self._changed: set[AgentId] = set()
        self._writer: asyncio.Task[None] | None = None

    def keep(self, subject: AgentId) -> None:
        """What this agent has used and set aside by now will be on disk in a moment."""
        self._changed.add(subject)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def flush(self) -> None:
        """Everything that was asked for is done."""
        if self._writer is not None:
            await self._writer

    async def _write(self) -> None:
        while self._changed:
            batch, self._changed = self._changed, set()
            try:
                await asyncio.to_thread(self._save, batch)
            except Exception as error:  # the run's edge: what is not kept could be spent again
                self._on_failure(f"the budgets cannot be kept: {error}")

    def _save(self, subjects: set[AgentId]) -> None:
        for subject in subjects:
            self._kernel.keep_budgets(self._kernel.agent(subject))
