"use strict";

// The server renders the page from its snapshot, without a query to the engine; this script updates the parts that
// changed. The live values come from /metrics, which waits for the engine: a request of their own keeps a hung engine
// from delaying the state.
const EVERY_MS = 2000;
const WITHIN_MS = 5000;
const RATE_OVER_MS = 10000;
const NO_REFUSAL = ["allowed", "own", "client_gone", "unread"];

const note = document.getElementById("note");
const boxes = [...document.querySelectorAll("[data-metric]")];
const readings = new Map();
let gone = false;

// XMLHttpRequest parses a document itself, so this script never turns text into HTML.
function ask(url, responseType) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", url);
    Object.assign(request, { responseType, timeout: WITHIN_MS });
    request.onload = () => (request.status === 200 ? resolve(request.response) : reject(new Error(request.status)));
    request.onerror = request.ontimeout = () => reject(new Error("no answer"));
    request.send();
  });
}

function part(root, name) {
  return root.querySelector(`[data-part="${name}"]`);
}

// Only parts that differ are replaced, so that a selection stays and a screen reader reads changes alone.
function update(fresh) {
  if (!fresh || !part(fresh, "state")) throw new Error("another page answers here");
  for (const old of document.querySelectorAll("[data-part]")) {
    const now = part(fresh, old.dataset.part);
    if (now && now.innerHTML !== old.innerHTML) old.replaceChildren(...now.childNodes);
  }
  document.title = fresh.title;
  gone = false;
}

function showGone() {
  if (gone) return;
  gone = true;
  const last = document.querySelector("[data-state]").textContent;
  const seen = part(document, "as_of").querySelector("time").textContent;
  const state = document.createElement("p");
  state.dataset.state = "gone";
  state.textContent = "no answer";
  const reason = document.createElement("p");
  reason.className = "reason";
  reason.textContent = `No answer since ${seen}. The last known state was: ${last}. Everything below is as old.`;
  part(document, "state").replaceChildren(state, reason);
  document.title = `no answer · ${part(document, "name").textContent}`;
  show(null);
}

// Prometheus text format: name{labels} value
function parse(text) {
  const families = new Map();
  for (const [, name, labels = "", value] of text.matchAll(/^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/gm)) {
    if (!Number.isFinite(Number(value))) continue;
    if (!families.has(name)) families.set(name, []);
    families.get(name).push({ labels, value: Number(value) });
  }
  return families;
}

function sum(samples) {
  return samples.reduce((total, sample) => total + sample.value, 0);
}

function shown(number, digits = 0) {
  return number.toLocaleString("en", { maximumFractionDigits: digits });
}

// The mean over the last readings; a counter that fell has restarted, and so does the mean.
function rate(metric, total) {
  const now = performance.now();
  let past = (readings.get(metric) ?? []).filter(({ at }) => now - at <= RATE_OVER_MS);
  if (past.length && total < past.at(-1).total) past = [];
  readings.set(metric, [...past, { at: now, total }]);
  if (!past.length) return "…";
  const perSecond = (1000 * (total - past[0].total)) / (now - past[0].at);
  return shown(perSecond, perSecond < 10 ? 1 : 0);
}

function refusals(samples) {
  const counts = new Map();
  for (const { labels, value } of samples) {
    const outcome = /outcome="([^"]*)"/.exec(labels)?.[1] ?? "other";
    if (!NO_REFUSAL.includes(outcome) && value) counts.set(outcome, (counts.get(outcome) ?? 0) + value);
  }
  const rows = [...counts].sort(([, a], [, b]) => b - a);
  const detail = rows.map(([outcome, count]) => `${outcome.replaceAll("_", " ")} ${shown(count)}`).join(", ");
  return [shown(rows.reduce((total, [, count]) => total + count, 0)), detail];
}

// The text of one value and its small print; nothing where the metric is absent: absent is not zero.
function figure({ metric, kind, limit, unit }, families) {
  const samples = families.get(metric);
  if (!samples) {
    readings.delete(metric);
    return null;
  }
  const total = sum(samples);
  const most = limit && families.get(limit);
  switch (kind) {
    case "rate": return [rate(metric, total)];
    case "share": return [`${shown((100 * total) / samples.length, 1)} %`];
    case "refusals": return refusals(samples);
    case "energy": return [`${shown(total / 3600, 1)} Wh`];
    default: return [unit ? `${shown(total)} ${unit}` : shown(total), most ? `of ${shown(sum(most))}` : ""];
  }
}

function show(families) {
  for (const box of boxes) {
    const texts = families && figure(box.dataset, families);
    box.hidden = !texts;
    const small = document.createElement("small");
    small.textContent = texts?.[1] ?? "";
    box.querySelector("dd").replaceChildren(texts?.[0] ?? "", small);
  }
  const engine = families && sum(families.get("servekit_engine_scrape_success") ?? []);
  note.textContent = engine ? "" : families ? "The engine reports no metrics." : "No metrics.";
  note.hidden = note.textContent === "";
}

async function follow(step, missed) {
  try {
    await step();
  } catch {
    missed();
  }
  setTimeout(follow, EVERY_MS, step, missed);
}

follow(async () => update(await ask(location.pathname, "document")), showGone);
follow(async () => {
  const text = await ask("metrics", "text");
  show(gone ? null : parse(text));
}, () => show(null));
