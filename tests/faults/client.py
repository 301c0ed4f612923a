"""A client in a process of its own, which saves, loads and deletes until its standard input ends.

The first line of the input says what to do, as JSON; ``clients`` writes it. What is given there and not as an argument
may hold a password.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

from faults.ledger import Recorder

from dagonizer import open_store

_PAUSE = 0.02


async def main() -> None:
    """Be the client."""
    plan = json.loads(sys.stdin.readline())
    stopped = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    chance = random.Random(plan["seed"])
    async with open_store(plan["url"]) as store:
        recorder = Recorder(store, Path(plan["ledger"]))
        while not stopped.done():
            key = chance.choice(plan["keys"])
            match chance.random():
                case x if x < 0.6:
                    done = await recorder.save(key, chance.choice(plan["sizes"]))
                case x if x < 0.7:
                    done = await recorder.delete(key)
                case _:
                    done = await recorder.load(key)
            if not done:
                # What became of everything is looked at before more is written.
                for key in plan["keys"]:
                    while not (stopped.done() or await recorder.load(key)):
                        await asyncio.sleep(_PAUSE)
            # For a store that does not.
            await asyncio.sleep(0)
        recorder.close()


asyncio.run(main())
