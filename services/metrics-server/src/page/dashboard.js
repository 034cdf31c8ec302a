// The live page. Whatever comes from the database is written as text and never as markup.

const STALE_AFTER_MS = 5000;
const RETRY_MS = 2000;

// icon and word together, so that no state is told by colour alone
const STATUS = {
  queued: ["◷", "wait"], claimed: ["▶", "busy"], done: ["✓", "good"], failed: ["✗", "bad"], cancelled: ["⊘", "off"],
};
const AGENT_STATE = {
  registered: ["◷", "wait"], active: ["✓", "good"], suspect: ["▲", "bad"], suspended: ["‖", "wait"],
  draining: ["▽", "busy"], terminated: ["⊘", "off"],
};

const element = (id) => document.getElementById(id);
// a server with much to count looks less often and says so; "stale" means later than announced
const page = { source: null, received: null, ageAtReceipt: 0, nextIn: 0, lookedFor: performance.now(), paused: false, retry: null };

// ---------------------------------------------------------------- words and numbers

const count = (value, capped) => `${Number(value).toLocaleString("en")}${capped ? "+" : ""}`;
const known = (value) => value !== null && value !== undefined;

const two = (large, small) => (small.startsWith("0 ") ? large : `${large} ${small}`);

function duration(ms) {
  if (!known(ms)) return "–";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 3_600_000) return two(`${Math.floor(ms / 60_000)} min`, `${Math.floor((ms % 60_000) / 1000)} s`);
  if (ms < 86_400_000) return two(`${Math.floor(ms / 3_600_000)} h`, `${Math.floor((ms % 3_600_000) / 60_000)} min`);
  return two(`${Math.floor(ms / 86_400_000)} d`, `${Math.floor((ms % 86_400_000) / 3_600_000)} h`);
}

const seconds = (s) => duration(known(s) ? s * 1000 : null);
const memory = (bytes) => (known(bytes) ? `${(bytes / 1_048_576).toFixed(0)} MiB` : "–");
const cores = (share) => (known(share) ? `${(share * 100).toFixed(1)} %` : "–");
const route = (row) => `${row.service}/${row.role}/${row.shard}`;

function clock(iso) {
  const time = new Date(iso);
  const today = time.toDateString() === new Date().toDateString();
  const shown = time.toLocaleTimeString("en-GB");
  return { text: today ? shown : `${time.toLocaleDateString("en-CA")} ${shown}`, title: iso, time: iso };
}

function detail(event) {
  const facts = Object.entries(event.detail ?? {}).filter(([, value]) => known(value));
  return facts.map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
}

// ---------------------------------------------------------------- tables

const number = (text) => ({ text, kind: "number" });
const id = (text) => ({ text: text ?? "–", kind: "id" });
const long = (text) => ({ text: text ?? "", kind: "text" });
const head = (text) => ({ text, head: true });
const status = (word, known_words) => ({ text: word, status: known_words[word] ?? ["?", "off"] });

function write(cell, content) {
  cell.className = content.kind ?? "";
  if (content.title) cell.title = content.title;
  else cell.removeAttribute("title");
  if (content.status) {
    const [icon, tone] = content.status;
    const sign = document.createElement("span");
    sign.setAttribute("aria-hidden", "true");
    sign.textContent = icon;
    cell.className = `status ${tone}`;
    cell.replaceChildren(sign, document.createTextNode(content.text));
  } else if (content.time) {
    const time = document.createElement("time");
    time.dateTime = content.time;
    time.textContent = content.text;
    cell.replaceChildren(time);
  } else {
    cell.textContent = content.text;
  }
}

// Only cells that changed are touched: a selection stays, and a screen reader is not thrown out of its row.
function fill(body, rows) {
  if (rows.length === 0) {
    const columns = body.parentElement.tHead.rows[0].cells.length;
    if (body.dataset.shows !== "empty") {
      const cell = document.createElement("td");
      cell.colSpan = columns;
      cell.className = "empty";
      cell.textContent = body.dataset.empty;
      const row = document.createElement("tr");
      row.append(cell);
      body.replaceChildren(row);
      body.dataset.shows = "empty";
    }
    return;
  }
  if (body.dataset.shows === "empty") body.replaceChildren();
  body.dataset.shows = "rows";
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((contents, index) => {
    const row = body.rows[index] ?? body.insertRow();
    contents.forEach((content, column) => {
      let cell = row.cells[column];
      if (!cell) {
        cell = document.createElement(content.head ? "th" : "td");
        if (content.head) cell.scope = "row";
        row.append(cell);
      }
      const key = JSON.stringify(content);
      if (cell.shownAs !== key) {
        cell.shownAs = key;
        write(cell, content);
      }
    });
  });
}

// ---------------------------------------------------------------- one snapshot onto the page

function set(name, text) {
  const target = element(name);
  if (target.textContent !== text) target.textContent = text;
}

function showFigures({ bus, window_s }) {
  const { byStatus, capped } = bus;
  for (const name of ["queued", "claimed", "done", "failed"]) set(name, count(byStatus[name], capped[name]));
  const oldest = known(bus.oldest_queued_age_s) ? `oldest ${seconds(bus.oldest_queued_age_s)}` : "none waits";
  set("queued-note", bus.delayed > 0 ? `${oldest}, ${count(bus.delayed)} delayed` : oldest);
  set("done-note", byStatus.cancelled > 0 ? `${count(byStatus.cancelled, capped.cancelled)} cancelled` : "completed");
  set("throughput", bus.throughput_per_s.toFixed(bus.throughput_per_s < 10 ? 2 : 1));
  set("failure-rate", `${(bus.failure_rate * 100).toFixed(bus.failure_rate < 0.1 ? 2 : 1)} %`);
  for (const name of ["p50", "p90", "p99"]) set(name, duration(bus.latency_ms[name]));
  set("wait-note", known(bus.wait_ms.p90) ? `p90 of waiting ${duration(bus.wait_ms.p90)}` : "");
  set("sample-note", `of ${count(bus.latency_ms.n)} done`);
  set("window", seconds(window_s));
}

function showTables({ bus, agentList, messages, failures, events }) {
  fill(element("routes"), bus.byKey.map((row) => [
    head(route(row)), number(count(row.queued)), number(seconds(row.oldest_age_s)), number(count(row.claimed)),
    number(count(row.done)), number(count(row.failed)), number(duration(row.p50_ms)), number(duration(row.p90_ms)),
  ]));
  fill(element("agents"), agentList.map((agent) => [
    head(`${agent.name}/${agent.slot}`), status(agent.state, AGENT_STATE), { text: agent.version },
    number(duration(agent.beat_age_ms)), number(count(agent.in_flight)), number(cores(agent.cpu_cores)),
    number(memory(agent.memory_bytes)), { text: `${agent.location.host} (${agent.location.environment})` },
    long(agent.capabilities.join(", ")),
  ]));
  fill(element("messages"), messages.map((message) => [
    clock(message.changed_at), status(message.status, STATUS), { text: route(message) }, { text: message.tenant },
    number(count(message.attempts)), number(duration(message.wait_ms)), number(duration(message.run_ms)),
    id(message.claimed_by), long(message.error), id(message.root_id),
  ]));
  fill(element("failures"), failures.map((group) => [
    head(route(group)), { ...long(group.error), title: group.sample_error }, number(count(group.count)),
    clock(group.first_seen), clock(group.last_seen), id(group.sample_id),
  ]));
  fill(element("events"), events.map((event) => [
    clock(event.at), { text: event.kind }, { text: event.route ?? "–" }, { text: event.tenant },
    id(event.actor), long(detail(event)), id(event.root_id),
  ]));
}

function show(snapshot) {
  page.received = performance.now();
  page.ageAtReceipt = snapshot.age_ms;
  page.nextIn = snapshot.next_in_ms;
  element("problem").hidden = true;
  showFigures(snapshot);
  showTables(snapshot);
  showAge();
}

function showProblem(problem) {
  const text = [problem.title, problem.detail, problem.hint].filter(Boolean).join(". ");
  set("problem", text);
  element("problem").hidden = false;
}

// ---------------------------------------------------------------- age of the data, and the connection

function showAge() {
  const age = page.received === null ? null : performance.now() - page.received + page.ageAtReceipt;
  let state = "connecting";
  if (page.paused) state = "paused";
  else if (age !== null) state = age < page.nextIn + STALE_AFTER_MS ? "live" : "stale";
  else if (performance.now() - page.lookedFor > STALE_AFTER_MS) state = "no data";
  const mark = element("state");
  mark.dataset.state = { connecting: "waiting", "no data": "stale" }[state] ?? state;
  // the word alone is announced, and only when it changes; the seconds beside it are not
  set("state", state);
  if (age === null) set("age", "");
  else set("age", state === "live" ? `· ${(age / 1000).toFixed(1)} s ago` : `${Math.round(age / 1000)} s`);
}

function disconnect() {
  clearTimeout(page.retry);
  page.source?.close();
  page.source = null;
}

function connect() {
  disconnect();
  if (page.paused || document.hidden) return;
  page.lookedFor = performance.now();
  const source = new EventSource("/api/metrics/stream");
  page.source = source;
  source.addEventListener("snapshot", (event) => show(JSON.parse(event.data)));
  source.addEventListener("problem", (event) => showProblem(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    // a browser retries a broken connection by itself, but not one that was answered with an error
    if (source.readyState === EventSource.CLOSED) page.retry = setTimeout(connect, RETRY_MS);
  });
}

element("pause").addEventListener("click", () => {
  page.paused = !page.paused;
  element("pause").setAttribute("aria-pressed", String(page.paused));
  connect();
  showAge();
});
// a hidden tab holds no connection: a browser has only six of them for one server
document.addEventListener("visibilitychange", connect);
setInterval(showAge, 500);
connect();
