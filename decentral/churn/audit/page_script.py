"""How a report page looks and moves: its style, and the script that draws the records as SVG.

    axis, faults     a tick or a bar per fault, coloured by what it strikes
    rounds           one row per lineage; undone ones hollow; red where the round was short of hands
    lanes            one per peer: up, starting, frozen, cut off, down; marks where faults hit it

Text goes into the page only as text nodes, never as markup.
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --dim: #6e7781; --line: #d8dee4;
  --soft: #f6f8fa; --good: #1a7f37; --bad: #cf222e; --up: #7fc495; --starting: #d4c35a;
  --frozen: #6f9fd8; --cut: #b18ad6; --struck: #e0915a; --left: #c9d1d9;
  --curve: #0969da; --tip: #24292f; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --ink: #e6edf3; --dim: #8b949e;
  --line: #30363d; --soft: #161b22; --good: #3fb950; --bad: #f85149; --up: #2e7d4a;
  --starting: #8f7f23; --frozen: #31609c; --cut: #6f4a9c; --struck: #9a5a2a; --left: #30363d;
  --curve: #58a6ff; --tip: #30363d; } }
body { font: 14px/1.45 system-ui, sans-serif; margin: 20px auto; max-width: 1500px;
  padding: 0 18px; background: var(--paper); color: var(--ink); }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 26px 0 8px; }
p { margin: 4px 0; } .dim { color: var(--dim); }
.good { color: var(--good); } .bad { color: var(--bad); }
#facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 8px;
  margin: 14px 0; }
#facts div { background: var(--soft); border: 1px solid var(--line); border-radius: 6px;
  padding: 7px 10px; } #facts b { display: block; font-size: 18px; }
#facts span { color: var(--dim); font-size: 12px; }
#wrong { max-height: 320px; overflow-y: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: 3px 10px; border-bottom: 1px solid var(--line);
  vertical-align: top; } th { color: var(--dim); font-weight: 500; }
tr[data-at] { cursor: pointer; } tr[data-at]:hover { background: var(--soft); }
#bar { margin: 6px 0; } button { min-width: 30px; margin-right: 4px; font: inherit;
  color: inherit; background: var(--soft); border: 1px solid var(--line); border-radius: 5px; }
#legend span { margin-right: 14px; white-space: nowrap; }
#legend i { display: inline-block; width: 14px; height: 11px; margin-right: 4px;
  border-radius: 2px; }
#view { display: flex; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
#names { flex: none; width: 96px; background: var(--soft); }
#time { overflow-x: auto; flex: 1; cursor: grab; } svg { display: block; }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); pointer-events: none; }
.up { fill: var(--up); } .starting { fill: var(--starting); } .frozen { fill: var(--frozen); }
.struck { fill: var(--struck); } .cut { fill: var(--cut); } .left { fill: var(--left); }
.down { fill: transparent; }
.grid { stroke: var(--line); } .curve { fill: none; stroke: var(--curve); stroke-width: 1.5; }
.area { fill: var(--curve); opacity: 0.15; } .bin { fill: var(--curve); }
.calm { stroke: var(--good); stroke-dasharray: 5 4; }
#charts { display: grid; grid-template-columns: 2fr 1fr; gap: 22px; }
#charts > div { min-width: 0; }
@media (max-width: 900px) { #charts { grid-template-columns: 1fr; } }
#tip { position: fixed; display: none; max-width: 460px; padding: 5px 8px; z-index: 9;
  background: var(--tip); color: #fff; border-radius: 4px; white-space: pre-line;
  pointer-events: none; font-size: 12px; }
"""

SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = id => document.getElementById(id);
const names = get("names"), time = get("time"), tip = get("tip");
const LANE = 17, ROW = 18, TOP = 20, MOST = 200;
const hue = index => (212 + index * 137.5) % 360;
const KINDS = [...new Set(data.faults.map(one => one[2]))].sort();
const colour = kind => "hsl(" + (KINDS.indexOf(kind) * 360 / KINDS.length + 8) % 360 + ",70%,52%)";
const at = seconds => "t = " + seconds.toFixed(2) + " s\n";

function add(parent, name, attributes, says) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (says) made.says = says;
  return parent.appendChild(made);
}
function word(parent, x, y, says, anchor, fill) {
  const made = add(parent, "text", { x: x, y: y, "text-anchor": anchor || "start" });
  if (fill) made.style.fill = fill;
  made.textContent = says;
}
function step(least, choices) { return choices.find(one => one >= least) || choices.at(-1); }
const NICE = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200];

function draw(scale) {
  const lanes = Object.entries(data.lanes), rows = data.lineages.length;
  const wrongs = data.violations.filter(one => one[0] !== null);
  const faults = TOP, rounds = faults + ROW, top = rounds + rows * ROW + 6;
  const width = Math.ceil(data.ends * scale) + 20, height = top + lanes.length * LANE + 6;
  const side = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const svg = side.cloneNode();
  side.setAttribute("width", 96); side.setAttribute("height", height);
  svg.setAttribute("width", width); svg.setAttribute("height", height);
  word(side, 6, 13, "seconds"); word(side, 6, faults + 13, "faults");
  data.lineages.forEach((one, number) =>
    word(side, 6, rounds + number * ROW + 13, "rounds " + one[0].slice(0, 7)));
  const every = step(70 / scale, NICE);
  for (let s = 0; s <= data.ends; s += every) {
    add(svg, "line", { x1: s * scale, x2: s * scale, y1: 16, y2: height, class: "grid" });
    word(svg, s * scale + 2, 13, String(s));
  }
  const index = {};
  lanes.forEach(([name, lane], number) => {
    const y = top + number * LANE;
    index[name] = y;
    word(side, 6, y + 12, name);
    lane.forEach(([from, state], place) => {
      const to = place + 1 < lane.length ? lane[place + 1][0] : data.ends;
      const long = Math.max(0.5, (to - from) * scale);
      if (state === "down") add(svg, "line", { x1: from * scale, x2: from * scale + long,
        y1: y + 8, y2: y + 8, class: "grid", "stroke-dasharray": "2 3" });
      add(svg, "rect", { x: from * scale, y: y + 2, width: long, height: LANE - 4, class: state,
        "pointer-events": "all" },
        name + ": " + state + "\n" + from.toFixed(2) + " – " + to.toFixed(2) + " s");
    });
  });
  for (const [from, to, line, first, last, hands, undone] of data.rounds) {
    const many = last > first ? "Rounds " + first + " to " + last : "Round " + first;
    const tint = "hsl(" + hue(line) + ",60%,50%)";
    add(svg, "rect", { x: from * scale - 0.5, y: rounds + line * ROW + 3,
      width: Math.max(1.2, (to - from) * scale), height: ROW - 6,
      fill: undone ? "none" : tint, stroke: undone ? tint : "none" },
      at(from) + many + " of lineage " + data.lineages[line][0] + "\n"
      + (last > first ? "at least " : "") + hands + " contribution(s)"
      + (undone ? "\nnot in the final history" : ""));
  }
  for (const [when, says] of data.rollbacks)
    add(svg, "path", { d: "M" + when * scale + " " + rounds + "l5 -7h-10z", fill: "#d29922" },
      at(when) + "Rollback\n" + says);
  for (const [from, to, kind, label, detail, recovery, hit] of data.faults) {
    const says = at(from) + label + (detail ? "\n" + detail : "")
      + (to > from ? "\nfor " + (to - from).toFixed(1) + " s" : "")
      + (recovery === null ? "" : "\nrecovery " + recovery.toFixed(2) + " s");
    const x = from * scale, long = Math.max(3, (to - from) * scale);
    if (to > from) add(svg, "rect", { x: x, y: faults + 4, width: long, height: ROW - 8,
      fill: colour(kind), "fill-opacity": 0.35 }, says);
    add(svg, "rect", { x: x - 1, y: faults + 2, width: 3, height: ROW - 4,
      fill: colour(kind) }, says);
    for (const name of hit) if (name in index)
      add(svg, "circle", { cx: x, cy: index[name] + 8, r: 3.6, fill: colour(kind),
        stroke: "var(--paper)" }, says);
  }
  for (const [when, which, says, peer] of wrongs) {
    const x = when * scale;
    add(svg, "line", { x1: x, x2: x, y1: 14, y2: height, stroke: "var(--bad)",
      "stroke-width": 1.5, "pointer-events": "none" });
    add(svg, "rect", { x: x - 4, y: 2, width: 8, height: 14, fill: "var(--bad)" },
      at(when) + which + ": " + says);
    if (peer in index) add(svg, "rect", { x: x - 4, y: index[peer] + 4, width: 8, height: 8,
      fill: "var(--bad)" }, at(when) + which + ": " + says);
  }
  names.replaceChildren(side);
  time.replaceChildren(svg);
}

let scale = 1;
const fit = () => Math.max(0.02, (time.clientWidth - 22) / data.ends);
function zoom(to, seconds, x) {
  scale = Math.min(MOST, Math.max(fit(), to), 120000 / data.ends + fit());
  draw(scale);
  time.scrollLeft = seconds * scale - x;
}
function middle(factor) {
  const x = time.clientWidth / 2;
  zoom(scale * factor, (time.scrollLeft + x) / scale, x);
}
get("in").onclick = () => middle(1.8);
get("out").onclick = () => middle(1 / 1.8);
get("fit").onclick = () => zoom(0, 0, 0);
time.addEventListener("wheel", event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  const x = event.clientX - time.getBoundingClientRect().left;
  zoom(scale * Math.exp(-event.deltaY / 400), (time.scrollLeft + x) / scale, x);
}, { passive: false });
time.addEventListener("pointermove", event => {
  if (event.buttons) time.scrollLeft -= event.movementX;
});
document.addEventListener("pointermove", event => {
  const says = event.target.says;
  tip.style.display = says && !event.buttons ? "block" : "none";
  tip.textContent = says || "";
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
});
for (const row of document.querySelectorAll("tr[data-at]"))
  row.onclick = () => {
    zoom(Math.max(scale, 25), Number(row.dataset.at), time.clientWidth / 2);
    time.scrollIntoView({ block: "nearest" });
  };
function explain(tint, says) {
  const item = get("legend").appendChild(document.createElement("span"));
  item.appendChild(document.createElement("i")).style.background = tint;
  item.append(says);
}
for (const state of ["up", "starting", "frozen", "struck", "cut", "left"])
  explain("var(--" + state + ")", state === "cut" ? "cut off from most" : state);
for (const kind of KINDS) explain(colour(kind), kind);
explain("var(--bad)", "violation");

// A chart's frame: [svg, x of a value, y of a value].
function frame(id, most, highest, unit, names) {
  const width = get(id).clientWidth, height = 190, left = 52, low = height - 22;
  const svg = add(get(id), "svg", { width: width, height: height });
  const x = value => left + value / most * (width - left - 10);
  const y = value => low - value / (highest || 1) * (low - 12);
  for (let part = 0; part <= 4; part++) {
    const value = highest * part / 4;
    add(svg, "line", { x1: left, x2: width - 10, y1: y(value), y2: y(value), class: "grid" });
    word(svg, left - 5, y(value) + 4, value >= 10 || !value ? value.toFixed(0)
      : value.toPrecision(2), "end");
  }
  const every = step(most / 6, [0.1, 0.2, ...NICE]);
  for (let value = 0; value <= most * 1.001; value += every)
    word(svg, x(value), height - 6, Number(value.toFixed(2)) + (names || ""), "middle");
  word(svg, left, 9, unit);
  return [svg, x, y];
}
function curve() {
  const [begin, bin, calm, values] = data.goodput, ends = Math.max(data.ends, 1);
  const highest = Math.max(calm || 0, ...values) * 1.08 || 1;
  const [svg, x, y] = frame("curve", ends, highest, "useful samples per second", " s");
  const points = values.map((one, number) => x(Math.min(ends, begin + (number + 0.5) * bin))
    + "," + y(one));
  if (points.length) {
    add(svg, "polygon", { class: "area", points: x(begin) + "," + y(0) + " " + points.join(" ")
      + " " + x(Math.min(ends, begin + values.length * bin)) + "," + y(0) });
    add(svg, "polyline", { class: "curve", points: points.join(" ") });
  }
  if (calm) {
    add(svg, "line", { class: "calm", x1: x(0), x2: x(ends), y1: y(calm), y2: y(calm) });
    word(svg, x(ends), y(calm) - 4, "undisturbed", "end", "var(--good)");
  }
  for (const one of data.faults) add(svg, "line", { x1: x(one[0]), x2: x(one[0]), y1: y(0) + 1,
    y2: y(0) + 6, stroke: colour(one[2]) });
  values.forEach((one, number) => add(svg, "rect", { x: x(begin + number * bin), y: 12,
    width: Math.max(1, x(bin) - x(0)), height: y(0) - 12, fill: "transparent" },
    at(begin + number * bin) + one.toFixed(1) + " useful samples per second"));
}
function histogram() {
  const values = data.recoveries;
  if (!values.length) return get("recovery").append("No fault left a quorum to recover.");
  const most = Math.max(...values, 0.5);
  const size = step(most / 16, [0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10]);
  const bins = Array(Math.floor(most / size) + 1).fill(0);
  for (const one of values) bins[Math.floor(one / size)]++;
  const [svg, x, y] = frame("recovery", bins.length * size, Math.max(...bins), "faults", " s");
  bins.forEach((many, number) => add(svg, "rect", { class: "bin", x: x(number * size) + 1,
    y: y(many), width: Math.max(1, x(size) - x(0) - 2), height: y(0) - y(many) },
    many + " of " + values.length + " faults: " + (number * size).toFixed(2) + " to "
    + ((number + 1) * size).toFixed(2) + " s"));
}
curve();
histogram();
const shown = location.hash.match(/^#([\d.]+)-([\d.]+)$/);  // report.html#120-180
if (shown) zoom(time.clientWidth / (shown[2] - shown[1]), Number(shown[1]), 0);
else zoom(0, 0, 0);
"""
