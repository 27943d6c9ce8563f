// Figures as inline SVG: drawn anew for the width there is, with the values under the pointer or the arrow keys.

const SERIES = [
  { key: "reward/best_of_k", name: "training prompts, best of K", colour: "var(--c0)", mark: "circle", dash: "" },
  { key: "reward/mean", name: "training prompts, mean of K", colour: "var(--c1)", mark: "square", dash: "7 3" },
  { key: "reward/eval", name: "held-out prompts, mean", colour: "var(--c2)", mark: "triangle", dash: "2 3" },
  { key: "gold/eval", name: "held-out prompts, gold reward", colour: "var(--c3)", mark: "diamond", dash: "7 3 2 3" },
];
const NORMAL_95 = 1.96;
const drawings = []; // of all figures: draws it for a width, or for the room it has
const MARGIN = { top: 12, right: 14, bottom: 40, left: 54 };

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++)
    found.push(Number((n * step).toPrecision(12)));
  return found;
}

function range(values, room = 0.06) {
  const known = values.filter((one) => Number.isFinite(one));
  let [low, high] = [Math.min(...known), Math.max(...known)];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  return [low - (high - low) * room, high + (high - low) * room];
}

const SHAPES = {
  circle: (x, y) => s("circle", { cx: x, cy: y, r: 3.6 }),
  square: (x, y) => s("rect", { x: x - 3.3, y: y - 3.3, width: 6.6, height: 6.6 }),
  triangle: (x, y) => s("path", { d: `M${x} ${y - 4.4}l4.2 7.6h-8.4z` }),
  diamond: (x, y) => s("path", { d: `M${x} ${y - 4.6}l4.4 4.6l-4.4 4.6l-4.4 -4.6z` }),
};

function swatch(one) {
  const line = {
    x1: 1,
    x2: 33,
    y1: 7,
    y2: 7,
    class: "line",
    "stroke-dasharray": one.dash,
    style: { stroke: one.colour },
  };
  const dot = one.mark && s("g", { class: "dot", style: { fill: one.colour } }, SHAPES[one.mark](17, 7));
  return s("svg", { width: 34, height: 14, "aria-hidden": "true" }, s("line", line), dot);
}

const patch = (colour, faint) => h("span", { class: faint ? "patch faint" : "patch", style: { "--colour": colour } });

// A frame: axes, grid, and scales from values to places. x: [low, high], y: [low, high].
function frame(width, height, { x, y, xTicks, xLabel, yLabel, xScale = (value) => value, xForm = String }) {
  const [right, bottom] = [width - MARGIN.right, height - MARGIN.bottom];
  const X = (value) =>
    MARGIN.left + ((xScale(value) - xScale(x[0])) / (xScale(x[1]) - xScale(x[0]) || 1)) * (right - MARGIN.left);
  const Y = (value) => bottom - ((value - y[0]) / (y[1] - y[0])) * (bottom - MARGIN.top);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, height });
  for (const value of ticks(y[0], y[1], 5)) {
    svg.append(s("line", { class: "grid", x1: MARGIN.left, x2: right, y1: Y(value), y2: Y(value) }));
    svg.append(
      s("text", { class: "tick", x: MARGIN.left - 8, y: Y(value) + 4, "text-anchor": "end" }, show(value, "tick")),
    );
  }
  const every = Math.ceil((xTicks.length * 34) / (right - MARGIN.left));
  xTicks.forEach((value, place) => {
    if (place % every) return;
    svg.append(s("text", { class: "tick", x: X(value), y: bottom + 18, "text-anchor": "middle" }, xForm(value)));
  });
  svg.append(s("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }));
  svg.append(
    s("text", { class: "label", x: (MARGIN.left + right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel),
  );
  const middle = (MARGIN.top + bottom) / 2;
  svg.append(
    s("text", { class: "label", "text-anchor": "middle", transform: `translate(13 ${middle}) rotate(-90)` }, yLabel),
  );
  return { svg, X, Y, right, bottom };
}

// A figure: `draw(width)` gives the svg, the places of its stops along x, and what is told at each of them.
function figure({ title, note, legend, told, draw }) {
  const canvas = h("div", { class: "canvas", tabindex: 0, role: "img", "aria-label": told });
  const tip = h("div", { class: "tip", role: "status", hidden: true });
  const rule = s("line", { class: "rule", hidden: true });
  let drawn = null;
  let at = -1;

  const redraw = (width) => {
    if (width < 40 || (drawn && drawn.width === width)) return;
    drawn = { width, ...draw(width) };
    drawn.svg.append(rule);
    canvas.replaceChildren(drawn.svg, tip);
    leave();
  };
  const stop = (place) => {
    at = Math.max(0, Math.min(drawn.stops.length - 1, place));
    const x = drawn.stops[at];
    const box = canvas.clientWidth / drawn.width;
    for (const [name, value] of [
      ["x1", x],
      ["x2", x],
      ["y1", MARGIN.top],
      ["y2", drawn.bottom],
    ])
      rule.setAttribute(name, value);
    rule.removeAttribute("hidden");
    tip.hidden = false;
    tip.replaceChildren(...drawn.tell(at));
    const half = tip.offsetWidth / 2;
    const beside = x * box + half * 2 + 16 < canvas.clientWidth ? x * box + 12 : x * box - half * 2 - 12;
    tip.style.setProperty("left", `${Math.max(0, beside)}px`);
  };
  const leave = () => {
    at = -1;
    tip.hidden = true;
    rule.setAttribute("hidden", "");
  };
  canvas.addEventListener("pointermove", (event) => {
    const x = ((event.clientX - canvas.getBoundingClientRect().left) * drawn.width) / canvas.clientWidth;
    stop(
      drawn.stops.reduce((best, one, place) => (Math.abs(one - x) < Math.abs(drawn.stops[best] - x) ? place : best), 0),
    );
  });
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) stop(at + step);
    if (event.key === "Escape") leave();
    if (step) event.preventDefault();
  });
  new ResizeObserver(() => redraw(canvas.clientWidth)).observe(canvas);
  drawings.push((width = canvas.clientWidth) => redraw(width));
  return h(
    "figure",
    { class: "card" },
    h(
      "figcaption",
      {},
      h("h3", {}, title),
      note && h("p", { class: "quiet" }, note),
      legend && h("p", { class: "legend" }, legend),
    ),
    canvas,
  );
}

const tipRow = (before, name, value) => h("span", { class: "tiprow" }, before, h("span", {}, name), h("b", {}, value));

function path(points, X, Y) {
  return points.map(([x, y], place) => `${place ? "L" : "M"}${X(x).toFixed(2)} ${Y(y).toFixed(2)}`).join("");
}

// Figures of metrics.jsonl by policy, with a band of 95 % where a standard error is known.
function curves({ title, note, series, yLabel, form = "reward", more = () => [] }) {
  const known = (row, key) => Number.isFinite(row[key]);
  const lines = series
    .map((one) => ({ ...one, rows: facts.rows.filter((row) => known(row, one.key)) }))
    .filter((one) => one.rows.length);
  if (!lines.length) return null;
  const error = (row, key) => NORMAL_95 * (row[`${key}_se`] || 0);
  const partial = (row, key) => row[`${key}_failed`] > 0;
  const anyPartial = lines.some((one) => one.rows.some((row) => partial(row, one.key)));
  const banded = lines.some((one) => one.rows.some((row) => error(row, one.key)));
  const stops = facts.rows.filter((row) => lines.some((one) => known(row, one.key)));
  const all = lines.flatMap((one) =>
    one.rows.flatMap((row) => [row[one.key] - error(row, one.key), row[one.key] + error(row, one.key)]),
  );
  const legend = [
    ...lines.map((one) => h("span", {}, swatch(one), one.name)),
    banded && h("span", {}, patch("var(--quiet)", true), "95 % interval"),
    anyPartial && h("span", {}, "open points: some rewards are missing"),
  ];
  const draw = (width) => {
    const xs = stops.map((row) => row.iteration);
    const room = Math.max(0.3, (xs[xs.length - 1] - xs[0]) * 0.03);
    const made = frame(width, 300, {
      x: [xs[0] - room, xs[xs.length - 1] + room],
      y: range(all),
      xTicks: xs,
      xLabel: "policy (fine-tunings done)",
      yLabel,
    });
    const { svg, X, Y } = made;
    for (const { key, rows, colour, dash, mark } of lines) {
      const edge = (sign) => rows.map((row) => [row.iteration, row[key] + sign * error(row, key)]);
      if (banded)
        svg.append(
          s("path", {
            class: "band",
            d: `${path([...edge(1), ...edge(-1).reverse()], X, Y)}Z`,
            style: { fill: colour },
          }),
        );
      svg.append(
        s("path", {
          class: "line",
          d: path(
            rows.map((row) => [row.iteration, row[key]]),
            X,
            Y,
          ),
          "stroke-dasharray": dash,
          style: { stroke: colour },
        }),
      );
      const every = Math.ceil(rows.length / 24);
      const dots = rows
        .filter((_, place) => place % every === 0)
        .map((row) => {
          const dot = SHAPES[mark](X(row.iteration), Y(row[key]));
          if (partial(row, key)) Object.assign(dot.style, { fill: "var(--sheet)", stroke: colour, strokeWidth: 1.6 });
          return dot;
        });
      svg.append(s("g", { class: "dot", style: { fill: colour } }, dots));
    }
    return {
      svg,
      bottom: made.bottom,
      stops: xs.map(X),
      tell: (place) => [
        h("b", {}, `policy ${stops[place].iteration}`),
        ...lines
          .filter((one) => known(stops[place], one.key))
          .map((one) => {
            const spread = error(stops[place], one.key);
            return tipRow(
              swatch(one),
              one.name,
              show(stops[place][one.key], form) +
                (spread ? ` ± ${show(spread, form)}` : "") +
                (partial(stops[place], one.key) ? `, over ${stops[place][`${one.key}_n`]} prompts` : ""),
            );
          }),
        ...more(stops[place]),
      ],
    };
  };
  const told = lines
    .map((one) => `${one.name}: ${one.rows.map((row) => show(row[one.key], form)).join(", ")}`)
    .join("; ");
  return figure({
    title,
    note,
    legend,
    told: `${title}. By policy: ${told}. Arrow keys step through the policies.`,
    draw,
  });
}

// Half a violin: a histogram turned upright, its width the share of responses.
function half({ bins, quantiles, count }, place, reach, side, Y, look) {
  const [low, high] = [quantiles[0], quantiles[6]];
  const step = (high - low) / bins.length;
  const most = Math.max(...bins);
  if (!step)
    return s("line", { ...look, x1: place, x2: place + side * reach, y1: Y(low), y2: Y(low), "stroke-width": 3 });
  const points = bins.flatMap((one, n) => {
    const x = (place + side * reach * (one / most)).toFixed(2);
    return [`${x} ${Y(low + n * step).toFixed(2)}`, `${x} ${Y(low + (n + 1) * step).toFixed(2)}`];
  });
  return s("path", { ...look, d: `M${place} ${Y(low)}L${points.join("L")}L${place} ${Y(high)}Z`, "data-count": count });
}

function distributions() {
  const training = facts.batches.filter((one) => one.kind !== "held-out" && one.rewards);
  const batches = training.length ? training : facts.batches.filter((one) => one.rewards);
  if (!batches.length) return null;
  const chosen = batches.some((one) => one.selected);
  const place = (one) => one.policy ?? 0;
  const draw = (width) => {
    const xs = batches.map(place);
    const made = frame(width, 300, {
      x: [xs[0] - 0.6, xs[xs.length - 1] + 0.6],
      y: range(
        batches.flatMap((one) => [one.rewards.quantiles[0], one.rewards.quantiles[6]]),
        0.03,
      ),
      xTicks: batches[0].policy === null ? [] : xs,
      xLabel: batches[0].policy === null ? "" : "policy that answered",
      yLabel: "reward (own units)",
    });
    const { svg, X, Y } = made;
    const reach = Math.min(46, (X(1) - X(0)) * 0.44);
    for (const one of batches) {
      const x = X(place(one));
      svg.append(
        half(one.rewards, x, reach, -1, Y, { class: "violin", style: { fill: "var(--c1)", stroke: "var(--c1)" } }),
      );
      const right = one.selected || one.rewards;
      const colour = one.selected ? "var(--c0)" : "var(--c1)";
      svg.append(half(right, x, reach, 1, Y, { class: "violin", style: { fill: colour, stroke: colour } }));
      for (const [{ quantiles }, side] of [
        [one.rewards, -1],
        [right, 1],
      ]) {
        svg.append(
          s("line", { class: "median", x1: x, x2: x + side * reach * 0.7, y1: Y(quantiles[3]), y2: Y(quantiles[3]) }),
        );
      }
    }
    return {
      svg,
      bottom: made.bottom,
      stops: xs.map(X),
      tell: (number) => [
        h("b", {}, batches[number].policy === null ? "all responses" : `policy ${batches[number].policy}`),
        ...[
          ["all", batches[number].rewards, "var(--c1)"],
          ["selected", batches[number].selected, "var(--c0)"],
        ]
          .filter(([, one]) => one)
          .map(([name, { quantiles, count }, colour]) =>
            tipRow(
              patch(colour),
              `${name} (${counts.format(count)})`,
              `${show(quantiles[3])}  [${show(quantiles[1])}, ${show(quantiles[5])}]`,
            ),
          ),
        h("span", { class: "quiet" }, "median [5 %, 95 %]"),
      ],
    };
  };
  const told = batches.map((one) => show(one.rewards.quantiles[3])).join(", ");
  return figure({
    title: "Distribution of rewards",
    note: chosen
      ? "Left: all responses. Right: those that were selected. A line marks each median."
      : "A line marks each median.",
    legend: [
      h("span", {}, patch("var(--c1)"), "all responses"),
      chosen && h("span", {}, patch("var(--c0)"), "selected"),
    ],
    told: `Distribution of rewards. Medians by policy: ${told}. Arrow keys step through the policies.`,
    draw,
  });
}

// The expected best of n, a line for each policy, from pale to dark.
function bestOfN() {
  const lines = facts.batches.filter((one) => one.kind === "training" && one.reward_at_n.length > 1);
  if (!lines.length) return null;
  const ns = lines
    .reduce((most, one) => (one.reward_at_n.length > most.length ? one.reward_at_n : most), [])
    .map(([n]) => n);
  const colour = (place) => {
    const share = lines.length > 1 ? Math.round((100 * place) / (lines.length - 1)) : 100;
    return `color-mix(in oklab, var(--late) ${share}%, var(--early))`;
  };
  const draw = (width) => {
    const made = frame(width, 300, {
      x: [ns[0], ns[ns.length - 1] * 1.04],
      y: range(lines.flatMap((one) => one.reward_at_n.map(([, value]) => value))),
      xTicks: ns,
      xLabel: "n, responses to choose from",
      yLabel: "expected best reward",
      xScale: Math.log2,
    });
    const { svg, X, Y } = made;
    lines.forEach((one, place) => {
      svg.append(s("path", { class: "line", d: path(one.reward_at_n, X, Y), style: { stroke: colour(place) } }));
      svg.append(
        s(
          "g",
          { class: "dot", style: { fill: colour(place) } },
          one.reward_at_n.map(([n, value]) => SHAPES.circle(X(n), Y(value))),
        ),
      );
    });
    return {
      svg,
      bottom: made.bottom,
      stops: ns.map(X),
      tell: (at) => [
        h("b", {}, `best of ${ns[at]}`),
        ...lines
          .map((one, place) => [one, colour(place)])
          .reverse()
          .slice(0, 12)
          .map(([one, paint]) => {
            const found = one.reward_at_n.find(([n]) => n === ns[at]);
            return tipRow(patch(paint), `policy ${one.policy}`, show(found && found[1]));
          }),
      ],
    };
  };
  const ends = lines.length > 1 ? [lines[0], lines[lines.length - 1]] : lines;
  return figure({
    title: "Best of n",
    note: "What choosing the best of n responses gains, estimated without bias from K.",
    legend: ends.map((one) => h("span", {}, patch(colour(lines.indexOf(one))), `policy ${one.policy}`)),
    told: `Expected best reward of n responses. ${ends.map((one) => `Policy ${one.policy}: ${one.reward_at_n.map(([n, value]) => `n ${n} ${show(value)}`).join(", ")}`).join("; ")}.`,
    draw,
  });
}

const lengths = () =>
  curves({
    title: "Length of responses",
    note: "A reward that likes long or short responses shows here first.",
    yLabel: "tokens",
    form: "number",
    series: [
      { key: "response/tokens", name: "training prompts", colour: "var(--c1)", mark: "square", dash: "7 3" },
      { key: "eval/tokens", name: "held-out prompts", colour: "var(--c2)", mark: "triangle", dash: "2 3" },
    ],
    more: (row) =>
      "response/truncated" in row
        ? [h("span", { class: "quiet" }, `${show(row["response/truncated"], "share")} cut by the limit`)]
        : [],
  });

// A line as small as a word, for lists; values may have gaps.
function spark(values, width = 72, height = 22) {
  const known = values.map((value, place) => [place, value]).filter(([, value]) => Number.isFinite(value));
  if (known.length < 2) return null;
  const [low, high] = range(
    known.map(([, value]) => value),
    0,
  );
  const X = (place) => 3 + (place / (values.length - 1)) * (width - 6);
  const Y = (value) => height - 4 - ((value - low) / (high - low)) * (height - 8);
  const [last, value] = known[known.length - 1];
  return s(
    "svg",
    { class: "spark", width, height, "aria-hidden": "true" },
    s("path", { class: "line", d: path(known, X, Y) }),
    s("circle", { cx: X(last), cy: Y(value), r: 2.4 }),
  );
}
