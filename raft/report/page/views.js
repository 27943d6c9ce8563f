// The views of the page, and which of them is shown: the part of the address behind the # says it.

function standing() {
  const { made, wanted } = facts.iterations;
  if (facts.running) return facts.job === "align" ? `at work: ${made} of ${wanted ?? "?"} iterations` : "at work";
  if (facts.job !== "align") return "not running";
  return wanted !== null && made >= wanted ? "finished" : `stopped: ${made} of ${wanted ?? "?"} iterations`;
}

// ---------------------------------------------------------------- sheets and tables

const sheet = (title, note, ...content) =>
  h("section", { class: "card" }, h("h2", {}, title), note && h("p", { class: "quiet" }, note), content);
const grid = (label, kind, ...rows) =>
  h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, h("table", { class: kind }, rows));
const heads = (names) => names.map((name) => h("th", { scope: "col" }, name));
const line = (name, ...cells) => h("tr", {}, h("th", { scope: "row" }, name), cells);
const cells = (values) => values.map((value) => h("td", {}, value));
const quiet = (...text) => h("p", { class: "quiet" }, text);
const pairs = (entries) =>
  h(
    "dl",
    { class: "pairs" },
    entries.map(([name, value]) => [h("dt", {}, inline(name)), h("dd", {}, inline(value))]),
  );

// ---------------------------------------------------------------- overview

const MOST_LISTED = 60; // words of a list of figures
const NORMAL_95 = 1.96;

function tile(label, value, note, tone) {
  return h(
    "div",
    { class: tone ? `tile ${tone}` : "tile" },
    quiet(label),
    h("p", { class: "value" }, value),
    note && quiet(note),
  );
}

function rise(key, label, tone) {
  const rows = facts.rows.filter((row) => Number.isFinite(row[key]));
  if (!rows.length) return null;
  const [from, to] = [rows[0], rows[rows.length - 1]];
  if (from === to) return tile(label, show(to[key]), `policy ${to.iteration}`, tone);
  const gain = facts.gains[key];
  const margin = gain && Number.isFinite(gain.half_width) ? `\u00a0±\u00a0${show(gain.half_width)}` : "";
  const missing = [from, to].some((row) => row[`${key}_failed`] > 0) ? ", some rewards are missing" : "";
  const note = `${gained(gain ? gain.difference : to[key] - from[key])}${margin} since policy\u00a0${from.iteration}${missing}`;
  const change = h("span", {}, h("span", { class: "from" }, `${show(from[key])} → `), show(to[key]));
  return tile(label, change, note, tone);
}

const found = (level) => facts.findings.filter((one) => one.level === level);

function tiles() {
  const sum = (rows, of) => rows.reduce((total, one) => total + of(one), 0);
  const seconds = sum(facts.timeline, (one) => one.seconds);
  const made = sum(facts.batches, (one) => one.responses);
  const training = sum(
    facts.batches.filter((one) => one.kind !== "held-out"),
    (one) => one.responses,
  );
  const failed = sum(facts.batches, (one) => one.failed);
  const checks = facts.findings.length;
  const [warned, watched] = ["warning", "watch"].map((level) => found(level).length);
  const [first, ...more] = [warned && named(warned, "warning"), watched && `${watched} to watch`].filter(Boolean);
  const below = first && [", ", h("a", { href: "#warnings", onclick: toWarnings }, "below")];
  return h(
    "div",
    { class: "tiles" },
    rise("reward/eval", "Held-out reward", "held-out"),
    rise("gold/eval", "Gold reward, held-out", "gold"),
    best !== null &&
      tile("Best policy", h("span", {}, star(), ` policy ${best}`), `of ${facts.rows.length}, ${byWhat}`),
    made > 0 &&
      tile("Responses", counts.format(made), training > 0 && `${counts.format(training)} to training prompts`),
    failed > 0 && tile("Without a reward", counts.format(failed), `${show(failed / made, "share")} of all`, "alarm"),
    checks > 0 &&
      tile(
        "Checks",
        first ?? "all well",
        [[...more, `of ${named(checks, "check")}`].join(", "), below],
        warned ? "alarm" : "",
      ),
    seconds > 0 && tile("Time", duration(seconds), "all stages, start-up and pauses between them"),
  );
}

const interval = (row, key, form) => {
  const error = row[`${key}_se`];
  return Number.isFinite(error) && h("small", {}, ` ±${show(NORMAL_95 * error, form)}`);
};

const best = facts.best && facts.best.policy;
const byWhat = facts.best && `by ${facts.best.by === "gold/eval" ? "gold reward" : "held-out reward"}`;
const star = () => h("span", { class: "star", role: "img", "aria-label": "best policy" }, "★");
const policyName = (row) => [row.iteration, row.iteration === best && [" ", star()]];

function policyTable() {
  if (!facts.rows.length) return null;
  const groups = facts.figures
    .map(({ title, figures }) => ({ title, columns: figures.filter((one) => one.main) }))
    .filter(({ columns }) => columns.length);
  const columns = groups.flatMap((one) => one.columns);
  const edge = (column) => groups.some((one) => one.columns[0] === column);
  const cell = (row, { key, form }, kind) => h("td", { class: kind }, show(row[key], form), interval(row, key, form));
  const group = (one) => h("th", { colspan: one.columns.length, scope: "colgroup", class: "edge" }, one.title);
  const head = (one) =>
    h("th", { scope: "col", title: `${one.key}: ${one.meaning}`, class: edge(one) ? "edge" : null }, one.label);
  const notes = [
    best !== null && [star(), ` marks the best policy, ${byWhat}. `],
    "A row is a policy; training figures are of the responses it gave. ±\u00a0is 1.96 standard errors over prompts.",
  ];
  return sheet(
    "Policies",
    notes,
    grid(
      "Table of policies",
      "iterations",
      h("thead", {}, h("tr", {}, h("td"), groups.map(group)), h("tr", {}, heads(["policy"]), columns.map(head))),
      h(
        "tbody",
        {},
        facts.rows.map((row) =>
          h(
            "tr",
            { class: row.iteration === best ? "best" : null },
            h("th", { scope: "row" }, policyName(row)),
            columns.map((column) => cell(row, column, edge(column) ? "edge" : null)),
          ),
        ),
      ),
    ),
    h("details", {}, h("summary", {}, "All figures, with what they mean"), allFigures()),
  );
}

// Every figure that a number says, a row for each, by policy.
function allFigures() {
  const numbers = (one) => one.figures.filter(({ form }) => form !== "phrases");
  const row = ({ key, label, form, meaning }) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, label, h("small", {}, `${meaning && `${meaning}; `}${key}`)),
      facts.rows.map((of) => h("td", {}, show(of[key], form), interval(of, key, form))),
    );
  const group = (one) => [
    h("tr", { class: "group" }, h("th", { colspan: facts.rows.length + 1, scope: "colgroup" }, one.title)),
    numbers(one).map(row),
  ];
  return grid(
    "All figures",
    "iterations every",
    h("thead", {}, h("tr", {}, heads(["policy"]), facts.rows.map((of) => h("th", { scope: "col" }, policyName(of))))),
    h("tbody", {}, facts.figures.filter((one) => numbers(one).length).map(group)),
  );
}

// Words and phrases that rose, of the last policy that has them.
function phrases() {
  const lists = facts.figures.flatMap((one) => one.figures).filter(({ form }) => form === "phrases");
  return lists.length > 0 && sheet("Phrases", "Words and phrases whose share rose most.", lists.map(list));
}

function list({ key, label, meaning }) {
  const row = facts.rows.findLast((one) => Array.isArray(one[key]));
  const item = (one) => {
    if (!one || one.text === undefined) return h("span", {}, inline(JSON.stringify(one)));
    return h("span", {}, inline(one.text), h("small", {}, ` ${show(one.before, "share")} → ${show(one.now, "share")}`));
  };
  return [
    h("h3", { class: "list" }, label, h("span", { class: "quiet" }, `, policy ${row.iteration}: ${meaning}`)),
    row[key].length ? h("p", { class: "risen" }, row[key].slice(0, MOST_LISTED).map(item)) : quiet("none"),
  ];
}

function toWarnings(event) {
  event.preventDefault(); // the address behind the # is that of the view
  $("warnings").scrollIntoView();
}

function warnings() {
  const alarms = [...found("warning"), ...found("watch")];
  const alarm = (one) =>
    h("p", {}, h("b", {}, `${one.level}: `), inline(`${one.reward}: ${one.check.replaceAll("_", " ")}: ${one.message}`));
  return alarms.length > 0 && h("section", { class: "notice", id: "warnings", "aria-label": "Warnings" }, alarms.map(alarm));
}

// A text of headings, paragraphs and tables; a heading of the first level is the sheet's own.
function markdown(text) {
  const cellsOf = (one) => one.split(/(?<!\\)\|/).slice(1, -1).map((cell) => inline(cell.trim().replaceAll("\\|", "|")));
  const block = (one) => {
    const lines = one.trim().split("\n");
    if (one.startsWith("# ")) return null;
    if (one.startsWith("## ")) return h("h3", { class: "list" }, seen(one.slice(3)));
    if (!one.startsWith("|")) return quiet(seen(one));
    const rows = lines.slice(2).map((row) => line(...cellsOf(row).map((cell, at) => (at ? h("td", {}, cell) : cell))));
    return grid("Accuracy", "iterations", h("thead", {}, h("tr", {}, heads(cellsOf(lines[0])))), h("tbody", {}, rows));
  };
  return text.trim().split(/\n\n+/).map(block);
}

// Drawn by raft/report/figures/, and part of the page as it was written.
function figures() {
  const drawn = $("figures");
  for (const one of drawn.children) {
    const picture = new XMLSerializer().serializeToString(one.querySelector("svg"));
    const file = URL.createObjectURL(new Blob([picture], { type: "image/svg+xml" }));
    one.querySelector("h3").append(h("a", { href: file, target: "_blank", class: "quiet" }, "open the picture"));
  }
  return drawn.children.length > 0 && drawn;
}

function overview() {
  const told = [
    `job: ${facts.job}`,
    facts.seed !== null && `seed ${facts.seed}`,
    standing(),
    facts.as_of && `as of ${moment(facts.as_of)}`,
  ];
  const half = facts.half_made.map((one) => `${one.artifact} (${named(one.groups, "group")})`).join(", ");
  const measured = Object.entries(facts.measured).map(([name, value]) => [
    name,
    typeof value === "number" ? show(value, "number") : String(value),
  ]);
  return [
    h("div", { class: "title" }, h("h1", {}, h("bdi", {}, seen(facts.name))), quiet(told.filter(Boolean).join(" · "))),
    half && h("p", { class: "notice" }, `Half-made: ${half}`),
    tiles(),
    warnings(),
    figures(),
    policyTable(),
    phrases(),
    facts.table && sheet("Accuracy", null, markdown(facts.table)),
    measured.length > 0 && sheet("Measured", null, pairs(measured)),
  ].filter(Boolean);
}

// ---------------------------------------------------------------- the run

const STAGES = [
  ...["draw", "generate", "score", "reference", "select", "train", "evaluate", "measure"],
  ...["start-up", "load", "save", "between"],
];
const PAINTS = {
  generate: "var(--training)",
  score: "color-mix(in oklab, var(--training) 45%, var(--sheet))",
  train: "var(--selected)",
  evaluate: "var(--held-out)",
  other: "var(--grey)",
};

// Seconds of each stage by iteration; null is what was made before the first.
function seconds() {
  const spent = facts.timeline;
  const stages = STAGES.filter((name) => spent.some((one) => one.iteration !== null && one.stage === name));
  const iterations = [...new Set(spent.map((one) => one.iteration))].sort((a, b) => (a ?? -1) - (b ?? -1));
  const rows = iterations.map((iteration) => {
    const by = Object.fromEntries([...stages, "other"].map((name) => [name, 0]));
    for (const one of spent.filter((own) => own.iteration === iteration)) {
      by[one.stage in by ? one.stage : "other"] += one.seconds;
    }
    return { name: iteration ?? "before", by, all: Object.values(by).reduce((sum, one) => sum + one, 0) };
  });
  return { names: [...stages, "other"], rows };
}

const patch = (colour) => h("span", { class: "patch", style: { "--colour": colour } });

// What each worker of a cluster did, on the time of the whole run.
function lanes() {
  if (!facts.lanes.length) return null;
  const all = facts.lanes.flatMap((one) => one.spans);
  const from = Math.min(...all.map((one) => one.began));
  const whole = Math.max(...all.map((one) => one.ended)) - from || 1;
  const share = (seconds) => `${(100 * seconds) / whole}%`;
  const span = (one) =>
    h("span", {
      title: `${one.artifact}: ${duration(one.ended - one.began)}, ${one.done} done${one.died ? ", died" : ""}`,
      class: one.died ? "died" : null,
      style: {
        left: share(one.began - from),
        width: share(one.ended - one.began),
        background: PAINTS[one.stage] || PAINTS.other,
      },
    });
  const row = ({ worker, spans }) => {
    const busy = spans.reduce((sum, one) => sum + one.ended - one.began, 0);
    const died = spans.filter((one) => one.died).length;
    return line(
      worker,
      h("td", { class: "bars" }, h("span", { class: "lane", "aria-hidden": "true" }, spans.map(span))),
      cells([duration(busy), show(busy / whole, "share"), died ? counts.format(died) : "–"]),
    );
  };
  return sheet(
    "Workers",
    "The devices of the cluster over the time of the run, in the colours of the stages above; gaps are times in which a " +
      "device had nothing to do.",
    grid(
      "Workers",
      "iterations lanes",
      h("thead", {}, h("tr", {}, heads(["worker"]), h("th", { class: "bars" }), heads(["at work", "share", "died"]))),
      h("tbody", {}, facts.lanes.map(row)),
    ),
  );
}

function timings() {
  if (!facts.stages.length) return null;
  const { names, rows } = seconds();
  const longest = Math.max(...rows.map((one) => one.all));
  const time = (value) => (value ? duration(value) : "–");
  const part = (name, value) =>
    h("span", {
      title: `${name}: ${duration(value)}`,
      style: { "flex-grow": value, background: PAINTS[name] || PAINTS.other },
    });
  const bar = ({ by, all }) =>
    h(
      "span",
      { class: "stack", style: { width: `${(100 * all) / longest}%` }, "aria-hidden": "true" },
      names.filter((name) => by[name] > 0).map((name) => part(name, by[name])),
    );
  const row = (one, drawn) =>
    line(
      one.name,
      h("td", { class: "bars" }, drawn),
      cells(names.map((name) => time(one.by[name]))),
      h("td", {}, h("b", {}, time(one.all))),
    );
  const sum = (of) => rows.reduce((total, one) => total + of(one), 0);
  const whole = {
    name: "all",
    by: Object.fromEntries(names.map((name) => [name, sum((one) => one.by[name])])),
    all: sum((one) => one.all),
  };
  const painted = Object.entries(PAINTS).filter(([name]) => names.includes(name));
  return sheet(
    "Time by stage",
    null,
    h(
      "p",
      { class: "legend" },
      painted.map(([name, paint]) => h("span", {}, patch(paint), name)),
    ),
    grid(
      "Time by stage",
      "iterations",
      h("thead", {}, h("tr", {}, heads(["iteration"]), h("th", { class: "bars" }), heads([...names, "all"]))),
      h(
        "tbody",
        {},
        rows.map((one) => row(one, bar(one))),
      ),
      h("tfoot", {}, row(whole, null)),
    ),
  );
}

function drops() {
  if (!facts.dropped.length) return sheet("Dropped, and why", "Nothing was dropped.");
  const count = ({ prompts, responses, stage }) =>
    [prompts && named(prompts, stage === "load_examples" ? "row" : "prompt"), responses && named(responses, "response")]
      .filter(Boolean)
      .join(", ");
  const where = (one) => one.where.replace("iterations/", "iteration ") || "the sources";
  return sheet(
    "Dropped, and why",
    null,
    grid(
      "Dropped, and why",
      "texts",
      h("thead", {}, h("tr", {}, heads(["where", "stage", "how many", "reason"]))),
      h(
        "tbody",
        {},
        facts.dropped.map((one) => h("tr", {}, cells([where(one), one.stage, count(one), inline(one.reason)]))),
      ),
    ),
    quiet("Reasons that differ only in their numbers are counted together, with the first as the example."),
  );
}

function findings() {
  if (!facts.findings.length) return null;
  const level = (one) => h("span", { class: one.level === "ok" ? "level" : "level alarm" }, one.level);
  const row = (one) =>
    h("tr", {}, cells([level(one), inline(one.reward), one.check.replaceAll("_", " "), inline(one.message)]));
  return sheet(
    "Checks",
    null,
    grid(
      "Checks",
      "texts",
      h("thead", {}, h("tr", {}, heads(["", "of", "check", "found"]))),
      h("tbody", {}, facts.findings.map(row)),
    ),
  );
}

function about() {
  const machine = Object.entries(facts.machine).map(([name, value]) => [name, String(value)]);
  return [
    timings(),
    lanes(),
    findings(),
    drops(),
    sheet(
      "Recipe",
      "As it was resolved: resolved.yaml of the run.",
      h("pre", { class: "recipe", tabindex: 0, "aria-label": "The recipe" }, seen(facts.recipe)),
    ),
    h(
      "div",
      { class: "figures" },
      sheet("Versions", null, pairs([["raft, of this report", facts.raft], ...Object.entries(facts.versions)])),
      sheet("Machine", null, pairs(machine)),
    ),
  ].filter(Boolean);
}

// ---------------------------------------------------------------- which view

const VIEWS = { overview, prompts: browser, run: about };
const built = new Set();

async function go(name) {
  history.replaceState(null, "", `#${name}`);
  await arrive();
}

function build(name) {
  if (!built.has(name)) $(`view-${name}`).replaceChildren(...VIEWS[name]());
  built.add(name);
}

async function arrive() {
  const [wanted, address] = location.hash.slice(1).split("?");
  const name = wanted in VIEWS ? wanted : "overview";
  build(name);
  if ($(`view-${name}`).hidden) scrollTo(0, 0);
  for (const view of Object.keys(VIEWS)) $(`view-${view}`).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "prompts" && SCOPES.length) {
    if (address !== undefined || !items.length) recall(address || "");
    await rescope();
  }
  document.documentElement.dataset.ready = name;
}

function trouble(fault) {
  $("trouble").hidden = false;
  $("trouble").textContent = `Something went wrong: ${fault && fault.message ? fault.message : fault}`;
}

function forPaper() {
  for (const view of ["overview", "run"]) {
    build(view);
    $(`view-${view}`).hidden = false;
  }
}

document.title = `${facts.name} · raft report`;
$("name").append(...seen(facts.name));
$("state").textContent = standing();
$("state").dataset.running = facts.running;
window.addEventListener("unhandledrejection", (event) => trouble(event.reason));
window.addEventListener("error", (event) => trouble(event.error || event.message));
window.addEventListener("hashchange", arrive);
window.addEventListener("beforeprint", forPaper);
window.addEventListener("afterprint", arrive);
arrive();
