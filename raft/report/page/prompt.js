// One prompt: its text, and the responses to it as cards; of a held-out prompt those of each policy side by side.

const FIRST_CARDS = 24; // responses shown at once; the others on demand
const MARKED = 0.05; // of a response that has less in common with the one before, highlighting would say nothing
const LONG = 2400; // characters of a response that are shown before it is opened

let wanted = 0; // number of the prompt asked for; what arrives for an older one is not shown

async function detail(one) {
  const mine = ++wanted;
  if (!one)
    return $("detail").replaceChildren(
      h(
        "p",
        { class: "nothing" },
        items.length ? "No prompt passes these filters." : "This run holds no responses yet.",
      ),
    );
  const batches = scope().across ? scope().batches : [one.batch];
  const groups = await Promise.all(batches.map((batch) => group(batch, one.row)));
  if (mine !== wanted) return undefined;
  const told = groups[0];
  $("detail").replaceChildren(
    h("header", {}, h("h2", { class: "quiet" }, "prompt ", h("bdi", {}, seen(told.id))), prompt(told)),
    ...(scope().across ? policies(batches, groups) : responses(one.batch, told)),
  );
  $("detail").scrollTop = 0;
  document.documentElement.dataset.shown = told.id;
  return undefined;
}

function prompt({ prompt: content, meta, dropped }) {
  const said = typeof content === "string" ? [{ role: "text", content }] : content;
  return h(
    "div",
    { class: "prompt" },
    said.map(({ role, content: text }) => [
      said.length > 1 && h("p", { class: "role" }, seen(role)),
      prose(text, marked(text, shown.q.toLowerCase())),
    ]),
    meta &&
      h(
        "details",
        {},
        h("summary", {}, "metadata for the rule"),
        h("pre", { dir: "auto" }, seen(JSON.stringify(meta, null, 1))),
      ),
    dropped && h("p", { class: "why" }, "dropped: ", inline(dropped)),
  );
}

function choice(label, options, value, chosen) {
  const name = `choice-${label}`;
  return h(
    "fieldset",
    { class: "choice" },
    h("legend", {}, label),
    options.map(([key, text]) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name,
          value: key,
          checked: String(key) === String(value),
          onchange: () => chosen(key),
        }),
        h("span", {}, text),
      ),
    ),
  );
}

function again(change) {
  Object.assign(shown, change);
  remember();
  return detail(listed[at]);
}

// A held-out prompt: the same answer of each policy, with what is new in it since another policy.
function policies(batches, groups) {
  const most = Math.max(...groups.map((one) => one.responses.length));
  const number = Math.min(shown.answer, most - 1);
  const answers = groups.map((one) => one.responses[number]);
  const bars = scale(groups.flatMap((one) => one.responses.map((response) => response.reward ?? response.gold)));
  const against = (place) => ({ before: answers[place - 1], first: place ? answers[0] : null })[shown.against];
  return [
    h(
      "div",
      { class: "tools" },
      most > 1 &&
        choice(
          "answer",
          Array.from({ length: most }, (_, place) => [place, `${place + 1}`]),
          number,
          (place) => again({ answer: place }),
        ),
      batches.length > 1 &&
        choice(
          "highlight what is new since",
          [
            ["before", "the policy before"],
            ["first", `policy ${batches[0].policy}`],
            ["none", "nothing"],
          ],
          shown.against,
          (key) => again({ against: key }),
        ),
    ),
    h(
      "div",
      { class: "cards" },
      answers.map((answer, place) => {
        if (!answer) return null;
        const mean = groups[place].responses.map((one) => one.reward ?? one.gold).filter((one) => one !== undefined);
        const note =
          mean.length > 1
            ? `mean of its ${mean.length} answers ${show(mean.reduce((sum, one) => sum + one, 0) / mean.length)}`
            : "";
        return card(answer, { title: `policy ${batches[place].policy}`, note, bars, before: against(place) });
      }),
    ),
  ];
}

// A training prompt: its K responses, best first, and which of them was learned from.
function responses(batch, told) {
  const picks = told.picks || [];
  const order = told.responses.map((one, place) => ({ one, place }));
  if (shown.order === "reward")
    order.sort(
      (a, b) => (a.one.rank ?? 0) - (b.one.rank ?? 0) || (b.one.reward ?? -Infinity) - (a.one.reward ?? -Infinity),
    );
  const bars = scale(told.responses.map((one) => one.reward));
  const made = order.map(({ one, place }) => () => {
    const won = picks.filter(([chosen]) => chosen === place).length;
    const lost = picks.filter(([, rejected]) => rejected === place).length;
    const badge = [
      won && (won > 1 ? `chosen ×${won}` : lost || picks.some((pick) => pick.length > 1) ? "chosen" : "selected"),
      lost && (lost > 1 ? `rejected ×${lost}` : "rejected"),
    ]
      .filter(Boolean)
      .join(", ");
    return card(one, { title: `response ${place + 1}`, badge, won: won > 0, bars });
  });
  const cards = h(
    "div",
    { class: "cards wide" },
    made.slice(0, FIRST_CARDS).map((one) => one()),
  );
  const rest = made.slice(FIRST_CARDS);
  const others = told.responses.filter((one) => one.candidate).length;
  const asked = [
    named(order.length - others, "response") + (batch.policy === null ? "" : ` of policy ${batch.policy}`),
    others && named(others, "candidate"),
  ]
    .filter(Boolean)
    .join(", ");
  return [
    h(
      "div",
      { class: "tools" },
      h(
        "p",
        { class: "quiet" },
        asked,
        picks.length ? "" : told.responses.some((one) => "reward" in one) ? "; none was selected" : "; not scored yet",
      ),
      order.length > 1 &&
        choice(
          "order",
          [
            ["reward", "by reward"],
            ["made", "as generated"],
          ],
          shown.order,
          (key) => again({ order: key }),
        ),
    ),
    cards,
    rest.length
      ? h(
          "button",
          {
            class: "more",
            type: "button",
            onclick: (event) => {
              cards.append(...rest.map((one) => one()));
              event.target.remove();
            },
          },
          `show ${named(rest.length, "more response", "more responses")}`,
        )
      : null,
  ].filter(Boolean);
}

function scale(rewards) {
  const known = rewards.filter((one) => Number.isFinite(one));
  const [low, high] = [Math.min(...known), Math.max(...known)];
  return (value) => (high > low ? (value - low) / (high - low) : 1);
}

function card(one, { title, note, badge, won, bars, before }) {
  const value = one.reward ?? one.gold;
  const pieces = before && one.text ? difference(before.text, one.text) : null;
  const kept =
    pieces && pieces.filter(([, fresh]) => !fresh).reduce((sum, [text]) => sum + text.length, 0) / one.text.length;
  const facts = [
    one.reward !== undefined && one.gold !== undefined && `gold ${show(one.gold)}`,
    one.rank !== undefined && `place ${one.rank + 1}`,
    one.drift !== undefined && `${gained(one.drift)} nats from policy 0`,
    one.tokens > 0 && named(one.tokens, "token"),
    one.finish === "length" && "cut by the limit",
    one.finish === "marker" && "cut at a marker",
    pieces && (kept < MARKED ? `${Math.round(100 * (1 - kept))}\u00a0% new` : `${Math.round(100 * kept)}\u00a0% unchanged`),
  ].filter(Boolean);
  return h(
    "article",
    { class: won ? "response won" : "response" },
    h(
      "header",
      {},
      h("h3", {}, title),
      one.candidate && h("span", { class: "badge lost", title: "a candidate from elsewhere" }, inline(one.candidate)),
      badge && h("span", { class: won ? "badge" : "badge lost" }, badge),
      h(
        "span",
        { class: "reward", title: one.reward === undefined && one.gold !== undefined ? "gold reward" : "reward" },
        show(value),
      ),
      Number.isFinite(value) &&
        h(
          "span",
          { class: "meter", "aria-hidden": "true" },
          h("span", { style: { width: `${(100 * bars(value)).toFixed(1)}%` } }),
        ),
    ),
    body(one.text, kept >= MARKED ? pieces : null),
    h(
      "footer",
      {},
      facts.length > 0 && h("p", {}, facts.join(" · ")),
      note && h("p", {}, note),
      one.parts &&
        h(
          "dl",
          {},
          Object.entries(one.parts).map(([name, part]) => [h("dt", {}, inline(name)), h("dd", {}, show(part))]),
        ),
      one.error && h("p", { class: "why" }, "no reward: ", inline(one.error)),
      one.dropped && h("p", { class: "why" }, "dropped: ", inline(one.dropped)),
    ),
  );
}

// A response; of a long one the beginning, until it is opened.
function body(text, pieces) {
  if (!text.trim()) return h("p", { class: "nothing" }, "(empty)");
  const query = shown.q.toLowerCase();
  const all = () => (pieces ? compared(pieces, query) : marked(text, query)).flat(Infinity);
  if (text.length <= LONG) return prose(text, all());
  const part = prose(text, marked(text.slice(0, LONG), query));
  const open = h(
    "button",
    {
      class: "more",
      type: "button",
      onclick: () => {
        part.replaceChildren(...all());
        open.remove();
      },
    },
    `show all ${named(text.length, "character")}`,
  );
  return h("div", {}, part, open);
}

const compared = (pieces, query) =>
  pieces.map(([text, fresh]) => (fresh ? h("ins", {}, marked(text, query)) : marked(text, query)));
