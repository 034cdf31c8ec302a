/** A line to the database that comes back when it breaks, and what handlers use of it. Node.js 18.19, postgres.js. */
import { EventEmitter, once } from "node:events";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import postgres, { type JSONValue, type TransactionSql } from "postgres";
export type Message = {
  id: string; holder: string; attempt: number; tenant: string; payload: any; headers: Record<string, JSONValue>;
  remaining_ms: number | null;
};
/** What a handler answers; `writes` stand or fall with the completion. */
export type Ending = {
  result?: any; snippet?: string; url?: string; follow_ups?: any[]; writes?: (own: TransactionSql) => Promise<unknown>;
};
/** `{ retry_ms: 500 }`, `{ defer_ms: 60000 }` or `{ retriable: false }`; any other error is tried again. */
export class Failure extends Error {
  constructor(why: string, readonly how: Record<string, JSONValue>) { super(why); }
}
/** How an error ends an attempt; some are such that no other attempt could do better. */
export const failure = (error: any) =>
  ({ error: JSON.stringify(String(error)), retriable: !/^(22|23514)/.test(error.code), ...error.how });

const PASSING = /^(08|40|53|57|CONN|E[A-Z]+$)/; // errors that go by: the same call may succeed a moment later
const PATIENCE = +(process.env.PATIENCE_MS ?? 15000); // for an answer; then the question goes over new connections
export const hints = new EventEmitter().setMaxListeners(0); // by channel; without a payload when some were missed
export let sql = open();
function open() {
  const fresh = postgres(process.env.DATABASE_URL!, { connect_timeout: 5, keep_alive: 15, backoff: () => 1 });
  for (const channel of ["bus_ready", "bus_cancel", "bus_task"])
    fresh.listen(channel, (payload) => hints.emit(channel, payload), () => hints.emit("bus_ready")).catch(() => {});
  return fresh;
}
async function send(query: string, values: any[]) {
  const asked = sql;
  const renew = () => { if (asked === sql) { sql = open(); asked.end({ timeout: 0 }); } };
  const silence = setTimeout(renew, PATIENCE);
  return asked.unsafe(query, values, { prepare: true }).finally(() => clearTimeout(silence));
}
/** Takes a step, again and again while the database is away: it must be one that may be taken twice. */
export async function insist<T>(step: () => Promise<T>): Promise<T> {
  for (let tries = 0; ; await sleep(50 * 2 ** Math.min(tries++, 5))) {
    try { return await step(); } catch (error: any) { if (!PASSING.test(error.code)) throw error; }
  }
}
/** Calls a function and answers its value or its row; insists. */
export async function call(name: string, ...values: any[]): Promise<any> {
  const query = `select to_jsonb(f) as answer from ${name}(${values.map((_, place) => `$${place + 1}`)}) as f`;
  return (await insist(() => send(query, values)))[0]?.answer;
}
/** Sends a request on behalf of a message; answers { status: done, result } or how else it ended: failed, … */
export async function ask(message: Message, question: object, deadlineMs: number, signal: AbortSignal) {
  const asked = { headers: message.headers, idempotency_key: randomUUID(), ...question };
  const { id } = await call("bus.request", sql.json(asked), deadlineMs, message.holder, message.id);
  for (; ; signal.throwIfAborted()) {
    const news = once(hints, "bus_task", { signal: AbortSignal.timeout(500) }).catch(() => {});
    const reply = await call("bus.reply", id);
    if (reply.status !== "pending") return reply;
    await news;
  }
}
