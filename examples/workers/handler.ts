/** The work. This does what the payload of a message says, so that the tests can order it; put yours into `handle`. */
import { setTimeout as sleep } from "node:timers/promises";
import { call, rows, serve } from "./worker.ts";

/** Must stop when the signal fires; whatever it answers then is not written. */
async function handle(message: any, emit: (part: any) => Promise<unknown>, signal: AbortSignal) {
  const { id, holder, attempt, payload, tenant } = message;
  const orders = { ...payload, ...payload.attempts?.[attempt] };
  const ending: any = { result: { holder }, snippet: orders.snippet, follow_ups: orders.follow_ups };
  await emit({ holder }); // a part of the result, seen before the end
  await Promise.all(Array.from({ length: orders.parts ?? 0 }, (_, part) => emit({ part })));
  await sleep(orders.work_ms ?? 0, undefined, { signal });
  if (orders.failure) return { error: "as ordered", ...orders.failure };
  if (orders.question)
    ending.result.reply = await call("bus.ask($1, $2, $3, $4, 3600000)", [id, holder, attempt, orders.question]);
  if (orders.fan_out) { // a child for each, and one that starts once all of them have ended
    const place = { service: "test", role: "work" };
    const ids = await Promise.all(orders.fan_out.map(() => call("bus.uuid_v7()", [])));
    const children = ids.map((id, nth) => ({ ...place, id, payload: orders.fan_out[nth] }));
    ending.follow_ups = [...children, { ...place, awaits: ids, payload: { join: ids } }];
  }
  if (orders.join) ending.result.joined = await rows("bus.results($1::uuid[])", [orders.join]);
  if (orders.look_up) ending.result.found = await call("bus.results($1::uuid[])", [orders.look_up]);
  if (orders.raise) throw new Error(orders.raise + "\0"); // which no text of Postgres holds
  if (orders.text) {
    const stored = await call("bus.put_artifact($1, 'text/plain', $2)", [tenant, Buffer.from(orders.text)]);
    ending.url = `/artifacts/${stored.digest}`;
  }
  if (orders.deposit) // stands if the completion does, and only then
    ending.writes = (own: any) => own`insert into deposits values (${id}, ${orders.deposit})`;
  return ending;
}

await serve(handle);
