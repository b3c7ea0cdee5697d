// The status page: lists are read again when something has happened (at most once a second), and every 15 s.

import { element, fillTable, plain, when } from "/page/page.js";

const KEY = "oncue-token";
const LIVE_LINES = 100;
const BLOCKS = 20; // of one endpoint
const by = (id) => document.getElementById(id);
let session = null; // {token, stop: AbortController}

class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function get(path, { token, stop }) {
  const answer = await fetch(path, { headers: { Authorization: `Bearer ${token}` }, signal: stop.signal });
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, [found.detail || answer.statusText, found.remedy].filter(Boolean).join(" — "));
}

const state = (word) => ({ text: word, className: "state-" + String(word).replace(/[^a-z_]/g, "") });

const unevaluated = (r) => r.unevaluated_why && `for ${r.unevaluated} events since start, \`when\` could not be evaluated; ` +
  `the last, ${r.unevaluated_event} of ${r.unevaluated_source}: ${r.unevaluated_why}`;

const PERIODS = { 3600: "hour", 86400: "day", 604800: "week" };

function nodeHours(e) {
  if (!e.scheduler) return "";
  const used = e.node_hours.toFixed(1);
  const period = PERIODS[e.node_hours_period_s] || `${(e.node_hours_period_s / 86400).toFixed(1)} days`;
  return e.node_hours_limit ? `${used} of ${e.node_hours_limit} a ${period}` : `${used} a ${period}`;
}

function remaining(us) {
  const minutes = Math.max(0, Math.round((us / 1000 - Date.now()) / 60000));
  return minutes < 120 ? `${minutes} min left` : `${(minutes / 60).toFixed(1)} h left`;
}

function blocks(e) {
  const lines = e.blocks.slice(0, BLOCKS).map((b) => {
    const line = element("li");
    const facts = [b.job && `job ${b.job}`, `${b.nodes} nodes`, `${b.busy} of ${b.workers} workers busy`, b.ends_us && remaining(b.ends_us), b.reason];
    line.append(element("b", plain(b.state), state(b.state).className), element("span", plain(facts.filter(Boolean).join(" · "))));
    return line;
  });
  if (e.breaker) lines.unshift(element("li", plain(`the breaker is open: ${e.breaker}`), "state-failed"));
  if (!lines.length) return [];
  const list = element("ul", undefined, "blocks");
  list.append(...lines);
  return [list];
}

const TABLES = {
  endpoints: ["/v1/endpoints?limit=200", [
    ["name", (e) => e.name], ["owner", (e) => e.owner], ["state", (e) => state(e.state)], ["workers", (e) => e.workers], ["busy", (e) => e.busy],
    ["waiting", (e) => e.waiting], ["node-hours", nodeHours], ["host", (e) => e.host],
    ["why", (e) => [e.why !== e.breaker && e.why, e.waiting_for].filter(Boolean).join("; ")],
  ], "No endpoints yet: oncue endpoint register", blocks],
  rules: ["/v1/rules", [
    ["name", (r) => r.name], ["file", (r) => `${r.label}@${r.version}`], ["state", (r) => state(r.state)],
    ["runs", (r) => r.runs.join(", ")], ["on", (r) => plain(r.on)], ["endpoint", (r) => r.endpoint], ["fired since start", (r) => r.fired],
    ["why", (r) => [r.why, unevaluated(r)].filter(Boolean).join("; ")],
  ], "No rules yet: oncue deploy FILE"],
  triggers: ["/v1/triggers", [
    ["name", (t) => t.name], ["kind", (t) => t.kind], ["state", (t) => state(t.state)], ["emitted since start", (t) => t.emitted],
    ["skipped", (t) => t.skipped], ["old files", (t) => t.existing], ["last", (t) => when(t.last_us)], ["detail", (t) => t.detail || (t.last_skip && `${when(t.last_skip_us)}: ${t.last_skip}`)],
  ], "No triggers yet"],
  tasks: ["/v1/tasks?limit=25", [
    ["task", (t) => t.id], ["state", (t) => state(t.state)], ["function", (t) => t.name || t.function.slice(0, 12)],
    ["endpoint", (t) => t.endpoint], ["rule", (t) => t.rule], ["accepted", (t) => when(t.accepted_us)],
    ["why", (t) => t.why],
  ], "No tasks yet"],
};

async function refresh(mine) {
  await Promise.all(Object.entries(TABLES).map(async ([id, [path, columns, none, below]]) => {
    const found = await (await get(path, mine)).json();
    if (mine === session) fillTable(by(id), columns, Array.isArray(found) ? found : found.items, none, below);
  }));
}

let due = 0;
function refreshSoon(mine) {
  if (due) return;
  due = setTimeout(() => {
    due = 0;
    if (mine === session) refresh(mine).then(() => trouble(""), (error) => failed(error, mine));
  }, 1000);
}

// ---------------------------------------------------------------- live

async function follow(mine) {
  let pause = 1000;
  let last = "";
  while (mine === session) {
    try {
      const headers = { Authorization: `Bearer ${mine.token}` };
      if (last) headers["Last-Event-ID"] = last;
      const answer = await fetch("/v1/live", { headers, signal: mine.stop.signal });
      if (!answer.ok) throw new Refused(answer.status, "the live stream was refused");
      by("live-state").textContent = "connected";
      pause = 1000;
      for await (const message of messages(answer.body)) {
        if (mine !== session) return;
        if (message.id) last = message.id;
        heard(message, mine);
      }
    } catch (error) {
      if (mine !== session) return;
      if (error instanceof Refused && (error.status === 401 || error.status === 403)) return failed(error, mine);
    }
    by("live-state").textContent = "connecting again";
    await new Promise((done) => setTimeout(done, pause));
    pause = Math.min(pause * 2, 30000);
  }
}

async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const message = { id: "", event: "", data: "" };
      for (const line of part.split("\n")) {
        const at = line.indexOf(": ");
        if (at > 0) message[line.slice(0, at)] = line.slice(at + 2);
      }
      if (message.event) yield message;
    }
  }
}

function heard(message, mine) {
  refreshSoon(mine);
  if (message.event === "reset") return;
  const line = element("li");
  line.append(element("time", new Date().toLocaleTimeString()), element("b", plain(message.event)));
  line.append(element("span", plain(message.data)));
  const list = by("live");
  list.prepend(line);
  while (list.children.length > LIVE_LINES) list.lastChild.remove();
}

// ---------------------------------------------------------------- session

function trouble(text) {
  by("trouble").textContent = text;
  by("trouble").hidden = !text;
}

function failed(error, mine) {
  if (mine !== session || error.name === "AbortError") return;
  trouble(plain(error.message));
  if (error instanceof Refused && error.status === 401) end();
}

function end() {
  if (session) session.stop.abort();
  session = null;
  sessionStorage.removeItem(KEY);
  by("panels").hidden = by("forget").hidden = true;
  by("sign-in").hidden = false;
  by("server").textContent = "";
}

async function begin(token) {
  const mine = (session = { token, stop: new AbortController() });
  try {
    const me = await (await get("/v1/me", mine)).json();
    sessionStorage.setItem(KEY, token);
    by("server").textContent = `${plain(me.server_id)} · version ${plain(me.server)} · you are ${plain(me.subject)}`;
    by("sign-in").hidden = true;
    by("panels").hidden = by("forget").hidden = false;
    trouble("");
    await refresh(mine);
  } catch (error) {
    failed(error, mine);
    if (!(error instanceof Refused)) by("sign-in").hidden = false;
  }
  if (mine === session) follow(mine);
}

by("use").addEventListener("click", () => {
  const token = by("token").value.trim();
  by("token").value = "";
  if (token) begin(token);
});
by("token").addEventListener("keydown", (event) => { if (event.key === "Enter") by("use").click(); });
by("forget").addEventListener("click", () => { end(); trouble(""); by("live").replaceChildren(); });
setInterval(() => { if (session && !document.hidden) refreshSoon(session); }, 15000);

const kept = sessionStorage.getItem(KEY);
if (kept) begin(kept);
else by("sign-in").hidden = false;
