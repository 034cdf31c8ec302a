/** The worker as a member of the fleet: `cogo agents` shows it, operators suspend, resume and drain it. */
import { createHash, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { call, sql } from "./bus.ts";
import { drop, inHand, me, retire, work } from "./worker.ts";

const { AGENT_SERVICE, AGENT_DOMAIN: domain = AGENT_SERVICE, AGENT_VERSION: version = "1.0.0" } = process.env;
const [name, slot] = me.instance.split("/");
const beatMs = +(process.env.BEAT_MS ?? 5000);
const key = process.env.AGENT_KEY; // for a name that joins with its key only; the key itself is never sent

/** Joins as a new run of the slot, whose holder the worker claims as from now on; answers the run and its epoch. */
async function join(previous: string | null) {
  const [run, proof] = [randomUUID(), key ? createHash("sha256").update(key.trim()).digest() : null];
  const about = [version, [], sql.json({}), sql.json([]), 2, null, previous, [], null, null, proof];
  const place = await call("registry.register", run, domain, name, +slot, ...about);
  if (place.outcome === "occupied") throw new Error(`${me.instance} belongs to ${place.holder} now`);
  await call("registry.activate", run);
  me.holder = place.holder;
  return { run, epoch: place.epoch };
}

let place = await join(null);
let working = true;
const worked = work().finally(() => { working = false; });
for (let number = 1; working; number++) {
  await Promise.race([worked, sleep(beatMs)]);
  const beat = await call("registry.beat", place.run, place.epoch, number, true, inHand.size);
  if (beat.outcome !== "alive") { // others have its work by now
    [...inHand.keys()].forEach(drop);
    place = await join(place.run);
  } else if (me.stopping) await call("registry.drain", place.run, "stopping");
  else if (beat.state === "draining") retire();
}
await call("registry.deregister", place.run, place.epoch, "stopped");
process.exit();
