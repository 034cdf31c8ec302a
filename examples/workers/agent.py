"""The worker as a member of the fleet: `cogo agents` shows it, operators suspend, resume and drain it."""
import asyncio, hashlib, itertools, os, sys, uuid
import bus, worker
from psycopg.types.json import Jsonb

NAME, SLOT = worker.INSTANCE.rsplit("/", 1)
DOMAIN, VERSION = os.environ.get("AGENT_DOMAIN", worker.ROUTE[0]), os.environ.get("AGENT_VERSION", "1.0.0")
BEAT = int(os.environ.get("BEAT_MS", 5000))
KEY = os.environ.get("AGENT_KEY")  # for a name that joins with its key only; the key itself is never sent

async def join(previous=None):
    "Joins as a new run of the slot, whose holder the worker claims as from now on; answers the run and its epoch."
    run, proof = str(uuid.uuid4()), KEY and hashlib.sha256(KEY.strip().encode()).digest()
    about = VERSION, [], Jsonb({}), Jsonb([]), 2, None, previous, [], None, None, proof
    place = await bus.call("registry.register", run, DOMAIN, NAME, int(SLOT), *about)
    if place["outcome"] == "occupied": sys.exit(f"{worker.INSTANCE} belongs to {place['holder']} now")
    await bus.call("registry.activate", run)
    worker.holder = place["holder"]
    return run, place["epoch"]

async def main():
    run, epoch = await join()
    working = asyncio.create_task(worker.main())
    for number in itertools.count(1):
        if (await asyncio.wait([working], timeout=BEAT / 1000))[0]: break
        beat = await bus.call("registry.beat", run, epoch, number, True, len(worker.in_hand))
        if beat["outcome"] != "alive":  # others have its work by now
            for id in list(worker.in_hand): worker.drop(id)
            run, epoch = await join(run)
        elif worker.stop.is_set(): await bus.call("registry.drain", run, "stopping")
        elif beat["state"] == "draining": worker.retire()
    await bus.call("registry.deregister", run, epoch, "stopped")
    working.result()

asyncio.run(main())
