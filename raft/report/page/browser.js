// The list of prompts, of which only the rows in sight are in the page: scope, order, filters, search.

const ROW = 62; // pixels of a row of the list
const MOST_ROWS = 200000; // in the list; a browser cannot scroll further

const held = facts.batches.filter((one) => one.kind === "held-out");
const others = facts.batches.filter((one) => one.kind !== "held-out");
const SCOPES = [
  ...(held.length
    ? [{ key: "held-out", name: `Held-out prompts (${held[0].prompts})`, batches: held, across: true }]
    : []),
  ...others.map((one) => ({
    key: one.key,
    name:
      one.kind === "training"
        ? `Training, iteration ${one.iteration} (${one.prompts})`
        : `Labelled prompts (${one.prompts})`,
    batches: [one],
  })),
  ...(others.length > 1 ? [{ key: "training", name: "Training, all iterations", batches: others }] : []),
];

const up = (of) => (a, b) => (of(a) ?? Infinity) - (of(b) ?? Infinity);
const down = (of) => (a, b) => (of(b) ?? -Infinity) - (of(a) ?? -Infinity);
const SORTS = {
  held: {
    gain: ["largest gain", down((one) => one.gain)],
    loss: ["largest loss", up((one) => one.gain)],
    worst: ["lowest reward at the end", up((one) => one.last)],
    best: ["highest reward at the end", down((one) => one.last)],
    longest: ["longest response", down((one) => one.longest)],
    file: ["as in the file", () => 0],
  },
  training: {
    file: ["as in the file", () => 0],
    worst: ["lowest mean reward", up((one) => one.mean)],
    best: ["highest mean reward", down((one) => one.mean)],
    lowest: ["lowest best reward", up((one) => one.best)],
    spread: ["widest between best and worst", down((one) => (one.best === null ? null : one.best - one.worst))],
    longest: ["longest response", down((one) => one.longest)],
  },
};
const FILTERS = {
  truncated: ["truncated", "a response was cut by the limit"],
  tied: ["ties", "all rewards of the prompt are equal"],
  failed: ["without a reward", "a response could not be scored"],
  dropped: ["dropped", "the prompt, or a response, went no further"],
  empty: ["empty", "a response is nothing but white space"],
};

// What the browser shows; it stands in the address, so a link leads to the same place.
const START = {
  in: SCOPES.length ? SCOPES[0].key : "",
  sort: "",
  only: "",
  q: "",
  by: "reward",
  id: "",
  answer: 0,
  against: "before",
  order: "reward",
};
const shown = { ...START, only: new Set() };

let items = []; // of the scope, in the order of its files
let listed = []; // of these, what the filters leave, sorted
let at = -1; // of these, the one whose responses are shown
let searching = 0; // number of the search at work; an older one stops
let hits = null; // items in which the text was found; null without a search

const scope = () => SCOPES.find((one) => one.key === shown.in) || SCOPES[0];
const sorts = () => (scope().across ? SORTS.held : SORTS.training);
const measure = (one) => (shown.by === "gold" ? one.gold : one.mean);

async function gather() {
  const tables = await Promise.all(scope().batches.map(index));
  if (!scope().across) return tables.flat();
  return tables[0].map((first, row) => {
    const all = tables.map((table) => table[row]);
    const values = all.map(measure);
    const known = values.filter((one) => one !== null);
    return {
      batch: first.batch,
      row,
      id: first.id,
      head: first.head,
      values,
      last: known.length ? known[known.length - 1] : null,
      gain: known.length > 1 ? known[known.length - 1] - known[0] : null,
      golden: all.some((one) => one.gold !== null),
      longest: Math.max(...all.map((one) => one.longest)),
      flags: all.reduce((flags, one) => flags | one.flags, 0),
    };
  });
}

// ---------------------------------------------------------------- the list

function passes(one) {
  for (const name of shown.only) if (!(one.flags & FLAGS[name])) return false;
  return !hits || hits.has(one);
}

function relist(keep) {
  const sorted = sorts()[shown.sort] || Object.values(sorts())[0];
  listed = items.filter(passes).sort(sorted[1]).slice(0, MOST_ROWS);
  at = listed.findIndex((one) => one.id === shown.id);
  if (at < 0 && listed.length && !keep) at = 0;
  $("space").style.setProperty("height", `${listed.length * ROW}px`);
  $("found").textContent =
    listed.length === items.length
      ? named(items.length, "prompt")
      : `${counts.format(listed.length)} of ${named(items.length, "prompt")}`;
  $("list").setAttribute("aria-label", `Prompts, ${listed.length}`);
  for (const chip of document.querySelectorAll(".chip")) {
    const name = chip.dataset.name;
    const count = items.reduce((sum, one) => sum + (one.flags & FLAGS[name] ? 1 : 0), 0);
    chip.setAttribute("aria-pressed", shown.only.has(name));
    chip.disabled = !count && !shown.only.has(name);
    chip.querySelector(".count").textContent = counts.format(count);
  }
  paint();
}

function paint() {
  const list = $("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(listed.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  const rows = [];
  for (let place = first; place < last; place++) rows.push(row(listed[place], place));
  $("space").replaceChildren(...rows);
  if (at >= first && at < last) list.setAttribute("aria-activedescendant", `row-${at}`);
  else list.removeAttribute("aria-activedescendant");
}

function row(one, place) {
  const flags = Object.keys(FILTERS).filter((name) => one.flags & FLAGS[name]);
  const figures = scope().across
    ? [
        h(
          "span",
          { class: one.gain > 0 ? "up" : one.gain < 0 ? "down" : "" },
          one.gain === null ? show(one.last) : gained(one.gain),
        ),
        spark(one.values),
      ]
    : [h("span", { title: "mean to best reward" }, `${show(one.mean)} → ${show(one.best)}`)];
  return h(
    "div",
    {
      class: "row",
      role: "option",
      id: `row-${place}`,
      "aria-selected": place === at,
      "aria-posinset": place + 1,
      "aria-setsize": listed.length,
      style: { top: `${place * ROW}px`, height: `${ROW}px` },
      onclick: () => choose(place).then(reveal),
    },
    h("div", { class: "head" }, inline(one.head || "(no text)")),
    h(
      "div",
      { class: "under" },
      h("bdi", { class: "id" }, seen(one.id)),
      scope().key === "training" && h("span", { class: "quiet" }, `iteration ${one.batch.iteration}`),
      flags.map((name) => h("span", { class: "flag", title: FILTERS[name][1] }, FILTERS[name][0])),
      h("span", { class: "figures" }, figures),
    ),
  );
}

// A line as small as a word, for lists; values may have gaps.
function spark(values, width = 72, height = 22) {
  const known = values.map((value, place) => [place, value]).filter(([, value]) => Number.isFinite(value));
  if (known.length < 2) return null;
  const levels = known.map(([, value]) => value);
  const [low, high] = [Math.min(...levels), Math.max(...levels)];
  const X = (place) => 3 + (place / (values.length - 1)) * (width - 6);
  const Y = (value) => height - 4 - (high > low ? (value - low) / (high - low) : 0.5) * (height - 8);
  const [last, value] = known.at(-1);
  return s(
    "svg",
    { class: "spark", width, height, "aria-hidden": "true" },
    s("path", { class: "line", d: `M${known.map(([place, value]) => `${X(place)} ${Y(value).toFixed(2)}`).join("L")}` }),
    s("circle", { cx: X(last), cy: Y(value), r: 2.4 }),
  );
}

function choose(place, focus) {
  if (!listed.length) return detail(null);
  at = Math.max(0, Math.min(listed.length - 1, place));
  shown.id = listed[at].id;
  const list = $("list");
  const top = at * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  paint();
  remember();
  if (focus) list.focus();
  return detail(listed[at]);
}

// In a narrow window the responses stand below the list.
function reveal() {
  if (matchMedia("(max-width: 900px)").matches) $("detail").scrollIntoView();
}

function keys(event) {
  const page = Math.max(1, Math.floor($("list").clientHeight / ROW) - 1);
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
  if (step) choose(Math.max(0, Math.min(listed.length - 1, at + step)));
  else if (event.key === "Enter") $("detail").focus();
  else return;
  event.preventDefault();
}

// ---------------------------------------------------------------- searching

async function search() {
  const mine = ++searching;
  const query = shown.q.toLowerCase();
  if (!query) {
    hits = null;
    $("progress").textContent = "";
    return relist();
  }
  const found = new Set(
    items.filter((one) => one.id.toLowerCase().includes(query) || one.head.toLowerCase().includes(query)),
  );
  hits = found;
  relist(true);
  const byPlace = new Map(items.map((one) => [scope().across ? one.row : `${one.batch.key} ${one.row}`, one]));
  const all = scope().batches.flatMap((batch) => batch.starts.map((_, number) => [batch, number]));
  const written = JSON.stringify(query).slice(1, -1); // as it stands in a chunk
  let painted = performance.now();
  for (const [done, [batch, number]] of all.entries()) {
    const text = await unpack(`chunk-${batch.key}-${number}`);
    if (mine !== searching) return undefined;
    if (text.toLowerCase().includes(written)) {
      text.split("\n").forEach((line, place) => {
        const row = batch.starts[number] + place;
        const one = byPlace.get(scope().across ? row : `${batch.key} ${row}`);
        if (
          !found.has(one) &&
          line.toLowerCase().includes(written) &&
          texts(JSON.parse(line)).some((part) => part.toLowerCase().includes(query))
        )
          found.add(one);
      });
    }
    if (performance.now() - painted > 150) {
      $("progress").textContent = `searching responses, ${Math.floor((100 * done) / all.length)} %`;
      relist(true);
      await new Promise((resolve) => setTimeout(resolve));
      if (mine !== searching) return undefined;
      painted = performance.now();
    }
  }
  $("progress").textContent = "";
  relist();
  return choose(at);
}

function texts({ prompt = "", responses }) {
  return [
    ...(typeof prompt === "string" ? [prompt] : prompt.map((one) => one.content)),
    ...responses.map((one) => one.text),
  ];
}

// ---------------------------------------------------------------- the view

function remember() {
  const told = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...shown, only: [...shown.only].join(",") })) {
    if (value && value !== START[name]) told.set(name, value);
  }
  history.replaceState(null, "", `#prompts${told.size ? `?${told}` : ""}`);
}

function recall(address) {
  const told = new URLSearchParams(address);
  Object.assign(shown, START, Object.fromEntries([...told].filter(([name]) => name in START)));
  shown.only = new Set((told.get("only") || "").split(",").filter((name) => name in FILTERS));
  shown.answer = Number(shown.answer) || 0;
}

async function rescope() {
  items = await gather();
  controls();
  await (shown.q ? search() : Promise.resolve(relist()));
  await choose(at);
}

function controls() {
  $("scope").value = scope().key;
  $("sort").replaceChildren(...Object.entries(sorts()).map(([key, [name]]) => h("option", { value: key }, name)));
  if (!(shown.sort in sorts())) shown.sort = "";
  $("sort").value = shown.sort || Object.keys(sorts())[0];
  $("by").parentElement.hidden = !(scope().across && items.some((one) => one.golden));
  $("by").value = shown.by;
  $("query").value = shown.q;
}

function pick(label, id, options, changed) {
  return h(
    "label",
    { class: "pick" },
    h("span", {}, label),
    h(
      "select",
      { id, onchange: changed },
      options.map(([key, name]) => h("option", { value: key }, name)),
    ),
  );
}

function browser() {
  if (!SCOPES.length) {
    return [h("p", { class: "nothing" }, "This run holds no responses: it is of another job, or has not come so far.")];
  }
  let typed = 0;
  const query = h("input", {
    id: "query",
    type: "search",
    placeholder: "Search in prompts and responses",
    "aria-label": "Search in prompts and responses",
    "aria-keyshortcuts": "/",
    autocomplete: "off",
    spellcheck: "false",
    oninput: () => {
      clearTimeout(typed);
      typed = setTimeout(() => {
        shown.q = query.value.trim();
        remember();
        search();
      }, 180);
    },
    onkeydown: (event) => {
      if (event.key === "ArrowDown" || event.key === "Enter") {
        $("list").focus();
        event.preventDefault();
      }
    },
  });
  const list = h(
    "div",
    { id: "list", role: "listbox", tabindex: 0, onscroll: () => requestAnimationFrame(paint), onkeydown: keys },
    h("div", { id: "space", role: "presentation" }),
  );
  const side = h(
    "div",
    { class: "side" },
    h(
      "div",
      { class: "controls" },
      h("div", { class: "searchbox" }, query, h("kbd", { "aria-hidden": "true" }, "/")),
      pick(
        "Show",
        "scope",
        SCOPES.map((one) => [one.key, one.name]),
        (event) => {
          Object.assign(shown, { in: event.target.value, sort: "", id: "" });
          rescope();
        },
      ),
      h(
        "div",
        { class: "pair" },
        pick("Sort by", "sort", [], (event) => {
          Object.assign(shown, { sort: event.target.value, id: "" });
          relist();
          choose(0);
        }),
        pick(
          "of the",
          "by",
          [
            ["reward", "reward"],
            ["gold", "gold reward"],
          ],
          (event) => {
            Object.assign(shown, { by: event.target.value, id: "" });
            rescope();
          },
        ),
      ),
      h(
        "div",
        { class: "chips", role: "group", "aria-label": "Show only prompts with" },
        Object.entries(FILTERS).map(([name, [label, tip]]) =>
          h(
            "button",
            {
              class: "chip",
              type: "button",
              "data-name": name,
              title: tip,
              "aria-pressed": "false",
              onclick: () => {
                if (!shown.only.delete(name)) shown.only.add(name);
                relist();
                choose(at);
              },
            },
            label,
            " ",
            h("span", { class: "count" }),
          ),
        ),
      ),
    ),
    h("p", { class: "found quiet" }, h("span", { id: "found", role: "status" }), h("span", { id: "progress" })),
    list,
  );
  new ResizeObserver(() => paint()).observe(list);
  return [side, h("div", { id: "detail", tabindex: -1, role: "region", "aria-label": "The prompt and its responses" })];
}

document.addEventListener("keydown", (event) => {
  const writing = event.target.closest && event.target.closest("input[type=search], select, textarea");
  if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey && SCOPES.length) {
    event.preventDefault();
    location.hash.startsWith("#prompts") || go("prompts");
    $("query").focus();
    $("query").select();
  }
});
