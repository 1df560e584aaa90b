// The drawing page: a photograph, marks on it, what to do, and the results. It contacts only its own server.

import { $, address, ask, element, follow, randomSeed, showSamples, told, upload, whenGiven, whenSent } from "./common.js";
import { Marks } from "./marks.js";

const KEY = "bigr-studio";
const MOST_HISTORY = 200;
const SAYS = {
  inpaint: "Mark a part of the photograph to repaint; everything else stays.",
  outpaint: "Extend the photograph on both sides.",
  enrich: "Add detail to the marked area, or everywhere.",
  generate: "New pictures at the model's own size.",
  interpolate: "A transition from one class to another.",
};
const COUNTS = {
  inpaint: ["Versions", "versions"], outpaint: ["Versions", "versions"], enrich: ["Versions", "versions"],
  generate: ["Pictures", "pictures"], interpolate: ["Number of pictures", "frames"],
};

let about = null;
let photo = null; // the one being edited
let shown = null; // the result being shown, or null
let history = []; // pictures, newest first: {id, name, width, height, animated, from}
const earlier = []; // photographs before "continue"
const counts = { inpaint: 1, outpaint: 1, enrich: 1, generate: 4, interpolate: 9 };

const tool = () => document.querySelector("[name=tool]:checked").value;
const kind = () => document.querySelector("[name=kind]:checked").value;
const marks = new Marks($("marks"), () => ({ tool: tool(), size: +$("size").value / 100 }), () => { buttons(); keep(); });

// ---- state kept across reloads

function keep() {
  const fields = Object.fromEntries([...document.querySelectorAll("#press input[id], #press select[id]")]
    .map((each) => [each.id, each.type === "checkbox" ? each.checked : each.value]));
  const state = { photo, shown, history, shapes: marks.shapes, kind: kind(), counts, fields, job: running };
  try {
    localStorage.setItem(KEY, JSON.stringify(state));
  } catch { /* storage is full or blocked: nothing is kept */ }
}

function kept() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch { return {}; }
}

const alive = (picture) => picture && ask(`/pictures/${picture.id}/about`).then(() => picture, () => null);

// ---- the stage

function open(picture, shapes = []) {
  photo = picture;
  marks.open(picture.width, picture.height, shapes);
  for (const [name, value] of [["left", ""], ["top", ""], ["right", ""], ["bottom", ""]]) $("box").elements[name].value = value;
  $("box").elements.right.max = picture.width;
  $("box").elements.bottom.max = picture.height;
  error("photo", "");
  show(null);
}

// Show a result or, for null, the photograph.
function show(picture) {
  shown = picture;
  const at = picture ?? photo;
  $("stage").classList.toggle("empty", !at);
  $("welcome").hidden = Boolean(at);
  $("holder").hidden = !at;
  if (at) image($("photo"), address(at), at);
  $("photo").alt = at ? at.name : "";
  $("marks").hidden = Boolean(picture);
  const before = picture?.from && picture.from.width === picture.width && picture.from.height === picture.height;
  $("compare-row").hidden = $("before").hidden = $("divider").hidden = !before;
  if (before) { image($("before"), address(picture.from), picture.from); compare(); }
  $("shown").hidden = !picture;
  $("box").hidden = Boolean(picture) || !photo;
  $("back").hidden = !photo;
  if (picture) {
    $("shown-name").textContent = `${picture.name}, ${picture.width} × ${picture.height}`;
    $("keep").href = `${address(picture)}/file`;
    $("keep").download = picture.name;
    $("look").href = `/inside/?picture=${picture.id}`;
    $("go-on").hidden = picture.animated;
  }
  buttons();
  list();
  keep();
}

function image(place, source, { width, height }) {
  place.src = source;
  if (width) {
    const scale = Math.max(1, Math.min(8, Math.floor(480 / Math.max(width, height)))); // small pictures are enlarged
    place.style.width = place.id === "photo" ? `${width * scale}px` : "";
    $("holder").classList.toggle("small", scale > 1);
  }
}

function compare() {
  const share = $("compare").value;
  $("before").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  $("divider").style.left = `${share}%`;
}

function buttons() {
  $("undo").disabled = shown ? !photo : !(marks.shapes.length || earlier.length);
  $("redo").disabled = Boolean(shown) || !marks.undone.length;
  $("clear").disabled = Boolean(shown) || marks.empty || !marks.shapes.length;
}

function list() {
  $("history").replaceChildren(...history.map((picture) => {
    const button = element("button", { type: "button", title: picture.name, "aria-label": `Show ${picture.name}` },
      element("img", { src: address(picture), alt: "", loading: "lazy" }));
    if (shown?.id === picture.id) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => show(picture));
    return button;
  }));
  $("kept").textContent = history.length ? `Every picture is saved in ${about.out} and records how it was made.`
    : `Pictures appear here and are saved in ${about.out}.`;
}

function undo() {
  if (shown) {
    if (photo) show(null);
  } else if (!marks.undo() && earlier.length) {
    const before = earlier.pop();
    open(before.photo, before.shapes);
  }
}

async function take(file) {
  error("photo", "");
  try {
    open(await upload(file));
  } catch (wrong) { error("photo", wrong.message); }
}

// ---- errors next to their fields

function error(field, message) {
  if (field === "photo" || field === null) (field ? $("photo-error") : $("press-error")).textContent = message;
  if (field === "photo" && !photo && message) $("press-error").textContent = message;
  const wanted = field && document.querySelector(`#press [data-field="${field}"]`);
  const place = wanted?.closest("[hidden]") ? null : wanted; // nobody sees what is said at a hidden field
  if (field && !place && field !== "photo") $("press-error").textContent = message;
  if (!place || field === "photo") return;
  place.classList.toggle("invalid", Boolean(message));
  const input = place.querySelector("input, select");
  let says = place.querySelector(".wrong");
  if (!says) {
    says = element("p", { class: "wrong", role: "alert", id: `wrong-${field}` });
    place.append(says);
    input?.setAttribute("aria-describedby", says.id);
  }
  says.textContent = message;
  input?.setAttribute("aria-invalid", String(Boolean(message)));
  for (let at = place.closest("details"); message && at; at = at.parentElement.closest("details")) at.open = true;
  if (message) (input ?? place).scrollIntoView({ block: "nearest" });
  if (message) input?.focus();
}

function noErrors() {
  for (const says of document.querySelectorAll(".wrong")) says.textContent = "";
  for (const each of document.querySelectorAll(".invalid")) each.classList.remove("invalid");
  for (const each of document.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
}

// ---- the fields

function field({ name, title, help, usual, kind: type, choices, least, most }) {
  const id = `option-${name}`;
  let input;
  if (type === "bool") {
    input = element("input", { type: "checkbox", id });
    const row = element("div", { "data-field": name }, element("label", { class: "switch", title: help }, input, ` ${title}`));
    return Object.assign(row, { option: name });
  }
  if (choices.length) {
    input = element("select", { id }, element("option", { value: "" }, "default"), ...choices.map((each) => element("option", {}, each)));
  } else {
    input = element("input", { type: "number", id, placeholder: usual || "default", step: type === "int" ? "1" : "any" });
    if (least !== null) input.min = least;
    if (most !== null) input.max = most;
  }
  return element("div", { "data-field": name }, element("label", { for: id }, title), input, element("p", { class: "help" }, help));
}

function fields(place, options) {
  $(place).replaceChildren(...options.map(field));
}

function entered(place, options) {
  const found = {};
  for (const { name, kind: type, choices } of options) {
    const input = $(`option-${name}`);
    if (!$(place).contains(input)) continue;
    if (type === "bool") { if (input.checked) found[name] = true; continue; }
    if (input.validity.badInput) throw Object.assign(new Error("this is not a number"), { field: name });
    if (input.value === "") continue;
    found[name] = choices.length || Number.isNaN(+input.value) ? input.value : +input.value;
  }
  return found;
}

function whole(id, name) {
  const value = $(id).value.trim();
  if (!/^\d+$/.test(value)) throw Object.assign(new Error("enter a whole number"), { field: name });
  return +value;
}

function chooseKind() {
  const now = kind();
  for (const each of document.querySelectorAll("[data-for]")) each.hidden = !each.dataset.for.split(" ").includes(now);
  const hide = (what) => document.querySelectorAll(what).forEach((each) => { each.hidden = true; });
  if (!about.classes.length && !about.captions) hide("[data-classes]");
  if (!about.captions) hide("[data-captions]");
  $("label-title").textContent = about.captions ? "Caption" : "Class";
  $("says").textContent = SAYS[now];
  $("count-title").textContent = COUNTS[now][0];
  $("count").max = about.most[COUNTS[now][1]];
  $("count").value = counts[now];
  const named = about.captions ? "in words" : "separated by commas";
  $("label-hint").textContent = now === "generate" ? `${named}; empty: none` : "empty: whatever fits the surroundings";
  noErrors();
}

// ---- jobs

let running = null; // {id, from}

function order() {
  const asked = {
    kind: kind(), label: $("label").value.trim(), negative: $("negative").value.trim(), start: $("start").value, end: $("end").value, aspect: $("aspect").value,
    count: whole("count", "count"), fast: $("fast").checked, settings: entered("settings", about.settings), seed: 0,
  };
  if (!["inpaint", "outpaint", "enrich"].includes(asked.kind)) return asked;
  if (!photo) throw Object.assign(new Error("no photograph is open; open one first"), { field: "photo" });
  return { ...asked, photo: photo.id, mask: marks.png(), pasting: entered("pasting", about.pasting) };
}

async function press() {
  noErrors();
  try {
    const asked = order();
    if (!$("lock").checked) $("seed").value = randomSeed();
    asked.seed = whole("seed", "seed");
    const from = asked.photo ? photo : null;
    $("draw").disabled = true; // at once, not when the server has answered
    const { job } = await ask("/jobs", { body: asked });
    running = { id: job, from, kind: asked.kind };
    keep();
    await watch();
  } catch (wrong) {
    $("draw").disabled = false;
    error(wrong.field ?? null, wrong.message);
  }
}

function busy(on) {
  $("draw").disabled = on;
  $("stop").hidden = $("progress").hidden = !on;
  $("on").hidden = true;
}

async function watch() {
  $("left").textContent = "";
  $("bar").value = 0;
  busy(true);
  let looking = false;
  try {
    const job = await follow(running.id, (at) => {
      $("left").textContent = told(at);
      $("bar").value = at.share;
      $("on").hidden = at.state !== "asking";
      if (at.look) { look(at.look); looking = true; }
    });
    if (job.state === "failed") error(job.error.field, job.error.message);
    if (job.state === "stopped") $("press-error").textContent = "Stopped; the unfinished picture was discarded.";
    if (job.state === "done") done(job.result);
    else if (looking) show(shown);
  } catch (wrong) {
    error(null, wrong.message);
    show(shown);
  } finally {
    running = null;
    busy(false);
    keep();
  }
}

function look(source) {
  $("welcome").hidden = $("stage").classList.contains("empty") && !$("stage").classList.remove("empty");
  $("welcome").hidden = true;
  $("holder").hidden = false;
  $("marks").hidden = $("before").hidden = $("divider").hidden = true;
  const small = ["generate", "interpolate"].includes(running?.kind);
  image($("photo"), source, small ? { width: about.image_size, height: about.image_size } : {});
}

function done(pictures) {
  const { from } = running;
  const made = pictures.map((picture) => ({ ...picture, from: from && { id: from.id, name: from.name, width: from.width, height: from.height } }));
  history = [...made, ...history].slice(0, MOST_HISTORY);
  show(made[0]);
}

// ---- wiring

whenGiven(take, $("stage"));
whenSent($("press"), press);
$("stop").addEventListener("click", () => running && ask(`/jobs/${running.id}`, { method: "DELETE" }).catch(() => {}));
$("on").addEventListener("click", () => running && ask(`/jobs/${running.id}/confirm`, { method: "POST" }));
$("undo").addEventListener("click", undo);
$("redo").addEventListener("click", () => marks.redo());
$("clear").addEventListener("click", () => marks.wipe());
$("compare").addEventListener("input", compare);
$("back").addEventListener("click", () => show(null));
$("go-on").addEventListener("click", () => {
  if (photo) earlier.push({ photo, shapes: marks.shapes });
  open(shown);
});
$("box").addEventListener("submit", (event) => {
  event.preventDefault();
  const [left, top, right, bottom] = ["left", "top", "right", "bottom"].map((name) => +$("box").elements[name].value);
  const says = right <= left || bottom <= top ? "right must be greater than left, and bottom greater than top"
    : left >= photo.width || top >= photo.height ? `the photograph has ${photo.width} × ${photo.height} pixels` : "";
  $("photo-error").textContent = says;
  if (!says) marks.box(left, top, Math.min(right, photo.width), Math.min(bottom, photo.height));
});
for (const each of document.querySelectorAll("[name=kind]")) each.addEventListener("change", () => { chooseKind(); keep(); });
$("count").addEventListener("input", () => { counts[kind()] = +$("count").value || 1; });
$("press").addEventListener("input", keep);
addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=radio], [type=range], [type=checkbox]), select") || !(event.ctrlKey || event.metaKey)) return;
  const key = event.key.toLowerCase();
  if (key === "z" && !event.shiftKey) { event.preventDefault(); undo(); }
  else if (key === "y" || key === "z") { event.preventDefault(); marks.redo(); }
});

// ---- start

async function begin() {
  about = await ask("/about");
  fields("settings", about.settings);
  fields("pasting", about.pasting);
  const blend = $("option-blend");
  if (blend) blend.value = "feather"; // the best choice for most people
  $("fast-says").textContent = about.fast;
  $("classes").replaceChildren(...about.classes.map((name) => element("option", { value: name })));
  [$("start").value, $("end").value] = [about.classes[0] ?? "", about.classes.at(-1) ?? ""];
  showSamples(about.samples, open);
  const before = kept();
  running = before.job ?? null; // saved along with whatever is opened below
  Object.assign(counts, before.counts);
  for (const [id, value] of Object.entries(before.fields ?? {})) {
    const input = $(id);
    if (input) input[input.type === "checkbox" ? "checked" : "value"] = value;
  }
  const radio = document.querySelector(`[name=kind][value="${before.kind}"]`);
  if (radio) radio.checked = true;
  chooseKind();
  history = (await Promise.all((before.history ?? []).map(alive))).filter(Boolean);
  photo = await alive(before.photo) ?? null;
  if (photo) open(photo, before.shapes);
  show(history.find((each) => each.id === before.shown?.id) ?? null);
  const wanted = new URLSearchParams(location.search).get("picture");
  if (wanted) { open(await ask(`/pictures/${encodeURIComponent(wanted)}/about`)); window.history.replaceState(null, "", "/"); }
  if (running) await watch();
}

begin().catch((wrong) => { $("press-error").textContent = wrong.message; });
