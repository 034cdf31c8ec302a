"""The work. This does what the payload of a message says, so that the tests can order it; put yours into `handle`."""
import asyncio, json
from worker import call, serve

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
    if "text" in orders:
        content = orders["text"].encode()
        stored = await call("bus.put_artifact(%s, 'text/plain', %s)", message["tenant"], content)
        ending["url"] = f"/artifacts/{stored['digest']}"
    if "deposit" in orders:  # stands if the completion does, and only then
        deposit = message["id"], orders["deposit"]
        ending["writes"] = lambda own: own.execute("insert into deposits values (%s, %s)", deposit)
    return ending | {name: orders[name] for name in ("snippet", "follow_ups") if name in orders}

if __name__ == "__main__": asyncio.run(serve(handle))
