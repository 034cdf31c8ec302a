"""A line to the database that comes back when it breaks, and what handlers use of it. Python 3.11, psycopg 3."""
import asyncio, contextlib, functools, itertools, logging, os, uuid, psycopg
from psycopg.types.json import Jsonb

PATIENCE = int(os.environ.get("PATIENCE_MS", 15000))  # for an answer; then the question goes over a new connection
ALIVE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": PATIENCE}
connect = functools.partial(psycopg.AsyncConnection.connect, os.environ["DATABASE_URL"], connect_timeout=5, **ALIVE)
links, turn, told = [], asyncio.Lock(), asyncio.Event()

class Failure(Exception):
    "Failure(why, retry_ms=500), Failure(why, defer_ms=60000), Failure(why, retriable=False); others are tried again."
    def __init__(self, why, **how):
        super().__init__(why)
        self.how = how

async def send(query, values):
    async with turn:
        if not links or links[0].closed: links[:] = [await connect(autocommit=True)]
        try:
            async with asyncio.timeout(PATIENCE / 1000): return await (await links[0].execute(query, values)).fetchone()
        except TimeoutError:
            await links[0].close()
            raise psycopg.OperationalError("no answer") from None

async def insist(step):
    "Takes a step, again and again while the database is away: it must be one that may be taken twice."
    for tries in itertools.count():
        try: return await step()
        except psycopg.OperationalError as error:
            if (error.sqlstate or "08")[:2] not in ("08", "40", "53", "57"): raise  # these go by
            logging.warning("trying again: %s", error)
        await asyncio.sleep(0.05 * 2 ** min(tries, 5))

async def call(function, *values):
    "Calls a function and answers its value or its row; insists."
    query = f"select to_jsonb(f) from {function}({', '.join(['%s'] * len(values))}) as f"
    # shielded: a job that is dropped leaves no statement half done
    return (await insist(lambda: asyncio.shield(send(query, values))) or [None])[0]

async def hints():
    "Yields channel and payload of every hint, and two empty words whenever some may have been missed."
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            async with await connect(autocommit=True) as ears:
                await ears.execute("listen bus_ready; listen bus_cancel; listen bus_task")
                yield "", ""
                async for hint in ears.notifies():
                    if hint.channel == "bus_task": told.set()
                    yield hint.channel, hint.payload
        await asyncio.sleep(1)

async def ask(message, question, deadline_ms):
    "Sends a request on behalf of a message; answers {status: done, result} or how else it ended: failed, timed_out …"
    question = {"headers": message["headers"], "idempotency_key": str(uuid.uuid4())} | question
    sent = await call("bus.request", Jsonb(question), deadline_ms, message["holder"], message["id"])
    while True:
        told.clear()
        reply = await call("bus.reply", sent["id"])
        if reply["status"] != "pending": return reply
        with contextlib.suppress(TimeoutError): await asyncio.wait_for(told.wait(), 0.5)
