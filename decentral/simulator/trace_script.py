"""How a trace page looks and moves: its style, and the script that draws the records as SVG.

    axis
    violations       red, with their text
    faults           what the scenario did: a bar from its beginning to its end
    rounds, views    what was committed (rounds: a row per lineage and tag), with a line
                     through the lanes that are of that lineage then
    lanes            one per peer: colour for state, hue for lineage, ticks for reported faults

Text goes into the page only as text nodes, never as markup.
"""

STYLE = """
html { overflow-y: scroll; }
body { font: 13px system-ui, sans-serif; margin: 14px; color: #212529; }
h1 { font-size: 20px; margin: 0 0 6px; } h2 { font-size: 15px; margin: 18px 0 6px; }
p { margin: 3px 0; } code { background: #f1f3f5; padding: 1px 4px; }
.good { color: #2b8a3e; } .bad { color: #c92a2a; }
ul.bad { max-height: 90px; overflow-y: auto; margin: 4px 0; }
.hint { color: #868e96; margin: 0 10px; }
#bar { margin: 8px 0; } #bar button { min-width: 28px; margin-right: 4px; }
#legend { display: block; margin-top: 5px; line-height: 20px; }
#legend span { margin-right: 12px; white-space: nowrap; }
#legend i { display: inline-block; width: 14px; height: 11px; margin-right: 4px; }
#legend i.mark { width: 8px; height: 8px; border-radius: 4px; }
#view { display: flex; border: 1px solid #ced4da; }
#names { flex: none; width: 78px; background: #f8f9fa; }
#time { overflow-x: auto; flex: 1; cursor: grab; } svg { display: block; }
svg text { font: 11px system-ui, sans-serif; pointer-events: none; }
#tip { position: fixed; display: none; max-width: 460px; padding: 4px 7px; background: #212529;
  color: #fff; border-radius: 3px; white-space: pre-line; pointer-events: none; }
table { border-collapse: collapse; } th { text-align: left; }
td, th { padding: 1px 12px 1px 0; border-bottom: 1px solid #f1f3f5; vertical-align: top; }
th, td:last-child { white-space: nowrap; }
tr.view td, tr.pause td { color: #868e96; } tr.rollback td { color: #c92a2a; }
tr[data-at] { cursor: pointer; }
"""

SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const names = document.getElementById("names"), time = document.getElementById("time");
const tip = document.getElementById("tip"), legend = document.getElementById("legend");
const LANE = 17, ROW = 16, LEFT = 78, MOST = 80, WRONG = 5;
const order = data.lineages.map(one => one[0]);
const hue = lineage => (212 + order.indexOf(lineage) * 137.5) % 360;
const NETWORK = "#7048e8", MACHINE = "#d9480f", STILL = "#0b7285", PEOPLE = "#5c940d";
const FAULT = {
  split: NETWORK, triangle: NETWORK, "one-way": NETWORK, reset: NETWORK, storm: NETWORK,
  "half-open": NETWORK, pause: STILL, suspend: STILL, clock: STILL, slow: STILL, hang: STILL,
  leave: PEOPLE, newcomer: PEOPLE, crush: PEOPLE, halt: PEOPLE, undo: PEOPLE };
const REPORT = {
  "quorum-lost": "#f08c00", "quorum-regained": "#37b24d", fork: "#c2255c", merge: "#0ca678",
  divergence: "#f03e3e", "peer-died": "#212529" };

function paint(state, lineage) {
  if (state === "coordinator") return "hsl(" + hue(lineage) + ",75%,36%)";
  if (state === "member") return "hsl(" + hue(lineage) + ",65%,74%)";
  return state === "outside" ? "#dee2e6" : state === "frozen" ? "url(#hatch)" : "none";
}
function add(parent, name, attributes, says) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (says) made.says = says;
  return parent.appendChild(made);
}
function word(parent, x, y, says, fill, anchor) {
  const made = add(parent, "text", { x: x, y: y, fill: fill, "text-anchor": anchor || "start" });
  made.textContent = says;
}
const at = seconds => "t = " + seconds.toFixed(2) + " s\n";
const cut = (says, most) => says.length <= most ? says : says.slice(0, most - 1) + "…";
const wide = says => says.length * 6.3 + 8;

// Labels that would overlap go into the next row. Those of moments end at their mark where
// they would leave the page.
function rows(items, scale, width) {
  const ends = [];
  return items.map(item => {
    const long = Math.max((item.to - item.from) * scale, wide(item.label));
    const leaves = item.from === item.to && item.from * scale + long > width;
    const x = item.from * scale - (leaves ? long : 0);
    let row = ends.findIndex(end => end <= x);
    if (row < 0) row = ends.push(0) - 1;
    ends[row] = x + long + 3;
    return row;
  });
}

const strikes = data.strikes.map(one => ({ from: one[0], to: one[1], kind: one[2],
  says: (one[2] + " " + one[3]).trim(), label: "" }));
const broken = data.violations.map(one => ({ from: one[0], to: one[0], label: one[1] }));

function draw(scale) {
  const width = Math.ceil(data.ends * scale) + 20;
  for (const one of strikes) {
    const room = Math.floor(((one.to - one.from) * scale - 8) / 6.3);
    one.label = cut(one.says, Math.max(16, room));
  }
  const placed = rows(strikes, scale, width);
  const wrong = rows(broken, scale, width).map(row => Math.min(row, WRONG));
  const wrongs = 20, faults = wrongs + (wrong.length ? Math.max(...wrong) + 1 : 0) * ROW;
  const rounds = faults + (placed.length ? Math.max(...placed) + 1 : 0) * ROW + 6;
  const isView = one => one[3] === "view" || one[3] === "pause";
  const trainedBy = one => one[1] + " " + one[7];
  const trained = [...new Set(data.commits.filter(one => !isView(one)).map(trainedBy))].sort(
    (a, b) => order.indexOf(a.split(" ")[0]) - order.indexOf(b.split(" ")[0]));
  const views = rounds + Math.max(1, trained.length) * ROW, top = views + ROW + 4;
  const lanes = Object.entries(data.lanes), marks = [], height = top + lanes.length * LANE + 6;
  const side = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const svg = side.cloneNode();
  side.setAttribute("width", LEFT); side.setAttribute("height", height);
  svg.setAttribute("width", width); svg.setAttribute("height", height);
  const hatch = add(add(svg, "defs", {}), "pattern", { id: "hatch", width: 6, height: 6,
    patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  add(hatch, "rect", { width: 6, height: 6, fill: "#868e96" });
  add(hatch, "rect", { width: 3, height: 6, fill: "#495057" });

  for (const [y, says] of [[0, "seconds"], [faults, strikes.length ? "faults" : ""],
    [wrongs, broken.length ? "violations" : ""], [views, "views"],
    ...trained.map((one, at) => [rounds + at * ROW, "rounds " + cut(one.split(" ")[1], 5)])])
    word(side, 6, y + 12, says, says === "violations" ? "#c92a2a" : "#495057");
  if (data.heals) {
    const [from, to] = data.heals;
    add(svg, "rect", { x: from * scale, y: 0, width: Math.max(2, (to - from) * scale),
      height: height, fill: "#d3f9d8" }, "Healing\nfrom " + from.toFixed(1) + " s, when all faults "
      + "ended, until " + to.toFixed(1) + " s, when the mesh was whole");
    add(svg, "line", { x1: from * scale, x2: from * scale, y1: 0, y2: height, stroke: "#2b8a3e" });
    word(svg, from * scale + 3, 12, "faults end, healing", "#2b8a3e");
  }
  const every = [0.5, 1, 2, 5, 10, 30, 60, 120].find(one => one * scale >= 60) || 300;
  for (let s = 0; s <= data.ends; s += every) {
    add(svg, "line", { x1: s * scale, x2: s * scale, y1: 14, y2: height, stroke: "#f1f3f5" });
    if (!data.heals || Math.abs(s - data.heals[0] - 55 / scale) * scale > 75)
      word(svg, s * scale + 2, 12, String(s), "#868e96");
  }

  data.commits.forEach((one, number) => {
    const [when, lineage, slot, kind, label, says, by] = one, x = when * scale;
    const gray = isView(one), rest = data.commits.slice(number + 1);
    const next = rest.find(other =>
      isView(other) === gray && (gray || trainedBy(other) === trainedBy(one)));
    const y = gray ? views : rounds + trained.indexOf(trainedBy(one)) * ROW;
    const colour = kind === "rollback" ? "#c92a2a" : gray
      ? "#868e96" : paint("coordinator", lineage);
    const text = at(when) + says + "\nslot " + slot + " of lineage " + lineage.slice(0, 8)
      + ", first known to " + by;
    const path = lanes.map(([, lane], at) => {
      const then = lane.findLast(standing => standing[0] <= when);
      return then && then[2] === lineage ? "M" + x + " " + (top + at * LANE - 1) + "v" + LANE : "";
    });
    marks.push({ d: path.join(""), stroke: colour, "stroke-opacity": gray ? 0.5 : 0.8,
      "stroke-width": gray ? 1 : 1.5, "stroke-dasharray": gray ? "2 3" : "none",
      "pointer-events": "none" });
    add(svg, "rect", { x: x - 1.5, y: y + 1, width: 3, height: ROW - 2, fill: colour }, text);
    // As much of the label as there is room for before the next mark.
    const room = Math.floor(((next ? next[0] : data.ends) * scale - x - 6) / 6.3);
    if (room >= 3) word(svg, x + 3, y + 12, cut(label, room), colour);
  });

  lanes.forEach(([name, lane], number) => {
    const y = top + number * LANE;
    word(side, 6, y + 12, name, "#212529");
    lane.forEach(([from, state, lineage, says], index) => {
      const to = index + 1 < lane.length ? lane[index + 1][0] : data.ends;
      const text = name + ": " + state + (says ? " (" + says + ")" : "") + "\n"
        + from.toFixed(2) + " – " + to.toFixed(2) + " s"
        + (lineage ? "\nlineage " + lineage.slice(0, 8) : "");
      const x = from * scale, long = Math.max(0.5, (to - from) * scale);
      if (state === "down")
        add(svg, "line", { x1: x, x2: x + long, y1: y + 7.5, y2: y + 7.5, stroke: "#212529",
          "stroke-dasharray": "2 2" });
      add(svg, "rect", { x: x, y: y + 1, width: long, height: LANE - 4, "pointer-events": "all",
        fill: paint(state, lineage), "fill-opacity": 0.9 }, text);
    });
  });
  for (const attributes of marks) add(svg, "path", attributes);
  const index = Object.fromEntries(lanes.map(([name], number) => [name, number]));
  for (const [when, name, kind, says] of data.reports) {
    const y = top + index[name] * LANE, known = REPORT[kind];
    const size = kind in REPORT && kind !== "peer-died" ? 4 : 2.2;
    add(svg, "circle", { cx: when * scale, cy: y + (size > 3 ? 7.5 : 11), r: size,
      fill: known || "#868e96", stroke: "#fff", "stroke-width": size > 3 ? 1 : 0.4 },
      at(when) + name + " reports " + kind + ": " + says);
  }

  strikes.forEach((one, number) => {
    const x = one.from * scale, y = faults + placed[number] * ROW;
    const colour = FAULT[one.kind] || MACHINE;
    const long = Math.max(3, (one.to - one.from) * scale);
    const lasts = one.to > one.from ? "\nfor " + (one.to - one.from).toFixed(1) + " s at most" : "";
    add(svg, "rect", { x: x, y: y + 1, width: Math.max(long, wide(one.label)), height: ROW - 3,
      fill: colour, "fill-opacity": 0.13 }, at(one.from) + one.says + lasts);
    add(svg, "rect", { x: x, y: y + 1, width: long, height: ROW - 3, fill: colour,
      "fill-opacity": 0.35, "pointer-events": "none" });
    word(svg, x + 3, y + 12, one.label, colour);
  });
  broken.forEach((one, number) => {
    const x = one.from * scale, y = wrongs + wrong[number] * ROW;
    add(svg, "line", { x1: x, x2: x, y1: y, y2: height, stroke: "#f03e3e", "stroke-width": 2 });
    const right = x + wide(one.label) > width;
    add(svg, "rect", { x: x - 4, y: y, width: 8, height: ROW - 2, fill: "#f03e3e" },
      at(one.from) + one.label);
    if (wrong[number] < WRONG)
      word(svg, right ? x - 6 : x + 6, y + 12, one.label, "#c92a2a", right ? "end" : "start");
  });
  names.replaceChildren(side);
  time.replaceChildren(svg);
}

let scale = 1;
const fit = () => Math.max(0.2, (time.clientWidth - 22) / data.ends);
function zoom(to, seconds, x) {
  scale = Math.min(MOST, Math.max(fit(), to));
  draw(scale);
  time.scrollLeft = seconds * scale - x;
}
function middle(factor) {
  const x = time.clientWidth / 2;
  zoom(scale * factor, (time.scrollLeft + x) / scale, x);
}
document.getElementById("in").onclick = () => middle(1.6);
document.getElementById("out").onclick = () => middle(1 / 1.6);
document.getElementById("fit").onclick = () => zoom(0, 0, 0);
time.addEventListener("wheel", event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  const x = event.clientX - time.getBoundingClientRect().left;
  zoom(scale * Math.exp(-event.deltaY / 400), (time.scrollLeft + x) / scale, x);
}, { passive: false });
time.addEventListener("pointermove", event => {
  if (event.buttons) time.scrollLeft -= event.movementX;
  const says = event.target.says;
  tip.style.display = says && !event.buttons ? "block" : "none";
  tip.textContent = says || "";
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
});
time.addEventListener("pointerleave", () => tip.style.display = "none");
for (const row of document.querySelectorAll("tr[data-at]"))
  row.onclick = () => {
    zoom(Math.max(scale, 12), Number(row.dataset.at), time.clientWidth / 2);
    time.scrollIntoView({ block: "nearest" });
  };

function explain(colour, says, mark) {
  const item = legend.appendChild(document.createElement("span"));
  const swatch = item.appendChild(document.createElement("i"));
  swatch.style.background = colour;
  if (mark) swatch.className = "mark";
  item.append(says);
}
for (const [lineage, parent] of data.lineages) {
  explain(paint("coordinator", lineage), "coordinator");
  explain(paint("member", lineage), "member of " + lineage.slice(0, 8)
    + (parent ? ", a fork of " + parent.slice(0, 8) : ""));
}
explain("#dee2e6", "outside");
explain("repeating-linear-gradient(45deg,#868e96 0 3px,#495057 3px 6px)", "frozen");
explain("repeating-linear-gradient(90deg,#212529 0 2px,#fff 2px 4px) 0 5px/14px 1px no-repeat",
  "down");
for (const kind in REPORT) explain(REPORT[kind], kind, true);
explain("#868e96", "other reports", true);
const shown = location.hash.match(/^#([\d.]+)-([\d.]+)$/);  // page.html#120-180
if (shown) zoom(time.clientWidth / (shown[2] - shown[1]), Number(shown[1]), 0);
else zoom(0, 0, 0);
"""
