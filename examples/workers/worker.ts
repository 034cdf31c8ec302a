/** A worker in TypeScript with postgres.js: does what handler.ts says. README.md tells contract and environment. */
import { randomUUID } from "node:crypto";
import * as bus from "./bus.ts";
import { handle } from "./handler.ts";
const { AGENT_SERVICE: service, AGENT_ROLE: role, HOLDER_ID: instance = "typescript/0" } = process.env;
const usual = { BUS_POLL_MS: 15000, LEASE_MS: 30000, GRACE_MS: 10000, CONCURRENCY: 8, AGENT_SHARD: 0 };
const [poll, lease, grace, slots, shard] = Object.entries(usual).map(([name, value]) => +(process.env[name] ?? value));
const path = `${service}/${role}/${shard}`;
export const me = { instance, holder: `${instance}#${randomUUID()}`, stopping: false }; // with the attempt: the fence
export const inHand = new Map<string, { attempt: number; lost: AbortController }>();
const held = () => bus.sql.json(Object.fromEntries([...inHand].map(([id, { attempt }]) => [id, attempt])));
let wake = () => {};

async function end({ id, holder, attempt }: bus.Message, { writes, ...ending }: any) { // not written if it was lost
  if (!writes) return bus.call("bus.settle", id, holder, attempt, bus.sql.json(ending));
  await bus.insist(() => bus.sql.begin(async (own) => { // commits, or takes everything back
    await writes(own);
    const [{ status }] = await own`select bus.settle(${id}, ${holder}, ${attempt}, ${own.json(ending)}) as status`;
    if (status === null) throw new Error("the claim was lost");
  }));
}
async function run(message: bus.Message) {
  const { id, holder, attempt, remaining_ms: left } = message;
  const mine = { attempt, lost: new AbortController() };
  inHand.set(id, mine);
  const timer = setTimeout(() => mine.lost.abort(new Error("time to live passed")), Math.min(left ?? 2e9, 2e9));
  const dropped = new Promise<never>((_, fail) => { mine.lost.signal.onabort = () => fail(mine.lost.signal.reason); });
  let seq = 0;
  const emit = (part: any) => bus.call("bus.emit_one", id, holder, attempt, ++seq, bus.sql.json(part), lease);
  try { await end(message, await Promise.race([handle(message, emit, mine.lost.signal), dropped])); }
  catch (error) { if (inHand.get(id) === mine) await end(message, bus.failure(error)); }
  clearTimeout(timer);
  if (inHand.get(id) === mine) drop(id);
}
export function drop(id: string) {
  inHand.get(id)?.lost.abort(new Error("dropped"));
  inHand.delete(id);
  wake();
}
export function retire() { // claims nothing new; what is in hand has the time of grace, then it is handed back
  me.stopping = true;
  setTimeout(() => [...inHand.keys()].forEach(drop), grace).unref();
  setTimeout(() => process.exit(1), grace + 5000).unref(); // the database is away: the leases will lapse
  wake();
}
export async function work() {
  process.on("SIGTERM", retire); // below: hints only; what they miss, the next look finds
  bus.hints.on("bus_cancel", drop).on("bus_ready", (route = path) => { if (route === path) wake(); });
  while (inHand.size > 0 || !me.stopping) {
    const woken = new Promise<void>((resolve) => (wake = resolve));
    for (const id of await bus.call("bus.renew", me.holder, held(), lease)) drop(id);
    const free = me.stopping ? 0 : slots - inHand.size;
    const look = await bus.call("bus.look", service, role, shard, me.holder, instance, held(), free, lease, poll);
    for (const message of look.messages) run(message);
    const timer = setTimeout(wake, look.next_ms);
    await woken.finally(() => clearTimeout(timer));
  }
  await bus.call("bus.hand_back_unheld", me.holder, path, []);
}
if (process.argv[1].endsWith("worker.ts")) { await work(); process.exit(); }
