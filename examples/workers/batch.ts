/** Batches: what is in hand is handled in one call, and each message ends by itself. Put yours into `double`. */
import { fileURLToPath } from "node:url";
import { call, serve } from "./worker.ts";
type One = { message: any; emit: (part: any) => Promise<unknown>; signal: AbortSignal };

/**
 * A handler for `serve`: calls `handleAll` with `most` messages, or those that came within `waitMs`.
 *
 * It answers an ending for each, in their order: an `Error` fails that message alone, one that it throws all of them.
 */
export function batched(handleAll: (batch: One[]) => Promise<any[]>, most: number, waitMs: number) {
  let waiting: (One & { end: (ending: any) => void; fail: (error: any) => void })[] = [];
  let timer: NodeJS.Timeout;
  const begin = async () => {
    clearTimeout(timer);
    const batch = waiting.filter(({ signal }) => !signal.aborted);
    waiting = [];
    if (!batch.length) return;
    try {
      const endings = await handleAll(batch);
      if (endings.length !== batch.length) throw new Error(`${batch.length} messages and ${endings.length} endings`);
      endings.forEach((ending, nth) => ending instanceof Error ? batch[nth].fail(ending) : batch[nth].end(ending));
    } catch (error) {
      for (const { fail } of batch) fail(error);
    }
  };
  return (message: any, emit: One["emit"], signal: AbortSignal) => new Promise<any>((end, fail) => {
    waiting.push({ message, emit, signal, end, fail });
    if (waiting.length === 1) timer = setTimeout(begin, waitMs);
    if (waiting.length >= most) begin();
  });
}

async function double(batch: One[]) {
  const ids = batch.map(({ message }) => message.id);
  for (const { message: { payload } } of batch) {
    if (payload.gate) await call("pg_advisory_xact_lock_shared($1)", [payload.gate]);
    if (payload.spoil) throw new Error("the batch is spoilt, as ordered");
  }
  return batch.map(({ message: { payload } }) => Number.isFinite(payload.number)
    ? { result: { double: payload.number * 2, batch: ids } } : new TypeError("number is none"));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await serve(batched(double, 5, 50));
