/** A worker in TypeScript with postgres.js: serves what handler.ts does. README.md tells contract and environment. */
import { createHash } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import postgres from "postgres";
type Handle = (message: any, emit: (part: any) => Promise<unknown>, signal: AbortSignal) => Promise<any>;
const ours = /^(AGENT_(SERVICE|ROLE|SHARD|DOMAIN|VERSION)|HOLDER_ID|CONCURRENCY|(BEAT|BUS_POLL|LEASE|GRACE)_MS)$/;
const worker: any = { key_proof: createHash("sha256").update((process.env.AGENT_KEY ?? "").trim()).digest("hex") };
for (const [name, value] of Object.entries(process.env)) if (ours.test(name)) worker[name.toLowerCase()] = value;
const [sql, theirs] = [10, +(worker.concurrency ?? 8) + 2].map((max) => // what handlers do must hold up no lease
  postgres(process.env.DATABASE_URL!, { max, connect_timeout: 5, keep_alive: 15, backoff: () => 1 }));
const inHand = new Map<string, any>(), patience = +(process.env.PATIENCE_MS ?? 15000); let wake = () => {};

/** Calls a function, in one transaction after `writes`; again while the database is away or the answer is pending. */
export async function call(question: string, values: any[], writes?: (own: any) => Promise<unknown>): Promise<any> {
  const ask = (line: any = question.startsWith("bus.work(") ? sql : theirs) =>
    line.unsafe(`select (select to_jsonb(f) from ${question} as f) answer`, values, { prepare: true });
  const inTime = () => Promise.race([ask(), sleep(patience).then(() => Promise.reject({ code: "ETIMEDOUT" }))]);
  for (let tries = 0; ; await sleep(50 * 2 ** Math.min(tries++, 4))) {
    try {
      const [{ answer }] = await (writes ? theirs.begin((own) => writes(own).then(() => ask(own))) : inTime());
      if (answer?.status !== "pending") return answer;
    } catch (error: any) {
      if (!/^(08|40|53|57|58|55P03|25006|CONN|E[A-Z]+$)/.test(error?.code)) throw error; // these go by
      if (!tries) console.warn(`${question}, again until it works: ${error.message || error.code}`);
    }
  }
}
export const rows = (set: string, values: any[]) => call(`coalesce((select jsonb_agg(r) from ${set} r), '[]')`, values);

async function run(handle: Handle, message: any) {
  const { id, holder, attempt, lease_ms } = message;
  const mine: any = { attempt, seq: 0, lost: new AbortController() }; inHand.set(id, mine);
  const values = (part: any) => [id, holder, attempt, mine.seq + 1, sql.json(part), lease_ms];
  const store = async (part: any) => mine.seq = await call("bus.emit_one($1, $2, $3, $4, $5, $6)", values(part));
  const emit = (part: any) => mine.told = Promise.allSettled([mine.told]).then(() => store(part)); // no gaps
  try {
    const { writes, ...ending } = await handle(message, emit, mine.lost.signal);
    if (writes) await call("bus.settle_or_raise($1, $2, $3, $4)", [id, holder, attempt, sql.json(ending)], writes);
    mine.ending = JSON.stringify(ending);
  } catch (e: any) { mine.ending = JSON.stringify({ error: String(e).replace(/[\0\p{Cs}]/gu, "�"), code: e?.code }); }
  wake();
}

export async function serve(handle: Handle) {
  for (const end of ["SIGTERM", "SIGINT"]) process.on(end, () => { // claims no more, and hands back after the grace
    setTimeout(() => process.exit(1), +(worker.grace_ms ?? 10000) + 5000); // the database is away: the leases lapse
    worker.stopping = true; wake();
  });
  const hear = (hint: string) => { if (hint === worker.route || inHand.has(hint)) wake(); };
  for (const channel of ["bus_ready", "bus_cancel"]) sql.listen(channel, hear, () => wake()).catch(() => {});
  while (worker.next_ms !== null) {
    const woken = new Promise<void>((resolve) => { wake = resolve; });
    const held = Object.fromEntries([...inHand].map(([id, { attempt, ending }]) => [id, { attempt, ending }]));
    const step = await call("bus.work($1, $2)", [worker, held]); Object.assign(worker, step.worker);
    for (const id of step.over) { inHand.get(id).lost.abort(new Error("it is over")); inHand.delete(id); }
    for (const message of step.messages) run(handle, message);
    const timer = setTimeout(wake, worker.next_ms ?? 0); await woken.finally(() => clearTimeout(timer));
  }
  process.exit();
}
