/** The work. This does what the payload of a message says, so that the tests can order it; put yours into `handle`. */
import { setTimeout as sleep } from "node:timers/promises";
import { ask, call, type Ending, Failure, type Message } from "./bus.ts";

type Emit = (part: any) => Promise<unknown>;

/** Must stop when the signal fires; whatever it answers then is not written. */
export async function handle(message: Message, emit: Emit, signal: AbortSignal): Promise<Ending> {
  const orders = { ...message.payload, ...message.payload.attempts?.[message.attempt] };
  const ending: Ending = { result: { holder: message.holder }, snippet: orders.snippet, follow_ups: orders.follow_ups };
  await emit({ holder: message.holder }); // a part of the result, seen before the end
  await sleep(orders.work_ms ?? 0, undefined, { signal });
  if (orders.failure) throw new Failure("as ordered", orders.failure);
  if (orders.question) ending.result.reply = await ask(message, orders.question, 3_600_000, signal);
  if (orders.text) {
    const stored = await call("bus.put_artifact", message.tenant, "text/plain", Buffer.from(orders.text));
    ending.url = `/artifacts/${stored.digest}`;
  }
  if (orders.deposit) // stands if the completion does, and only then
    ending.writes = async (own) => own`insert into deposits values (${message.id}, ${orders.deposit})`;
  return ending;
}
