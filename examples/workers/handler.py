"""The work. This does what the payload of a message says, so that the tests can order it; put yours into `handle`."""
import asyncio, json
from worker import call, rows, serve

async def handle(message, emit):
    orders = message["payload"] | message["payload"].get("attempts", {}).get(str(message["attempt"]), {})
    ending = {"result": {"holder": message["holder"]}}
    await emit({"holder": message["holder"]})  # a part of the result, seen before the end
    await asyncio.gather(*(emit({"part": number}) for number in range(orders.get("parts", 0))))
    await asyncio.sleep(orders.get("work_ms", 0) / 1000)
    if "failure" in orders: return {"error": "as ordered"} | orders["failure"]
    if "question" in orders:
        asking = message["id"], message["holder"], message["attempt"], json.dumps(orders["question"])
        ending["result"]["reply"] = await call("bus.ask(%s, %s, %s, %s, 3600000)", *asking)
    if "fan_out" in orders:  # a child for each, and one that starts once all of them have ended
        place, ids = {"service": "test", "role": "work"}, [await call("bus.uuid_v7()") for _ in orders["fan_out"]]
        children = [place | {"id": id, "payload": payload} for id, payload in zip(ids, orders["fan_out"])]
        ending["follow_ups"] = children + [place | {"awaits": ids, "payload": {"join": ids}}]
    if "join" in orders: ending["result"]["joined"] = await rows("bus.results(%s::uuid[])", orders["join"])
    if "look_up" in orders: ending["result"]["found"] = await call("bus.results(%s::uuid[])", orders["look_up"])
    if "raise" in orders: raise ValueError(orders["raise"] + "\0")  # which no text of Postgres holds
    if "text" in orders:
        content = orders["text"].encode()
        stored = await call("bus.put_artifact(%s, 'text/plain', %s)", message["tenant"], content)
        ending["url"] = f"/artifacts/{stored['digest']}"
    if "deposit" in orders:  # stands if the completion does, and only then
        deposit = message["id"], orders["deposit"]
        ending["writes"] = lambda own: own.execute("insert into deposits values (%s, %s)", deposit)
    return ending | {name: orders[name] for name in ("snippet", "follow_ups") if name in orders}

if __name__ == "__main__": asyncio.run(serve(handle))
