"""The work. This does what the payload of a message says, so that the tests can order it; put yours into `handle`."""
import asyncio
import bus

async def handle(message, emit):
    orders = message["payload"] | message["payload"].get("attempts", {}).get(str(message["attempt"]), {})
    ending = {"result": {"holder": message["holder"]}}
    await emit({"holder": message["holder"]})  # a part of the result, seen before the end
    await asyncio.sleep(orders.get("work_ms", 0) / 1000)
    if "failure" in orders: raise bus.Failure("as ordered", **orders["failure"])
    if "question" in orders: ending["result"]["reply"] = await bus.ask(message, orders["question"], 3600000)
    if "text" in orders:
        stored = await bus.call("bus.put_artifact", message["tenant"], "text/plain", orders["text"].encode())
        ending["url"] = f"/artifacts/{stored['digest']}"
    if "deposit" in orders:  # stands if the completion does, and only then
        deposit = message["id"], orders["deposit"]
        ending["writes"] = lambda own: own.execute("insert into deposits values (%s, %s)", deposit)
    return ending | {name: orders[name] for name in ("snippet", "follow_ups") if name in orders}
