"use strict";
// Draws the report from the JSON in the page. The state is the part of the address after "#".
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const NAMES = { accuracy: "accuracy (%)", auc: "AUC (%)", f1: "F1 (%)" };
const TITLES = { none: "none", cdep: "CDEP", rrr: "RRR", eg: "EG" };
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
const MARKS = { none: "x", cdep: "circle", rrr: "square", eg: "triangle" };
const colour = (penalty) => `var(--${penalty in TITLES ? penalty : "other"})`;
const byId = new Map(data.runs.map((run) => [run.id, run]));
const unique = (list) => [...new Set(list)];
const state = { dataset: "", penalty: "", metric: "accuracy", compare: "", results: "", runs: "" };

// An element with attributes, event handlers ("onclick") and children; text is never parsed.
function el(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect"].includes(name);
  const node = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

const short = (value, digits = 3) =>
  value === null || value === undefined ? "–" : String(+value.toPrecision(digits));
const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1));
function spread(score) {
  if (!score) return "–";
  return percent(score[0]) + (score[1] === null ? "" : ` ± ${percent(score[1])}`);
}
const bytes = (value) => (value ? `${(value / 2 ** 20).toFixed(0)} MiB` : "–");
const shown = (one) =>
  (!state.dataset || one.dataset === state.dataset) &&
  (!state.penalty || one.penalty === state.penalty);
const cells = () => data.cells.filter(shown);
const datasets = () => unique(cells().map((cell) => cell.dataset));
const splitsOf = (list) =>
  unique(
    list
      .flatMap((one) => Object.keys(one.scores))
      .filter((key) => key.endsWith("/" + state.metric))
      .map((key) => key.split("/")[0]),
  ).filter((split) => split !== "train");
// The commands of a figure or table, and the settings that all runs of its data sets have in common.
function commands(lines, sets = []) {
  const shared = sets.map((name) => {
    const said = Object.entries(data.shared[name] ?? {}).map(([k, v]) => `${k}: ${written(v)}`);
    return el(
      "details",
      {},
      el("summary", {}, `Settings that all runs of ${name} share`),
      el("pre", {}, said.sort().join("\n")),
    );
  });
  return el(
    "details",
    {},
    el("summary", {}, "Commands and settings"),
    el("pre", {}, unique(lines).join("\n")),
    shared,
  );
}

function readState() {
  for (const key of Object.keys(state)) state[key] = key === "metric" ? "accuracy" : "";
  for (const [key, value] of new URLSearchParams(location.hash.slice(1)))
    if (key in state) state[key] = value;
  for (const [key, known] of [
    ["dataset", (v) => data.cells.some((c) => c.dataset === v)],
    ["penalty", (v) => data.cells.some((c) => c.penalty === v)],
    ["metric", (v) => v in NAMES],
  ])
    if (!known(state[key])) state[key] = key === "metric" ? "accuracy" : "";
}
function setState(changes) {
  Object.assign(state, changes);
  const said = Object.entries(state).filter(
    ([key, value]) => value && !(key === "metric" && value === "accuracy"),
  );
  history.replaceState(null, "", "#" + new URLSearchParams(said).toString());
  render();
}

// A table whose heads sort it. Columns: title, value (for sorting), text, number, wrap.
function table(name, columns, rows, rowClass = () => null, tall = false) {
  const [by, order] = (state[name] || "").split(":");
  const chosen = columns.findIndex((column) => column.title === by);
  if (chosen >= 0) {
    const value = columns[chosen].value,
      sign = order === "desc" ? -1 : 1;
    const missing = (v) => v === null || v === undefined;
    rows = [...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
    });
  }
  const head = columns.map((column, index) => {
    const direction = index === chosen ? (order === "desc" ? "descending" : "ascending") : "none";
    const next = direction === "ascending" ? "desc" : "asc";
    const click = () => {
      setState({ [name]: `${column.title}:${next}` });
      document.querySelector(`#${name} th:nth-child(${index + 1}) button`).focus();
    };
    return el(
      "th",
      { scope: "col", class: column.number ? "n" : null, "aria-sort": direction },
      column.value ? el("button", { type: "button", onclick: click }, column.title) : column.title,
    );
  });
  const body = rows.map((row) =>
    el(
      "tr",
      { class: rowClass(row) },
      columns.map((column) =>
        el("td", { class: column.number ? "n" : column.wrap ? "wrap" : null }, column.text(row)),
      ),
    ),
  );
  return el(
    "div",
    {
      class: "scroll" + (tall ? " tall" : ""),
      tabindex: 0,
      role: "region",
      "aria-label": `${name}, table`,
    },
    el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)),
  );
}

// What all runs of a data set have in common and no label says.
function common(dataset) {
  const said = data.common[dataset] ?? [];
  return said.length ? ` All runs: ${said.join(", ")}.` : "";
}
function papers() {
  const sets = (t) => unique(t.commands.map((c) => c.match(/dataset=(\S+)/)?.[1]).filter(Boolean));
  const list = data.tables.filter((t) => !state.dataset || sets(t).includes(state.dataset));
  if (!list.length)
    return [el("p", { class: "soft" }, "None of the runs shown belongs to a table of the papers.")];
  return list.flatMap((t) => [
    el("h3", {}, t.title),
    el(
      "div",
      { class: "scroll paper", tabindex: 0, role: "region", "aria-label": t.title },
      el(
        "table",
        {},
        el("thead", {}, el("tr", {}, t.head.map((text) => el("th", { scope: "col" }, text)))),
        el(
          "tbody",
          {},
          t.body.map((row) =>
            el("tr", {}, row.map(([text, bold]) =>
                el("td", { class: text.length > 22 ? "long" : null }, bold ? el("b", {}, text) : text),
              ),
            ),
          ),
        ),
      ),
    ),
    el(
      "details",
      { class: "notes" },
      el("summary", {}, "How these numbers came about"),
      el("ul", {}, t.notes.map((note) => el("li", {}, note.replaceAll("`", "")))),
    ),
    commands(t.commands, sets(t)),
  ]);
}

function results() {
  const parts = [];
  for (const dataset of datasets()) {
    const rows = cells().filter((cell) => cell.dataset === dataset),
      splits = splitsOf(rows);
    const columns = [
      {
        title: "penalty",
        value: (c) => c.label,
        text: (c) => c.label + (c.quick ? " (quick)" : ""),
      },
      {
        title: "λ",
        number: true,
        value: (c) => c.strength,
        text: (c) => (c.penalty === "none" ? "–" : short(c.strength, 6)),
      },
      { title: "n", number: true, value: (c) => c.seeds.length, text: (c) => c.seeds.length },
      ...splits.map((split) => ({
        title: split,
        number: true,
        value: (c) => c.scores[`${split}/${state.metric}`]?.[0],
        text: (c) => spread(c.scores[`${split}/${state.metric}`]),
      })),
      {
        title: "s / epoch",
        number: true,
        value: (c) => c.seconds_per_epoch,
        text: (c) => short(c.seconds_per_epoch),
      },
      {
        title: "λ chosen",
        value: (c) => (c.chosen ? 0 : 1),
        text: (c) => (c.penalty === "none" ? "" : c.several_strengths ? (c.chosen ? "✓" : "") : "only one tried"),
      },
    ];
    parts.push(
      el("h3", {}, dataset),
      el(
        "p",
        { class: "soft" },
        `${NAMES[state.metric]}, mean ± standard deviation over n seeds. λ is chosen by ${unique(rows.map((c) => c.selection_metric)).join(", ")} on ${unique(rows.map((c) => c.selection_split)).join(", ")}, never on test.${common(dataset)}`,
      ),
      table("results", columns, rows, (c) => (c.chosen ? "chosen" : null)),
      commands(rows.map((c) => c.command), [dataset]),
    );
  }
  return parts;
}

function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-6; t += step)
    found.push(+t.toPrecision(10));
  return found;
}
function mark(kind, x, y, paint, filled, r = 4) {
  const style = { fill: filled ? paint : "var(--paper)", stroke: paint, "stroke-width": 1.75 };
  if (kind === "circle") return el("circle", { cx: x, cy: y, r, ...style });
  const d =
    {
      x: `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`,
      square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
      triangle: `M${x} ${y - r - 1}l${r + 1} ${2 * r + 1}h${-2 * r - 2}z`,
    }[kind] ?? `M${x} ${y - r - 1}l${r + 1} ${r + 1}l${-r - 1} ${r + 1}l${-r - 1} ${-r - 1}z`;
  return el("path", { d, ...style });
}

// Lines with bands. A series: name, penalty, dash, flat (a level across), points {x, y, sd, text, chosen}.
function chart({ title, xLabel, yLabel, series, log }) {
  const width = Math.max(280, Math.min(520, document.body.clientWidth - 32)),
    height = 280;
  const box = { left: 66, right: width - 12, top: 26, bottom: height - 42 };
  const every = series.flatMap((s) => s.points);
  const place = log ? Math.log10 : (v) => v;
  const xs = unique(series.filter((s) => !s.flat).flatMap((s) => s.points.map((p) => p.x))).sort(
    (a, b) => a - b,
  );
  let [x0, x1] = xs.length ? [place(xs[0]), place(xs.at(-1))] : [0, 1];
  if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  const pad = (x1 - x0) * 0.04;
  let y0 = Math.min(...every.map((p) => p.y - (p.sd ?? 0))),
    y1 = Math.max(...every.map((p) => p.y + (p.sd ?? 0)));
  if (y0 === y1) [y0, y1] = [y0 - 1, y1 + 1];
  [y0, y1] = [y0 - (y1 - y0) * 0.06, y1 + (y1 - y0) * 0.06];
  const X = (v) =>
    box.left + ((place(v) - x0 + pad) / (x1 - x0 + 2 * pad)) * (box.right - box.left);
  const Y = (v) => box.bottom - ((v - y0) / (y1 - y0)) * (box.bottom - box.top);
  const svg = el("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    tabindex: 0,
    "aria-label": `${title}. ${yLabel} against ${xLabel}. Arrow keys read the values; the table below holds them all.`,
  });
  svg.append(el("text", { class: "title", x: box.left, y: 14 }, title));
  for (const t of ticks(y0, y1))
    svg.append(
      el("line", { class: "axis", x1: box.left, x2: box.right, y1: Y(t), y2: Y(t) }),
      el("text", { x: box.left - 6, y: Y(t) + 4, "text-anchor": "end" }, short(t, 4)),
    );
  let last = -Infinity;
  for (const t of log ? xs : ticks(x0, x1, 6).filter(Number.isInteger)) {
    const near = X(t) - last < 34;
    svg.append(
      el("line", { class: "axis", x1: X(t), x2: X(t), y1: box.bottom, y2: box.bottom + 4 }),
    );
    if (!near) {
      svg.append(el("text", { x: X(t), y: box.bottom + 16, "text-anchor": "middle" }, short(t, 6)));
      last = X(t);
    }
  }
  svg.append(
    el("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel),
    el(
      "text",
      {
        x: 0,
        y: 0,
        transform: `translate(9 ${(box.top + box.bottom) / 2}) rotate(-90)`,
        "text-anchor": "middle",
      },
      yLabel,
    ),
  );
  const spots = [];
  for (const s of series) {
    const paint = colour(s.penalty),
      dash = s.flat ? "2 4" : DASHES[s.dash % DASHES.length];
    const points = s.flat
      ? [x0 - pad, x1 + pad].map((v) => ({ ...s.points[0], x: log ? 10 ** v : v }))
      : s.points;
    const line = (get) => points.map((p) => `${X(p.x).toFixed(1)} ${Y(get(p)).toFixed(1)}`);
    if (points.some((p) => p.sd))
      svg.append(
        el("path", {
          d: `M${line((p) => p.y + (p.sd ?? 0)).join("L")}L${line((p) => p.y - (p.sd ?? 0))
            .reverse()
            .join("L")}z`,
          fill: paint,
          "fill-opacity": 0.15,
        }),
      );
    svg.append(
      el("path", {
        d: `M${line((p) => p.y).join("L")}`,
        fill: "none",
        stroke: paint,
        "stroke-width": 1.75,
        "stroke-dasharray": dash || null,
      }),
    );
    for (const p of s.flat ? [] : points)
      svg.append(
        mark(
          MARKS[s.penalty],
          X(p.x),
          Y(p.y),
          paint,
          p.chosen || points.length > 12,
          points.length > 12 ? 1.5 : 4,
        ),
      );
    for (const p of s.flat ? [{ ...points[0], x: points[1].x }] : points)
      spots.push({ x: X(p.x), y: Y(p.y), text: `${s.name}: ${p.text}` });
  }
  const ring = el("circle", { r: 8, fill: "none", stroke: "var(--ink)", "data-focus": "" });
  svg.append(ring);
  spots.sort((a, b) => a.x - b.x);
  let at = -1;
  const show = (index) => {
    at = index;
    const spot = spots[index],
      frame = svg.getBoundingClientRect(),
      scale = frame.width / width;
    ring.setAttribute("cx", spot.x);
    ring.setAttribute("cy", spot.y);
    ring.style.opacity = 1;
    tip(spot.text, frame.left + spot.x * scale, frame.top + spot.y * scale);
  };
  const hide = () => {
    ring.style.opacity = 0;
    $("tip").hidden = true;
  };
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect(),
      scale = width / frame.width;
    const x = (event.clientX - frame.left) * scale,
      y = (event.clientY - frame.top) * scale;
    const away = spots.map((s) => Math.hypot(s.x - x, s.y - y)),
      nearest = away.indexOf(Math.min(...away));
    away[nearest] < 40 ? show(nearest) : hide();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step && spots.length) {
      event.preventDefault();
      show((at + step + spots.length) % spots.length);
    }
  });
  const legend = el(
    "ul",
    { class: "legend" },
    series.map((s) => {
      const sample = el(
        "svg",
        { viewBox: "0 0 26 12", "aria-hidden": "true" },
        el("path", {
          d: "M0 6h26",
          stroke: colour(s.penalty),
          "stroke-width": 2,
          "stroke-dasharray": s.flat ? "2 4" : DASHES[s.dash % DASHES.length] || null,
        }),
        s.flat ? null : mark(MARKS[s.penalty], 13, 6, colour(s.penalty), false),
      );
      return el("li", {}, sample, s.name);
    }),
  );
  const values = el(
    "details",
    {},
    el("summary", {}, "Values"),
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        {},
        el(
          "tbody",
          {},
          series.flatMap((s) =>
            s.points.map((p) => el("tr", {}, el("td", {}, s.name), el("td", {}, p.text))),
          ),
        ),
      ),
    ),
  );
  return el("figure", {}, svg, legend, values);
}
function tip(text, x, y) {
  const node = $("tip");
  node.textContent = text;
  node.hidden = false;
  node.style.left = `${Math.max(8, Math.min(x + 12, innerWidth - node.offsetWidth - 8))}px`;
  node.style.top = `${Math.max(8, y - node.offsetHeight - 12)}px`;
}
// Numbers the lines of each penalty, so that two of one colour differ in their dashes.
function dashes(series) {
  const used = {};
  for (const s of series) s.dash = used[s.penalty] = (used[s.penalty] ?? -1) + 1;
  return series;
}

function curves() {
  const parts = [];
  for (const dataset of datasets()) {
    const all = data.cells.filter(
      (c) => c.dataset === dataset && (shown(c) || c.penalty === "none"),
    );
    for (const split of unique(["test", ...all.map((c) => c.selection_split)])) {
      const key = `${split}/${state.metric}`,
        lines = new Map();
      for (const c of all.filter((c) => c.scores[key])) {
        const [y, sd, n] = c.scores[key],
          flat = c.penalty === "none";
        if (!flat && c.strength <= 0) continue;
        if (!lines.has(c.label))
          lines.set(c.label, { name: c.label, penalty: c.penalty, flat, points: [] });
        lines
          .get(c.label)
          .points.push({
            x: c.strength,
            y: 100 * y,
            sd: sd === null ? null : 100 * sd,
            chosen: c.chosen,
            text: `${flat ? "" : `λ = ${short(c.strength, 6)}, `}${spread([y, sd])} % (n = ${n})${c.chosen && !flat ? ", chosen" : ""}`,
          });
      }
      const series = dashes([...lines.values()]);
      if (!series.some((s) => s.points.length > 1)) continue;
      parts.push(
        el(
          "div",
          {},
          chart({
            title: `${dataset}, ${split}`,
            xLabel: "λ (strength of the penalty)",
            yLabel: NAMES[state.metric].replace(" (", " on " + split + " ("),
            series,
            log: true,
          }),
          commands(all.map((c) => c.command), [dataset]),
        ),
      );
    }
  }
  return parts.length
    ? [
        el(
          "p",
          { class: "soft" },
          "Bands: ± one standard deviation over seeds. A filled mark is the λ that the selection split chose.",
        ),
        el("div", { class: "grid" }, parts),
      ]
    : [el("p", { class: "soft" }, "No setting among those shown was run with several λ.")];
}

function training() {
  const parts = [];
  for (const dataset of datasets()) {
    const chosen = cells().filter((c) => c.dataset === dataset && c.chosen);
    const withHistory = chosen
      .map((c) => [c, c.runs.map((id) => byId.get(id).history).filter(Boolean)])
      .filter(([, h]) => h.length);
    if (!withHistory.length) continue;
    const columns = unique(withHistory.flatMap(([, h]) => h.flatMap(Object.keys)));
    for (const key of ["test/accuracy", "val/accuracy", "train/loss", "train/penalty"].filter((k) =>
      columns.includes(k),
    )) {
      const factor = key.endsWith("accuracy") ? 100 : 1;
      const series = dashes(
        withHistory
          .map(([c, histories]) => {
            const epochs = Math.max(...histories.map((h) => h[key]?.length ?? 0)),
              points = [];
            for (let e = 0; e < epochs; e++) {
              const values = histories
                .map((h) => h[key]?.[e])
                .filter((v) => v !== null && v !== undefined)
                .map((v) => v * factor);
              if (!values.length) continue;
              const y = values.reduce((a, b) => a + b) / values.length;
              const sd =
                values.length > 1
                  ? Math.sqrt(values.reduce((a, v) => a + (v - y) ** 2, 0) / (values.length - 1))
                  : null;
              points.push({
                x: e + 1,
                y,
                sd,
                text: `epoch ${e + 1}, ${short(y, 4)}${sd === null ? "" : ` ± ${short(sd, 2)}`} (n = ${values.length})`,
              });
            }
            return {
              name: c.penalty === "none" ? c.label : `${c.label}, λ = ${short(c.strength, 6)}`,
              penalty: c.penalty,
              points,
            };
          })
          .filter((s) => s.points.length && !(key === "train/penalty" && s.penalty === "none")),
      );
      if (series.length)
        parts.push(
          el(
            "div",
            {},
            chart({
              title: `${dataset}, ${key}`,
              xLabel: "epoch",
              yLabel:
                factor === 100
                  ? `${key} (%)`
                  : key === "train/loss"
                    ? "train/loss (nats)"
                    : `${key} (unit: see the penalty)`,
              series,
              log: false,
            }),
            commands(withHistory.map(([c]) => c.command), [dataset]),
          ),
        );
    }
  }
  return parts.length
    ? [
        el(
          "p",
          { class: "soft" },
          "The setting with the chosen λ of each penalty; bands: ± one standard deviation over seeds.",
        ),
        el("div", { class: "grid" }, parts),
      ]
    : [
        el(
          "p",
          { class: "soft" },
          "None of the runs shown has a history of its epochs here (an older record).",
        ),
      ];
}

function cost() {
  const parts = [];
  for (const dataset of datasets()) {
    const rows = cells().filter((c) => c.dataset === dataset && c.chosen);
    const base = data.cells.find((c) => c.dataset === dataset && c.penalty === "none");
    for (const [title, key, text] of [
      ["time, s / epoch", "seconds_per_epoch", (v) => `${short(v)} s`],
      ["peak memory", "peak_memory_bytes", bytes],
    ]) {
      const most = Math.max(...rows.map((c) => c[key] ?? 0));
      if (!most) continue;
      const kind =
        key === "seconds_per_epoch"
          ? ""
          : ` (${unique(rows.map((c) => c.memory_kind)).join(", ")})`;
      parts.push(
        el(
          "figure",
          {},
          el("h3", {}, `${dataset}: ${title}${kind}`),
          rows
            .filter((c) => c[key])
            .map((c) => {
              const sameMachine =
                base &&
                ["device", "threads"].every(
                  (k) =>
                    data.environments[base.environment][k] === data.environments[c.environment][k],
                );
              const ratio =
                sameMachine && base[key] && c !== base
                  ? `, ${(c[key] / base[key]).toFixed(1)} × none`
                  : "";
              return el(
                "div",
                { class: "barrow" },
                el("span", {}, c.label),
                el(
                  "span",
                  { class: "track" },
                  el("i", {
                    style: `width:${(62 * c[key]) / most}%;background:${colour(c.penalty)}`,
                  }),
                  text(c[key]) + ratio,
                ),
              );
            }),
          commands(rows.map((c) => c.command), [dataset]),
        ),
      );
    }
  }
  return parts.length
    ? [
        el(
          "p",
          { class: "soft" },
          "The setting with the chosen λ of each penalty. Ratios are given between runs on the same device with as many threads.",
        ),
        el("div", { class: "grid bars" }, parts),
      ]
    : [el("p", { class: "soft" }, "None of the runs shown was timed.")];
}

function examples() {
  const sets = data.examples.filter((e) => !state.dataset || e.dataset === state.dataset);
  if (!sets.length)
    return [
      el(
        "p",
        { class: "soft" },
        "No trained weights were found beside the runs shown: records alone hold none. Make the report from the folders where they were trained to see inputs, masks and where each net looks.",
      ),
    ];
  return sets.flatMap((set) => [
    el("h3", {}, set.dataset),
    ...(set.sentences ? sentences(set) : pictures(set)),
    commands(set.commands, [set.dataset]),
  ]);
}
function pictures(set) {
  return [
    el(
      "p",
      { class: "soft" },
      "|∂ log p / ∂x| of each net's prediction, brighter is more; each picture by its own maximum.",
    ),
    el(
      "div",
      {
        class: "scroll pictures",
        tabindex: 0,
        role: "region",
        "aria-label": `pictures of ${set.dataset}`,
      },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            set.columns.map((c) => el("th", { scope: "col" }, c)),
          ),
        ),
        el(
          "tbody",
          {},
          set.rows.map((row) =>
            el(
              "tr",
              {},
              row.map((p, i) =>
                el(
                  "td",
                  {},
                  el("img", { src: p.src, alt: `${set.columns[i]} ${p.caption}` }),
                  el("small", {}, p.caption),
                ),
              ),
            ),
          ),
        ),
      ),
    ),
  ];
}
// Each word on the colour of its score: blue towards positive, orange towards negative.
function sentences(set) {
  const end = Math.max(...set.sentences.flatMap((s) => s.scores.flat().map(Math.abs))) || 1;
  const paint = (score) => {
    const share = Math.min(1, Math.abs(score) / end);
    const full = score > 0 ? [86, 180, 233] : [230, 159, 0];
    return `background:rgb(${full.map((c) => Math.round(255 + share * (c - 255)))})`;
  };
  return [
    el(
      "p",
      { class: "soft" },
      `What each word contributes to the logit of positive minus that of negative (contextual decomposition): blue towards positive, orange towards negative, full colour at ${short(end)}. A frame marks what must not matter.`,
    ),
    ...set.sentences.map((s) =>
      el(
        "div",
        { class: "sentence" },
        el("h4", {}, `${s.split === "train" ? "training" : s.split} sentence, ${s.truth}`),
        set.columns.map((column, model) =>
          el(
            "p",
            {},
            el("small", {}, `${column}: positive with ${percent(s.positive[model])} %`),
            el("br"),
            s.words.map((word, i) =>
              el(
                "span",
                {
                  class: s.masked[i] ? "word masked" : "word",
                  style: paint(s.scores[model][i]),
                  title: short(s.scores[model][i]),
                },
                word,
              ),
            ),
          ),
        ),
      ),
    ),
  ];
}

const compared = () =>
  state.compare
    .split(",")
    .map(Number)
    .filter((id) => byId.has(id))
    .slice(0, 2);
function runs() {
  const rows = data.runs.filter(shown),
    chosen = compared();
  const toggle = (id) => {
    const next = chosen.includes(id) ? chosen.filter((c) => c !== id) : [...chosen, id];
    setState({ compare: next.join(",") });
    document.querySelector(`input[data-run="${id}"]`)?.focus();
  };
  const splits = unique(["test", ...rows.map((r) => r.selection_split)]).filter(Boolean);
  const columns = [
    {
      title: "compare",
      text: (r) =>
        el("input", {
          type: "checkbox",
          "data-run": r.id,
          checked: chosen.includes(r.id),
          disabled: chosen.length === 2 && !chosen.includes(r.id),
          "aria-label": `compare run ${r.id}`,
          onchange: () => toggle(r.id),
        }),
    },
    { title: "run", number: true, value: (r) => r.id, text: (r) => r.id },
    { title: "data set", value: (r) => r.dataset, text: (r) => r.dataset },
    { title: "penalty", value: (r) => r.label, text: (r) => r.label + (r.quick ? " (quick)" : "") },
    {
      title: "λ",
      number: true,
      value: (r) => r.strength,
      text: (r) => (r.penalty === "none" ? "–" : short(r.strength, 6)),
    },
    { title: "seed", number: true, value: (r) => r.seed, text: (r) => r.seed },
    ...splits.map((split) => ({
      title: split,
      number: true,
      value: (r) => r.scores[`${split}/${state.metric}`],
      text: (r) => percent(r.scores[`${split}/${state.metric}`]),
    })),
    {
      title: "s / epoch",
      number: true,
      value: (r) => r.seconds_per_epoch,
      text: (r) => short(r.seconds_per_epoch),
    },
    {
      title: "peak memory",
      number: true,
      value: (r) => r.peak_memory_bytes,
      text: (r) => bytes(r.peak_memory_bytes),
    },
    { title: "record", wrap: true, value: (r) => r.path, text: (r) => el("code", {}, r.path) },
  ];
  return [
    el(
      "p",
      { class: "soft" },
      `${rows.length} of ${data.runs.length} runs, ${NAMES[state.metric]}. Tick two to compare them; untick one to take another.`,
    ),
    table("runs", columns, rows, () => null, true),
  ];
}

const settings = (run) => ({ ...data.shared[run.dataset], ...run.config });
const written = (value) =>
  value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value);
function comparison() {
  const pair = compared().map((id) => byId.get(id));
  $("comparison").classList.toggle("used", pair.length === 2);
  if (pair.length < 2) return [el("p", { class: "soft" }, "Tick two runs in the table above.")];
  const [a, b] = pair.map((run) => ({
    ...settings(run),
    "data fingerprint": run.fingerprint.slice(0, 12),
    commit: data.environments[run.environment].commit.slice(0, 12),
    device: data.environments[run.environment].device,
  }));
  const keys = unique([...Object.keys(a), ...Object.keys(b)]),
    differs = keys.filter((k) => written(a[k]) !== written(b[k]));
  const same = keys.filter((k) => !differs.includes(k)).sort();
  const scores = unique(pair.flatMap((r) => Object.keys(r.scores)));
  const name = (run) =>
    `run ${run.id}: ${run.dataset}, ${run.label}${run.penalty === "none" ? "" : `, λ = ${short(run.strength, 6)}`}, seed ${run.seed}`;
  const head = (last, numeric) =>
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        ["", `run ${pair[0].id}`, `run ${pair[1].id}`, ...last].map((t, i) =>
          el("th", { scope: "col", class: i && numeric ? "n" : null }, t),
        ),
      ),
    );
  const part = (label, list, change, numeric = false) =>
    el(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
      el("table", {}, head(change, numeric), el("tbody", {}, list)),
    );
  const metricRows = scores.map((key) => {
    const [x, y] = pair.map((run) => run.scores[key]),
      fraction = Object.keys(NAMES).includes(key.split("/")[1]);
    const text = fraction ? (v) => percent(v) : (v) => short(v, 4),
      known = x !== null && x !== undefined && y !== null && y !== undefined;
    const change = known ? (fraction ? ((y - x) * 100).toFixed(1) : short(y - x)) : "–";
    return el(
      "tr",
      {},
      el("td", {}, key + (fraction ? " (%)" : "")),
      el("td", { class: "n" }, text(x)),
      el("td", { class: "n" }, text(y)),
      el("td", { class: "n" }, known && y > x ? "+" + change : change),
    );
  });
  const config = (list, mark) =>
    list.map((k) =>
      el(
        "tr",
        { class: mark },
        el("td", {}, k),
        el("td", { class: "wrap" }, written(a[k])),
        el("td", { class: "wrap" }, written(b[k])),
      ),
    );
  return [
    el("p", {}, name(pair[0]), el("br"), name(pair[1])),
    el("h3", {}, `${differs.length} settings differ`),
    part("settings that differ", config(differs, "differs"), []),
    el("h3", {}, "Metrics"),
    part("metrics of two runs", metricRows, ["second − first"], true),
    el(
      "details",
      {},
      el("summary", {}, `${same.length} settings are the same`),
      part("settings that are the same", config(same, null), []),
    ),
    el(
      "details",
      { open: true },
      el("summary", {}, "Commands"),
      el("pre", {}, pair.map((run) => run.command).join("\n")),
    ),
  ];
}

function environment() {
  const columns = [
    {
      title: "runs",
      number: true,
      text: (e) => data.runs.filter((run) => data.environments[run.environment] === e).length,
    },
    { title: "device", text: (e) => `${e.device}${e.threads ? `, ${e.threads} threads` : ""}` },
    {
      title: "commit",
      text: (e) => el("code", {}, e.commit.slice(0, 12) + (e.changed ? ", with changes" : "")),
    },
    {
      title: "versions",
      wrap: true,
      text: (e) =>
        Object.entries(e.versions)
          .map(([k, v]) => `${k} ${v}`)
          .join(", "),
    },
  ];
  return [table("environment", columns, data.environments), el("pre", {}, data.command)];
}

function options(id, values, all) {
  const choices = all ? [["", "all"], ...values] : values;
  $(id).replaceChildren(...choices.map(([value, title]) => el("option", { value }, title)));
  $(id).addEventListener("change", () => setState({ [id]: $(id).value }));
}
const SECTIONS = { results, papers, curves, training, cost, examples, runs, comparison, environment };
function render() {
  for (const id of ["dataset", "penalty", "metric"]) $(id).value = state[id];
  for (const [id, draw] of Object.entries(SECTIONS)) {
    const into = document.querySelector(`#${id} > div`);
    const before = into.querySelector(".tall")?.scrollTop;
    into.replaceChildren(
      ...(data.runs.length ? draw() : [el("p", { class: "soft" }, "No finished runs.")]),
    );
    if (before) into.querySelector(".tall").scrollTop = before;
  }
}

options(
  "dataset",
  unique(data.cells.map((c) => c.dataset)).map((v) => [v, v]),
  true,
);
options(
  "penalty",
  unique(data.cells.map((c) => c.penalty)).map((v) => [v, TITLES[v] ?? v]),
  true,
);
options("metric", Object.entries(NAMES), false);
for (const link of document.querySelectorAll("nav a")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    document.querySelector(link.getAttribute("href")).scrollIntoView();
  });
}
$("filters").addEventListener("submit", (event) => event.preventDefault());
const counts = [
  `${data.runs.length} finished runs`,
  `${data.cells.length} settings`,
  unique(data.cells.map((c) => c.dataset)).join(", "),
];
$("verdicts").append(...data.verdicts.map((text) => el("li", {}, text)));
$("summary").textContent = `${counts.filter(Boolean).join(" · ")} · made ${data.made}`;
if (data.problems.length)
  $("problems").append(
    el(
      "details",
      { class: "problems", open: data.problems.length < 6 || !data.runs.length },
      el("summary", {}, `${data.problems.length} ${data.problems.length > 1 ? "notes" : "note"} on what is missing or odd`),
      el(
        "ul",
        {},
        data.problems.map((text) => el("li", {}, text)),
      ),
    ),
  );
addEventListener("beforeprint", () => {
  for (const notes of document.querySelectorAll("details.notes")) notes.open = true;
});
addEventListener("hashchange", () => {
  readState();
  render();
});
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) {
    width = innerWidth;
    render();
  }
});
readState();
render();
document.documentElement.dataset.ready = Math.round(performance.now()); // ms since it was opened
