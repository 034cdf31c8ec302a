"""A worker in Python 3.11 with psycopg 3: serves what handler.py does. README.md tells contract and environment."""
import asyncio, contextlib, functools, hashlib, itertools, json, os, re, signal, sys, psycopg
OURS = re.compile("AGENT_(SERVICE|ROLE|SHARD|DOMAIN|VERSION)|HOLDER_ID|CONCURRENCY|(BEAT|BUS_POLL|LEASE|GRACE)_MS")
worker = {name.lower(): value for name, value in os.environ.items() if OURS.fullmatch(name)}
worker["key_proof"] = hashlib.sha256(os.environ.get("AGENT_KEY", "").strip().encode()).hexdigest()
connect = functools.partial(psycopg.AsyncConnection.connect, os.environ["DATABASE_URL"], autocommit=True,
                            connect_timeout=5, keepalives_idle=15, tcp_user_timeout=15000)
idle, in_hand, wake = [], {}, asyncio.Event()  # connections; messages by their ids, each with its job
async def call(asked, *values, writes=None, patience=int(os.environ.get("PATIENCE_MS", 15000)) / 1000):
    "Calls a function, in one transaction after `writes`; again while the database is away or the answer is pending."
    for tries in itertools.count():
        try:
            link = idle.pop() if idle else await connect()  # one that fails is forgotten, and thereby closed
            async with asyncio.timeout(patience), link.transaction() if writes else contextlib.nullcontext():
                if writes: await writes(link)
                answer, = await (await link.execute(f"select (select to_jsonb(f) from {asked} f)", values)).fetchone()
            idle.append(link)
            if not isinstance(answer, dict) or answer.get("status") != "pending": return answer
        except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction, TimeoutError) as error:
            if not re.match("08|40|53|57|58|55P03|25006", getattr(error, "sqlstate", None) or "08"): raise
            if not tries: print(f"{asked}, again until it works: {str(error) or repr(error)}", file=sys.stderr)
        await asyncio.sleep(0.05 * 2 ** min(tries, 4))
def rows(asked, *values): return call(f"coalesce((select jsonb_agg(r) from {asked} as r), '[]')", *values)  # of a set

async def run(handle, message):
    fence = [message[name] for name in ("id", "holder", "attempt")]
    store, turn, stored = functools.partial(call, "bus.emit_one(%s, %s, %s, %s, %s, %s)", *fence), asyncio.Lock(), []
    async def in_turn(part):  # what is refused has no number, since there must be no gap
        async with turn: stored.append(await store(len(stored) + 1, json.dumps(part), message["lease_ms"]))
        return stored[-1]
    try:  # a part that its handler gives up may be stored all the same
        ending = await handle(message, lambda part: asyncio.shield(in_turn(part)))
        writes, said = ending.pop("writes", None), json.dumps(ending)
        if writes: await call("bus.settle_or_raise(%s, %s, %s, %s)", *fence, said, writes=writes, patience=None)
        message["ending"] = said
    except Exception as error:
        message["ending"] = json.dumps({"error": repr(error), "code": getattr(error, "sqlstate", None)})
    wake.set()
async def hear():  # hints only: what they miss, the next look finds
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            async with await connect() as ears:
                await ears.execute("listen bus_ready; listen bus_cancel"), wake.set()
                async for hint in ears.notifies():
                    if hint.payload == worker.get("route") or hint.payload in in_hand: wake.set()
        await asyncio.sleep(1)
def retire():  # claims nothing new; what is in hand has the time of grace, then it is handed back
    worker.update(stopping=True), wake.set()  # below: the database is away, the leases will lapse
    asyncio.get_running_loop().call_later(int(worker.get("grace_ms", 10000)) / 1000 + 5, os._exit, 1)
async def serve(handle):
    for end in (signal.SIGTERM, signal.SIGINT): asyncio.get_running_loop().add_signal_handler(end, retire)
    hearing = asyncio.create_task(hear())
    while worker.get("next_ms", 0) is not None:
        wake.clear()
        held = {id: {"attempt": it["attempt"], "ending": it.get("ending")} for id, (it, _) in in_hand.items()}
        step = await call("bus.work(%s, %s)", json.dumps(worker), json.dumps(held))
        worker.update(step["worker"])
        for id in step["over"]: in_hand.pop(id)[1].cancel()
        for it in step["messages"]: in_hand[it["id"]] = it, asyncio.create_task(run(handle, it))
        with contextlib.suppress(TimeoutError): await asyncio.wait_for(wake.wait(), (worker["next_ms"] or 0) / 1000)
