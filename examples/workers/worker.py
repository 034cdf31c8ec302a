"""A worker in Python with psycopg 3; README.md tells the contract and the environment."""
import asyncio, contextlib, itertools, os, signal, uuid, psycopg
from psycopg.types.json import Jsonb
ROUTE = os.environ["AGENT_SERVICE"], os.environ["AGENT_ROLE"], int(os.environ.get("AGENT_SHARD", 0))
INSTANCE = os.environ.get("HOLDER_ID", "python/0")
HOLDER = f"{INSTANCE}#{uuid.uuid4()}"  # unlike any other run's; with the number of the attempt it is the fence
NUMBERS = {"BUS_POLL_MS": 15000, "LEASE_MS": 30000, "GRACE_MS": 10000, "CONCURRENCY": 8}
POLL, LEASE, GRACE, SLOTS = (int(os.environ.get(name, usual)) for name, usual in NUMBERS.items())
wake, stop, in_hand = asyncio.Event(), asyncio.Event(), {}  # in hand: id -> (attempt, job)
class Reject(Exception): "A failure that no further attempt can mend; any other exception is tried again."
async def handle(message, emit):  # your work goes here; this does what the payload says for each attempt
    order = message["payload"].get("attempts", {}).get(str(message["attempt"]))
    await emit({"holder": HOLDER})
    await asyncio.sleep(3600 if order == "hang" else message["payload"].get("work_ms", 0) / 1000)
    if order in ("reject", "retry"): raise Reject("as ordered") if order == "reject" else RuntimeError("as ordered")
    return {"holder": HOLDER}, message["payload"].get("follow_ups", [])
async def rows(bus, function, *values):  # shielded: a job that is dropped leaves no statement half done
    query = f"select * from bus.{function}({', '.join(['%s'] * len(values))}) as answer"
    return await (await asyncio.shield(bus.execute(query, values))).fetchall()
async def run(bus, message):
    claim, numbers = (message["id"], HOLDER, message["attempt"]), itertools.count(1)
    emit = lambda part: rows(bus, "emit", *claim, next(numbers), [Jsonb(part)], LEASE)  # seen before the result is
    try:
        result, follow_ups = await handle(message, emit)
        await rows(bus, "complete", *claim, Jsonb(result), None, None, Jsonb(follow_ups))
    except Exception as error:  # for a claim that was lost, both answer so and write nothing
        await rows(bus, "fail", *claim, str(error).replace("\0", ""), not isinstance(error, Reject))
    in_hand.pop(claim[0], None)
    wake.set()
def drop(id):
    if id in in_hand: in_hand.pop(id)[1].cancel()
async def keep(bus):  # renews leases; a message that is missing from the answer was lost
    while not await asyncio.sleep(LEASE / 3000):
        held = {id: attempt for id, (attempt, _) in in_hand.items()}
        kept = await rows(bus, "extend", list(held), list(held.values()), HOLDER, LEASE)
        for id in held.keys() - {row["id"] for row in kept}: drop(id)
async def listen(ears):  # hints only: a worker that misses one looks again after the poll
    async for hint in ears.notifies():
        if hint.channel == "bus_cancel": drop(uuid.UUID(hint.payload))
        elif hint.payload == "{}/{}/{}".format(*ROUTE): wake.set()
async def work(bus):
    while not stop.is_set():
        wake.clear()
        free, pause = SLOTS - len(in_hand), POLL
        if free > 0:
            claimed = await rows(bus, "claim", *ROUTE, HOLDER, free, LEASE, INSTANCE)
            for it in claimed: in_hand[it["id"]] = it["attempt"], asyncio.create_task(run(bus, it))
            [due] = await rows(bus, "next_due", *ROUTE)
            pause = 0 if claimed else POLL if due["answer"] is None else min(POLL, due["answer"])
        with contextlib.suppress(asyncio.TimeoutError): await asyncio.wait_for(wake.wait(), pause / 1000)
    if in_hand: await asyncio.wait([job for _, job in in_hand.values()], timeout=GRACE / 1000)
    await rows(bus, "release", list(in_hand), [attempt for attempt, _ in in_hand.values()], HOLDER)
async def main():  # a connection that breaks ends the process, and whoever supervises it starts it again
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: (stop.set(), wake.set()))
    how = dict(conninfo=os.environ["DATABASE_URL"], autocommit=True, row_factory=psycopg.rows.dict_row)
    bus, ears = [await psycopg.AsyncConnection.connect(**how) for _ in range(2)]
    await ears.execute("listen bus_ready; listen bus_cancel")
    tasks = [asyncio.create_task(task) for task in (work(bus), keep(bus), listen(ears))]
    for ended in (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]: ended.result()
asyncio.run(main())
