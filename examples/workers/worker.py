"""A worker in Python 3.11 with psycopg 3: does what handler.py says. README.md tells contract and environment."""
import asyncio, contextlib, functools, itertools, os, signal, uuid
import bus, handler, psycopg
from psycopg.types.json import Jsonb

ROUTE = os.environ["AGENT_SERVICE"], os.environ["AGENT_ROLE"], int(os.environ.get("AGENT_SHARD", 0))
PATH, INSTANCE = "/".join(map(str, ROUTE)), os.environ.get("HOLDER_ID", "python/0")
NUMBERS = {"BUS_POLL_MS": 15000, "LEASE_MS": 30000, "GRACE_MS": 10000, "CONCURRENCY": 8}
POLL, LEASE, GRACE, SLOTS = (int(os.environ.get(name, usual)) for name, usual in NUMBERS.items())
FINAL = psycopg.DataError, psycopg.errors.CheckViolation  # what no other attempt could do better
holder = f"{INSTANCE}#{uuid.uuid4()}"  # unlike any other run's; with the number of the attempt it is the fence
wake, stop, in_hand = asyncio.Event(), asyncio.Event(), {}  # in hand: id -> (attempt, job)

async def end(fence, ending, writes=None):  # for a claim that was lost, nothing is written
    if writes is None: return await bus.call("bus.settle", *fence, Jsonb(ending))
    async with await bus.connect() as own:  # commits, or takes everything back
        await writes(own)
        settled = await own.execute("select bus.settle(%s, %s, %s, %s)", (*fence, Jsonb(ending)))
        if await settled.fetchone() == (None,): await own.rollback()
async def run(message):
    fence, left = (message["id"], message["holder"], message["attempt"]), message["remaining_ms"]
    numbers = itertools.count(1)
    emit = lambda part: bus.call("bus.emit_one", *fence, next(numbers), Jsonb(part), LEASE)
    try:
        async with asyncio.timeout(None if left is None else left / 1000): ending = await handler.handle(message, emit)
        await bus.insist(functools.partial(end, fence, ending, ending.pop("writes", None)))
    except Exception as error:
        usual = {"error": repr(error), "retriable": not isinstance(error, FINAL)}
        await end(fence, usual | getattr(error, "how", {}))
    in_hand.pop(message["id"], None)
    wake.set()
def drop(id):
    if id in in_hand: in_hand.pop(id)[1].cancel()
    wake.set()
def held(): return Jsonb({id: attempt for id, (attempt, _) in in_hand.items()})
def retire():  # claims nothing new; what is in hand has the time of grace, then it is handed back
    stop.set()
    wake.set()
    asyncio.get_running_loop().call_later(GRACE / 1000, lambda: [drop(id) for id in list(in_hand)])
    asyncio.get_running_loop().call_later(GRACE / 1000 + 5, os._exit, 1)  # the database is away: the leases will lapse
async def hear():  # hints only: what they miss, the next look finds
    async for channel, payload in bus.hints():
        if channel == "bus_cancel": drop(payload)
        elif payload in ("", PATH): wake.set()
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, retire)
    async with asyncio.TaskGroup() as tasks:
        hearing = tasks.create_task(hear())
        while in_hand or not stop.is_set():
            wake.clear()
            for id in await bus.call("bus.renew", holder, held(), LEASE): drop(id)
            free = 0 if stop.is_set() else SLOTS - len(in_hand)
            look = await bus.call("bus.look", *ROUTE, holder, INSTANCE, held(), free, LEASE, POLL)
            for it in look["messages"]: in_hand[it["id"]] = it["attempt"], tasks.create_task(run(it))
            with contextlib.suppress(TimeoutError): await asyncio.wait_for(wake.wait(), look["next_ms"] / 1000)
        hearing.cancel()
    await bus.call("bus.hand_back_unheld", holder, PATH, [])
if __name__ == "__main__": asyncio.run(main())
