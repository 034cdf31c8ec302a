"""Batches: what is in hand is handled in one call, and each message ends by itself. Put yours into `double`."""
import asyncio
from worker import call, serve

def batched(handle_all, most, wait_ms):
    """A handler for `serve`: calls `handle_all` with `most` messages, or with those that came within `wait_ms`.

    It is given pairs of a message and its `emit`, and answers an ending for each, in their order: an exception fails
    that message alone. One that it raises fails them all."""
    waiting, running = [], set()
    async def handle_those(batch):
        try:
            endings = await handle_all([(message, emit) for message, emit, _ in batch])
            if len(endings) != len(batch): raise ValueError(f"{len(batch)} messages and {len(endings)} endings")
        except asyncio.CancelledError: endings = [RuntimeError("the batch was cancelled")] * len(batch)
        except Exception as error: endings = [error] * len(batch)
        for (_, _, ended), ending in zip(batch, endings):
            if ended.done(): continue  # lost or cancelled meanwhile, while the others went on
            if isinstance(ending, Exception): ended.set_exception(ending)
            else: ended.set_result(ending)
    def begin(first):
        if not waiting or waiting[0] is not first: return  # its batch was full before the wait was over
        batch = [one for one in waiting if not one[2].done()]
        waiting.clear()
        if batch:
            running.add(task := asyncio.create_task(handle_those(batch)))
            task.add_done_callback(running.discard)
    async def handle(message, emit):
        waiting.append((message, emit, ended := asyncio.get_running_loop().create_future()))
        if len(waiting) == 1: asyncio.get_running_loop().call_later(wait_ms / 1000, begin, waiting[0])
        if len(waiting) >= most: begin(waiting[0])
        return await ended
    return handle

async def double(batch):
    ids, endings = [message["id"] for message, _ in batch], []
    for payload in (message["payload"] for message, _ in batch):
        if "gate" in payload: await call("pg_advisory_xact_lock_shared(%s)", payload["gate"])
        if "spoil" in payload: raise ValueError("the batch is spoilt, as ordered")
    for message, emit in batch:
        try: endings.append({"result": {"double": message["payload"]["number"] * 2, "batch": ids}})
        except Exception as error: endings.append(error)
    return endings

if __name__ == "__main__": asyncio.run(serve(batched(double, most=5, wait_ms=50)))
