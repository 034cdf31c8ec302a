/** A worker in TypeScript with postgres.js; README.md tells the contract and the environment. */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import postgres, { type JSONValue } from "postgres";
type Message = { id: string; attempt: number; payload: any };
class Reject extends Error {} // a failure that no further attempt can mend; any other error is tried again
const { AGENT_SERVICE: service = "", AGENT_ROLE: role = "", HOLDER_ID: instance = "typescript/0" } = process.env;
const usual = { BUS_POLL_MS: 15000, LEASE_MS: 30000, GRACE_MS: 10000, CONCURRENCY: 8, AGENT_SHARD: 0 };
const [poll, lease, grace, slots, shard] = Object.entries(usual).map(([name, value]) => +(process.env[name] ?? value));
const holder = `${instance}#${randomUUID()}`; // unlike any other run's; with the number of the attempt it is the fence
const bus = postgres(process.env.DATABASE_URL!);
const inHand = new Map<string, { attempt: number; lost: AbortController }>();
let [stopping, wake] = [false, () => {}];
async function handle({ payload, attempt }: Message, emit: (part: JSONValue) => Promise<unknown>, signal: AbortSignal) {
  const order = payload.attempts?.[attempt]; // your work goes here; this does what the payload says for each attempt
  await emit({ holder });
  await sleep(order === "hang" ? 3_600_000 : (payload.work_ms ?? 0), undefined, { signal });
  if (order === "reject" || order === "retry") throw new (order === "reject" ? Reject : Error)("as ordered");
  return { result: { holder }, next: payload.follow_ups ?? [] };
}
async function run(message: Message) {
  const [{ id, attempt }, mine] = [message, { attempt: message.attempt, lost: new AbortController() }];
  inHand.set(id, mine);
  let seq = 0; // parts of the result, in order, for those who follow the task
  const emit = (part: JSONValue) =>
    bus`select bus.emit(${id}, ${holder}, ${attempt}, ${++seq}, array[${bus.json(part)}]::jsonb[], ${lease})`;
  try {
    const { result, next } = await handle(message, emit, mine.lost.signal);
    await bus`select bus.complete(${id}, ${holder}, ${attempt}, ${bus.json(result)}, null, null, ${bus.json(next)})`;
  } catch (error) { // for a claim that was lost, both answer so and write nothing
    const [reason, again] = [String(error).replaceAll("\0", ""), !(error instanceof Reject)];
    await bus`select bus.fail(${id}, ${holder}, ${attempt}, ${reason}, ${again})`;
  }
  if (inHand.get(id) === mine) inHand.delete(id);
  wake();
}
const columns = () => [[...inHand.keys()], [...inHand.values()].map(({ attempt }) => attempt)];
setInterval(async () => { // renews leases; a message that is missing from the answer was lost
  const [before, [ids, tries]] = [new Map(inHand), columns()];
  for (const { id } of await bus`select id from bus.extend(${ids}, ${tries}, ${holder}, ${lease})`) before.delete(id);
  for (const { lost } of before.values()) lost.abort();
}, lease / 3);
process.on("SIGTERM", () => { stopping = true; wake(); });
await bus.listen("bus_cancel", (id) => inHand.get(id)?.lost.abort()); // hints only: the poll finds what they miss
await bus.listen("bus_ready", (route) => { if (route === `${service}/${role}/${shard}`) wake(); }, () => wake());
while (!stopping) {
  const [woken, free] = [new Promise<void>((resolve) => (wake = resolve)), slots - inHand.size];
  if (free > 0) {
    const claimed = await bus<Message[]>`
      select * from bus.claim(${service}, ${role}, ${shard}, ${holder}, ${free}, ${lease}, ${instance})`;
    if (claimed.map((message) => run(message)).length > 0) continue;
  }
  const [{ due }] = await bus`select bus.next_due(${service}, ${role}, ${shard}) as due`;
  const timer = setTimeout(wake, free > 0 ? Math.min(poll, due ?? poll) : poll);
  await woken;
  clearTimeout(timer);
}
for (const end = Date.now() + grace; inHand.size > 0 && Date.now() < end; ) await sleep(20);
await bus`select bus.release(${columns()[0]}, ${columns()[1]}, ${holder})`;
process.exit(); // a statement that fails ends the process too, and whoever supervises it starts it again
