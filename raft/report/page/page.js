"use strict";
// The page of `raft report`: how elements are made, how packed texts are unpacked, and how text is shown.
// What a model wrote is hostile: it reaches the page through text nodes alone, never as HTML.

const $ = (id) => document.getElementById(id);
const facts = JSON.parse($("facts").textContent);
const KEPT = 48; // unpacked chunks that stay in memory
const HTML = "http://www.w3.org/1999/xhtml";
const SVG = "http://www.w3.org/2000/svg";

function element(space, tag, attributes, children) {
  const made = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("aria-")) made.setAttribute(name, value);
    else if (value === false) continue;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, one]) => made.style.setProperty(key, one));
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const h = (tag, attributes = {}, ...children) => element(HTML, tag, attributes, children);
const s = (tag, attributes = {}, ...children) => element(SVG, tag, attributes, children);

// ---------------------------------------------------------------- numbers and times

const counts = new Intl.NumberFormat("en");
const rounded = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const fixed = (value) => value.toFixed(Math.abs(value) >= 10 ? 1 : 3);

const FORMS = {
  reward: (value) =>
    signed(Math.abs(value) >= 1000 ? rounded.format(value) : value.toFixed(Math.abs(value) >= 100 ? 1 : 3)),
  number: (value) => signed(Math.abs(value) >= 1000 ? counts.format(Math.round(value)) : fixed(value)),
  tick: (value) => signed(rounded.format(value)),
  count: (value) => counts.format(value),
  share: (value) => `${(100 * value).toFixed(1)}\u00a0%`,
};

const signed = (text) => text.replace("-", "−");

function show(value, form = "reward") {
  if (value === null || value === undefined) return "–";
  return typeof value === "number" ? FORMS[form](value) : String(value);
}

const gained = (value) => (value > 0 ? "+" : "") + show(value);
const named = (count, one, many = `${one}s`) => `${counts.format(count)} ${count === 1 ? one : many}`;

function duration(seconds) {
  const units = (...parts) => parts.map(([count, unit]) => `${count}\u00a0${unit}`).join("\u00a0");
  if (seconds < 9.95) return units([seconds.toFixed(1), "s"]);
  const whole = Math.round(seconds);
  if (whole < 60) return units([whole, "s"]);
  if (whole < 3600) return units([Math.floor(whole / 60), "min"], [whole % 60, "s"]);
  return units([Math.floor(whole / 3600), "h"], [Math.floor((whole % 3600) / 60), "min"]);
}

function moment(seconds) {
  return new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" }).format(new Date(seconds * 1000));
}

// ---------------------------------------------------------------- packed texts

function block(name) {
  // The browser may still be reading the page: a block is whole once something stands behind it.
  return new Promise((resolve, reject) => {
    const look = () => {
      const reading = document.readyState === "loading";
      const found = $(name);
      if (found && (found.nextElementSibling || !reading)) resolve(found.textContent);
      else if (reading) setTimeout(look, 30);
      else reject(new Error(`this page is cut off: its block ${name} is missing`));
    };
    look();
  });
}

async function unpack(name) {
  const packed = await block(name);
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(packed)
    : Uint8Array.from(atob(packed), (one) => one.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const chunks = new Map(); // name -> promise of its text; the oldest use goes first

function chunkText(batch, number) {
  const name = `chunk-${batch.key}-${number}`;
  const text = chunks.get(name) || unpack(name);
  chunks.delete(name);
  chunks.set(name, text);
  if (chunks.size > KEPT) chunks.delete(chunks.keys().next().value);
  return text;
}

function chunkOf(batch, row) {
  let low = 0;
  let high = batch.starts.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (batch.starts[middle] <= row) low = middle;
    else high = middle - 1;
  }
  return low;
}

async function group(batch, row) {
  const number = chunkOf(batch, row);
  const lines = (await chunkText(batch, number)).split("\n");
  return JSON.parse(lines[row - batch.starts[number]]);
}

const FLAGS = { truncated: 1, tied: 2, failed: 4, dropped: 8, empty: 16 };
const indices = new Map();

function index(batch) {
  if (!indices.has(batch.key)) {
    indices.set(
      batch.key,
      unpack(`index-${batch.key}`).then((text) =>
        JSON.parse(`[${text.replaceAll("\n", ",")}]`).map(
          ([id, head, mean, best, worst, gold, longest, flags], row) => ({
            batch,
            row,
            id,
            head,
            mean,
            best,
            worst,
            gold,
            longest,
            flags,
          }),
        ),
      ),
    );
  }
  return indices.get(batch.key);
}

// ---------------------------------------------------------------- text of models

// What acts on a reader unseen: controls, what turns the direction of writing, invisible tags, half surrogates.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|\udb40[\udc00-\udc7f]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function seen(text) {
  const pieces = [];
  let from = 0;
  for (const found of text.matchAll(UNSEEN)) {
    const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    pieces.push(text.slice(from, found.index));
    pieces.push(h("span", { class: "unseen", title: `the character U+${code}` }, `U+${code}`));
    from = found.index + found[0].length;
  }
  pieces.push(text.slice(from));
  return pieces.filter((piece) => piece !== "");
}

function marked(text, query) {
  // The text with what was searched for marked. Lower case may be longer than the text: then nothing is marked.
  const lower = text.toLowerCase();
  if (!query || lower.length !== text.length) return seen(text);
  const pieces = [];
  let from = 0;
  for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, from)) {
    pieces.push(...seen(text.slice(from, at)), h("mark", {}, seen(text.slice(at, at + query.length))));
    from = at + query.length;
  }
  return [...pieces, ...seen(text.slice(from))];
}

function language(text) {
  // Han characters are drawn as in Japanese or Korean where kana or hangul stand beside them.
  if (/[\u3040-\u30ff]/.test(text)) return "ja";
  return /[\uac00-\ud7af]/.test(text) ? "ko" : "";
}

const prose = (text, children, kind = "prose") =>
  h("div", { class: kind, dir: "auto", lang: language(text) }, children);
const inline = (text) => h("bdi", { lang: language(text) }, seen(text));

// ---------------------------------------------------------------- what changed between two texts

const words = new Intl.Segmenter(undefined, { granularity: "word" });
const MOST_CELLS = 16e6; // of the table of a comparison; longer texts are shown without one
const BY_CHANCE = 4; // words

function tokens(text) {
  // Words with the white space behind them; Japanese, which has none, by the dictionary of the browser.
  const found = [];
  for (const { segment } of words.segment(text)) {
    if (found.length && !segment.trim()) found[found.length - 1] += segment;
    else found.push(segment);
  }
  return found;
}

function difference(before, after) {
  // [[text, whether it is new]] of the later text, by the longest run of words that both have; null where that would
  // take too long. A word or two between new ones are the same by chance, and easier to read as new.
  const [a, b] = [tokens(before), tokens(after)];
  if (a.length * b.length > MOST_CELLS) return null;
  const same = shared(
    a.map((one) => one.trim()),
    b.map((one) => one.trim()),
  );
  const runs = [];
  b.forEach((text, place) => {
    const run = runs[runs.length - 1];
    if (run && run.fresh === !same[place]) run.parts.push(text);
    else runs.push({ fresh: !same[place], parts: [text] });
  });
  const pieces = [];
  runs.forEach(({ fresh, parts }, place) => {
    const told = fresh || (parts.length < BY_CHANCE && place > 0 && place < runs.length - 1);
    const text = parts.join("");
    if (pieces.length && pieces[pieces.length - 1][1] === told) pieces[pieces.length - 1][0] += text;
    else pieces.push([text, told]);
  });
  return pieces;
}

function shared(a, b) {
  // Which words of b are in the longest common subsequence of both.
  const width = b.length + 1;
  const common = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const [right, below] = [common[i * width + j + 1], common[(i + 1) * width + j]];
      common[i * width + j] = a[i] === b[j] ? common[(i + 1) * width + j + 1] + 1 : Math.max(right, below);
    }
  }
  const found = b.map(() => false);
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) {
      found[j++] = true;
      i++;
    } else if (common[(i + 1) * width + j] >= common[i * width + j + 1]) i++;
    else j++;
  }
  return found;
}
