// The search page. It contacts only its own server.

const $ = (id) => document.getElementById(id);
const LARGE = 6e6; // bytes of a file above which a smaller copy is sent
const SIDE = 2048; // pixels of that copy's longer side

let about = null;
let query = null; // {image: data URL} or {row, version, id}
let region = null; // {x, y, w, h} in tokens
let others = []; // [{row, version, id, weight, image}]: further pictures in the query
let running = null;
const uploads = new Map(); // pictures of the history, by number

// ---- asking

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(path, body && { method: "POST", headers, body: JSON.stringify(body), signal });
  if (answer.status === 401) { $("sign-in").showModal(); throw new Error("A token is required."); }
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.error.message), { status: answer.status });
  return found;
}

function source() {
  const one = query.image ? { image: query.image } : query.version ? { row: query.row } : { id: query.id };
  const version = others[0]?.version ?? query.version;
  if (!others.length) return { ...one, ...(version && { version }) };
  return { queries: [{ ...one, weight: 1 }, ...others.map(({ row, weight }) => ({ row, weight }))], version };
}

function asked() {
  const body = { ...source(), k: Math.min(+$("k").value, about.rows, about.most_neighbors) };
  Object.assign(body, filter());
  if (region) body.region = shares(region);
  else if ($("rescore").checked) body.rescore = 10;
  if (+$("group").value >= 0) body.group = Math.floor(+$("group").value / 100 * about.n_bits);
  if (!body.rescore && +$("radius").value < 100) body.radius = Math.floor(+$("radius").value / 100 * bitsCompared());
  return body;
}

// An expression such as label = "cat", or a part of the path.
function filter() {
  const text = $("filter").value.trim();
  if (!text) return {};
  const compares = /[=<>]|\s(like|ilike|in|is|between)\s/i.test(` ${text} `) || Object.hasOwn(about.columns, text);
  return compares ? { where: text } : { match: /[*?]/.test(text) ? text : `*${text}*` };
}

async function search() {
  if (!query || !about || !about.rows) return;
  running?.abort();
  const mine = running = new AbortController();
  say("Searching …");
  $("hits").classList.add("busy");
  try {
    let found;
    try {
      found = await ask("search", asked(), mine.signal);
    } catch (error) {
      if (error.status !== 410) throw error;
      delete query.version; // the index has changed since: its row numbers now mean other pictures
      setOthers([]);
      found = await ask("search", asked(), mine.signal);
    }
    show(found);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("hits").replaceChildren();
    say(error.message, true);
  } finally {
    if (running === mine) $("hits").classList.remove("busy");
  }
}

// ---- results

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

// Without a query: pictures from all over the index, to begin with.
function sample() {
  const count = Math.min(+$("k").value, about.rows);
  say(count ? "Drop a picture anywhere on this page, or click one of these." : "The index holds no pictures yet.");
  $("hits").replaceChildren(...Array.from({ length: count }, (_, number) => {
    const row = Math.floor(number * about.rows / count), address = `image/${row}?version=${about.version}`;
    const button = element("button", "hit", { type: "button", "aria-label": `Picture ${row + 1} of the index: search for similar pictures` });
    const picture = element("span", "picture");
    const photo = element("img", "", { alt: "", loading: "lazy", decoding: "async" });
    photo.dataset.photo = address;
    picture.append(photo);
    button.append(picture);
    button.addEventListener("click", () => goTo({ row, version: about.version }));
    paint(photo, address);
    return button;
  }));
}

function show(found) {
  const own = query.image || query.id !== undefined ? null : found.hits.find((hit) => hit.row === query.row);
  if (own) { // a picture of the sample, whose path was not known
    query.id = String(own.id);
    history.replaceState(query, "", `?id=${encodeURIComponent(query.id)}`);
    name();
  }
  const part = (others.length ? ` to ${others.length + 1} together` : "") + (region ? " by the part you drew" : "");
  say(found.hits.length ? `The nearest ${found.hits.length} of ${found.rows.toLocaleString("en")} pictures${part}.`
    : !$("filter").value.trim() ? "No picture is that close."
    : asked().radius === undefined ? "No picture matches the filter." : "No picture that matches the filter is that close.");
  $("hits").replaceChildren(...found.hits.map((hit) => card(hit, found)));
}

function card(hit, found) {
  const button = element("button", "hit", { type: "button", title: String(hit.id) });
  const picture = element("span", "picture");
  const photo = element("img", "", { alt: "", loading: "lazy", decoding: "async" });
  photo.dataset.photo = hit.image;
  picture.append(photo);
  const cosine = found.metric === "cosine";
  const alike = cosine ? 1 - hit.distance : 1 - 2 * hit.distance / found.n_bits; // unrelated pictures differ in half of the bits
  const text = element("span", "text");
  const numbers = element("span", "numbers");
  numbers.append(element("span", "", {}, cosine ? hit.distance.toFixed(3) : `${Math.round(hit.distance)} bits`));
  if (!cosine) numbers.append(element("span", "", {}, `${(100 * (1 - hit.distance / found.n_bits)).toFixed(1)} % same`));
  const bar = element("span", "bar");
  const filled = element("i");
  filled.style.width = `${100 * Math.min(1, Math.max(0, alike))}%`;
  bar.append(filled);
  text.append(element("span", "id", {}, String(hit.id).split("/").pop()), numbers, bar);
  if (hit.members.length) picture.append(element("span", "members", {}, `+${hit.members.length} alike`));
  button.append(picture, text);
  const told = Object.entries(hit.columns).map(([name, value]) => `${name}: ${value ?? "none"}`);
  told.push(...hit.members.map((each) => `near-duplicate: ${each.id}`));
  if (told.length) button.title = [hit.id, ...told].join("\n");
  button.setAttribute("aria-label", `${hit.id}, ${numbers.textContent}: search for similar pictures`);
  button.addEventListener("click", () => goTo({ row: hit.row, version: found.version, id: String(hit.id) }));
  paint(photo, hit.image);
  if (!about.together) return button;
  const held = element("div", "card");
  const choose = element("span", "choose");
  for (const [sign, weight, says] of [["+", 1, "Also like"], ["−", -0.5, "Unlike"]]) {
    const add = element("button", "", { type: "button", tabindex: "-1", title: says, "aria-label": `${says} ${hit.id}` }, sign);
    add.addEventListener("click", () => include(hit, found.version, weight));
    choose.append(add);
  }
  button.addEventListener("keydown", (event) => {
    const weight = { "+": 1, "-": -0.5 }[event.key];
    if (weight) { event.preventDefault(); include(hit, found.version, weight); }
  });
  held.append(button, choose);
  return held;
}

// Add a picture to the query: results should be like it, or unlike it.
function include(hit, version, weight) {
  const known = others.filter((each) => each.row !== hit.row && each.version === version);
  setOthers([...known, { row: hit.row, version, id: String(hit.id), weight, image: hit.image }]);
  search();
}

function setOthers(next) {
  others = next;
  $("together").hidden = !others.length;
  $("others").replaceChildren(...others.map((each) => {
    const item = element("li", each.weight < 0 ? "unlike" : "");
    const photo = element("img", "", { alt: "", decoding: "async" });
    paint(photo, each.image);
    const drop = element("button", "", { type: "button", "aria-label": `Remove ${each.id}`, title: "Remove" }, "×");
    drop.addEventListener("click", () => { setOthers(others.filter((other) => other !== each)); search(); });
    item.append(photo, element("span", "sign", {}, each.weight < 0 ? "−" : "+"), element("span", "id", { title: each.id }, each.id.split("/").pop()), drop);
    return item;
  }));
}

function element(tag, className = "", attributes = {}, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

// A row's photograph, or what its bits keep; the latter also if the photograph cannot be found.
function paint(image, address) {
  const decoded = address.includes("?") ? `${address}&decoded=true` : `${address}?decoded=true`;
  const bits = $("bits").checked && about.decodable;
  image.onerror = () => {
    image.onerror = null;
    if (bits || !about.decodable) return;
    image.classList.add("decoded");
    image.src = decoded;
  };
  image.classList.toggle("decoded", bits);
  image.src = bits ? decoded : address;
}

function name() {
  $("name").textContent = $("name").title = query?.name ?? query?.id ?? "";
}

async function paintQuery() {
  const photo = $("photo");
  $("frame").classList.toggle("empty", !query);
  $("frame").setAttribute("aria-label", query ? "The query; arrow keys choose a part of it" : "Open a picture to search for");
  $("prompt").hidden = Boolean(query);
  photo.hidden = !query;
  $("hint").hidden = !query || !about?.grid;
  name();
  drawRegion();
  if (!query) return;
  if (!query.image) {
    if (query.version) paint(photo, `image/${query.row}?version=${query.version}`);
    return;
  }
  const mine = query;
  const wanted = async () => query.decoded ??= (await ask("decode", { image: mine.image })).images[0];
  photo.classList.toggle("decoded", $("bits").checked);
  photo.onerror = async () => { // a format that browsers cannot show
    photo.onerror = null;
    const decoded = await wanted().catch(() => null);
    if (decoded && query === mine) photo.src = decoded;
  };
  const shown = $("bits").checked && about?.decodable ? await wanted().catch(() => mine.image) : mine.image;
  if (query === mine) photo.src = shown;
}

// ---- the query, and the history of earlier ones

function goTo(next) {
  region = null;
  setOthers([]);
  query = next;
  const number = next.image ? uploads.size : null;
  if (next.image) uploads.set(number, next);
  const address = next.id === undefined ? location.pathname : `?id=${encodeURIComponent(next.id)}`;
  history.pushState(next.image ? { number } : next, "", address);
  begin();
}

async function begin() {
  const searched = search();
  paintQuery();
  scrollTo({ top: 0 });
  await searched;
}

addEventListener("popstate", ({ state }) => {
  region = null;
  setOthers([]);
  query = state === null ? fromAddress() : state.number === undefined ? state : uploads.get(state.number) ?? null;
  if (query) begin();
  else { paintQuery(); sample(); }
});

function fromAddress() {
  const id = new URLSearchParams(location.search).get("id");
  return id === null ? null : { id };
}

async function byId(id) {
  goTo({ id });
  try { // its row is needed to show its picture
    const found = await ask("search", { id, k: 1, ids: [id] });
    const hit = found.hits.find((each) => String(each.id) === id);
    if (hit && query.id === id) { query = { ...query, row: hit.row, version: found.version }; paintQuery(); }
  } catch { /* the search itself reports the error */ }
}

async function take(file) {
  if (!file) return;
  try {
    const image = await dataUrl(file.size > LARGE ? await smaller(file) : file);
    goTo({ image, name: file.name || "pasted picture" });
  } catch (error) {
    say(`${file.name || "The picture"} cannot be read: ${error.message}`, true);
  }
}

function dataUrl(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
}

async function smaller(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return file;
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = Object.assign(document.createElement("canvas"), {
    width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)),
  });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/webp", 0.95));
}

// ---- a region of the picture, in tokens

const shares = ({ x, y, w, h }) => {
  const [columns, rows] = about.grid;
  return { x: x / columns, y: y / rows, w: w / columns, h: h / rows };
};

function bitsCompared() {
  if (!region) return about.n_bits;
  const [columns, rows] = about.grid;
  return about.token_bits / (columns * rows) * region.w * region.h;
}

function drawRegion() {
  $("region").hidden = $("whole").hidden = !region;
  if (!region) return;
  const { x, y, w, h } = shares(region);
  Object.assign($("region").style, {
    left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * w}%`, height: `${100 * h}%`,
  });
}

function setRegion(next, again = true) {
  region = next;
  drawRegion();
  if (again) search();
}

let start = null;
let dragged = false;

function at(event) {
  const box = $("frame").getBoundingClientRect();
  const within = (value) => Math.min(0.9999, Math.max(0, value));
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
}

$("frame").addEventListener("pointerdown", (event) => {
  if (!query || !about.grid || event.button) return;
  $("frame").setPointerCapture(event.pointerId);
  start = at(event);
  dragged = false;
});
$("frame").addEventListener("pointermove", (event) => {
  if (!start) return;
  const [x, y] = at(event);
  if (!dragged && Math.hypot(x - start[0], y - start[1]) < 0.03) return;
  dragged = true;
  const [columns, rows] = about.grid;
  const left = Math.floor(Math.min(x, start[0]) * columns), top = Math.floor(Math.min(y, start[1]) * rows);
  const right = Math.floor(Math.max(x, start[0]) * columns) + 1, bottom = Math.floor(Math.max(y, start[1]) * rows) + 1;
  setRegion({ x: left, y: top, w: right - left, h: bottom - top }, false);
});
$("frame").addEventListener("pointerup", () => { if (start && dragged) search(); start = null; });
$("frame").addEventListener("pointercancel", () => { start = null; });
$("frame").addEventListener("click", () => { if (!query) $("file").click(); });
$("frame").addEventListener("keydown", (event) => {
  if (!query) { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("file").click(); } return; }
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || !about.grid) return;
  event.preventDefault();
  const [columns, rows] = about.grid;
  const now = region ?? { x: columns >> 2, y: rows >> 2, w: Math.ceil(columns / 2), h: Math.ceil(rows / 2) };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  if (event.shiftKey) {
    setRegion({ ...now, w: clamp(now.w + step[0], 1, columns - now.x), h: clamp(now.h + step[1], 1, rows - now.y) });
  } else {
    setRegion({ ...now, x: clamp(now.x + step[0], 0, columns - now.w), y: clamp(now.y + step[1], 0, rows - now.h) });
  }
});

// ---- files, keys, options

for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => { event.preventDefault(); $("frame").classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) addEventListener(kind, () => $("frame").classList.remove("over"));
addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); });
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) { event.preventDefault(); take(file); }
});
$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
$("whole").addEventListener("click", () => setRegion(null));
$("by-id").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = $("id").value.trim();
  if (id) byId(id);
});
$("only").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("filter").addEventListener("search", () => { if (!$("filter").value) search(); }); // its clear button was clicked
$("bits").addEventListener("change", () => {
  paintQuery();
  for (const image of $("hits").querySelectorAll("img")) paint(image, image.dataset.photo);
});
$("rescore").addEventListener("change", () => { options(); search(); });
for (const id of ["k", "radius", "group"]) {
  $(id).addEventListener("input", options);
  $(id).addEventListener("change", search);
}

function options() {
  $("k-value").textContent = $("k").value;
  $("group-value").textContent = $("group").value === "-1" ? "off" : `up to ${$("group").value} % of the bits`;
  $("radius-value").textContent = $("radius").value === "100" ? "any" : `${$("radius").value} % of the bits`;
  $("radius").disabled = $("rescore").checked && !region;
}

addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox]):not([type=range])");
  if (event.ctrlKey || event.metaKey || event.altKey || typing || $("sign-in").open) return;
  if (event.key === "/") { event.preventDefault(); $("id").focus(); }
  else if (event.key === "f") { event.preventDefault(); $("filter").focus(); }
  else if (event.key === "o") $("file").click();
  else if (event.key === "b" && !$("bits").disabled) $("bits").click();
  else if (event.key === "Escape" && region) setRegion(null);
  else if (event.key.startsWith("Arrow") && !event.target.matches("#frame, input")) move(event);
});

// Move between pictures in the grid.
function move(event) {
  const all = [...$("hits").querySelectorAll("button.hit")];
  if (!all.length) return;
  const columns = all.filter((each) => each.getBoundingClientRect().top === all[0].getBoundingClientRect().top).length;
  const now = all.indexOf(document.activeElement);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const next = now < 0 ? 0 : now + step;
  if (!all[next]) return;
  event.preventDefault();
  all[next].focus();
}

$("sign-in").addEventListener("close", async () => {
  const headers = { Authorization: `Bearer ${$("token").value}` };
  const answer = await fetch("session", { method: "POST", headers }).catch(() => null);
  if (answer?.ok) return location.reload();
  $("sign-in-error").textContent = answer?.status === 401 ? "This is not the token." : "The server is not responding.";
  $("sign-in").showModal();
});
$("sign-in").addEventListener("cancel", (event) => event.preventDefault());

// ---- start

if (matchMedia("(max-width: 760px)").matches) $("options").open = false;
try {
  about = await ask("about");
  const rows = about.rows.toLocaleString("en");
  $("about").textContent = about.version ? `${rows} pictures · ${about.n_bits.toLocaleString("en")} bits · ${about.model}` : about.model;
  $("rescore-row").hidden = !about.rescore;
  $("group-row").hidden = !about.rows;
  $("bits").disabled = !about.decodable;
  const columns = Object.entries(about.columns);
  $("columns").textContent = columns.length ? `Columns: ${columns.map(([name, kind]) => `${name} (${kind})`).join(", ")}` : "";
  if (columns.some(([name]) => name === "label")) $("filter").placeholder = 'label = "cat", or part of the path';
  options();
  query = fromAddress();
  if (!about.version) say("This server has no index to search.", true);
  else if (query) byId(query.id);
  else sample();
} catch (error) {
  say(error.message, true);
}
