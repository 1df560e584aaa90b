// The Look inside page: a picture's tokens, and how one is unmasked.

import { $, address, ask, element, follow, randomSeed, showSamples, upload, whenGiven, whenSent } from "./common.js";

// From dark to light through the warm colors of the pages: 0..1 -> [r, g, b].
const SCALE = [[20, 18, 30], [88, 32, 70], [178, 62, 52], [229, 138, 91], [250, 226, 170]];
function color(value) {
  const at = Math.min(1, Math.max(0, value)) * (SCALE.length - 1);
  const low = Math.min(SCALE.length - 2, Math.floor(at));
  return SCALE[low].map((from, i) => from + (at - low) * (SCALE[low + 1][i] - from));
}

let about = null;
let found = null;
let colors = null; // uint8: blocks x tokens x 3
let film = null;
let playing = null;

const place = (name) => document.querySelector(`[data-view=${name}]`);

function cells(name, count, of) {
  const canvas = element("canvas", { width: count, height: count });
  const context = canvas.getContext("2d");
  const image = context.createImageData(count, count);
  for (let n = 0; n < count * count; n++) image.data.set([...of(n), 255], 4 * n);
  context.putImageData(image, 0, 0);
  place(name).replaceChildren(canvas);
}

function picture(name, source, alt) {
  place(name).replaceChildren(element("img", { src: source, alt, draggable: "false" }));
}

function block() {
  const layer = +$("block").value, tokens = found.grid ** 2;
  $("block-value").textContent = `${layer} of 0..${found.layers - 1}`;
  cells("colors", found.grid, (n) => colors.subarray(3 * (layer * tokens + n), 3 * (layer * tokens + n) + 3));
}

async function look(given) {
  $("wrong").textContent = "";
  $("status").textContent = "Looking …";
  try {
    found = await ask("/inside/look", { body: { picture: given.id } });
    colors = Uint8Array.from(atob(found.colors), (each) => each.charCodeAt(0));
    $("views").hidden = false;
    picture("seen", found.seen, "The picture's center square");
    picture("kept", found.kept, "The same, decoded from its bits");
    const count = found.grid ** 2;
    $("bytes").textContent = `${Math.ceil(count * found.bits_per_token / 8)} bytes: ${count} tokens of ${found.bits_per_token} bits`;
    $("block").max = found.layers - 1;
    $("block").value = Math.min(12, found.layers - 1);
    block();
    for (const name of ["open", "expected", "surprise"]) {
      if (name !== "open") $(name).hidden = found[name] === null;
      if (found[name]) cells(name, found.grid, (n) => color(found[name][n]));
    }
    $("status").textContent = `${found.name}: point at a token, or move with the arrow keys.`;
    history.replaceState(null, "", `?picture=${given.id}`);
    $("token").textContent = "";
  } catch (wrong) {
    $("status").textContent = "";
    $("wrong").textContent = wrong.message;
  }
}

async function take(file) {
  $("wrong").textContent = "";
  try {
    await look(await upload(file));
  } catch (wrong) { $("wrong").textContent = wrong.message; }
}

// ---- one token, in every view

let token = null;

function point(n) {
  token = n;
  const size = 100 / found.grid;
  for (const grid of $("views").querySelectorAll(".grid")) {
    grid.querySelector("i")?.remove();
    const box = element("i");
    Object.assign(box.style, { left: `${size * (n % found.grid)}%`, top: `${size * Math.floor(n / found.grid)}%`, width: `${size}%`, height: `${size}%` });
    grid.append(box);
  }
  const bits = [...found.bits[n].matchAll(/../g)].map(([byte]) => parseInt(byte, 16).toString(2).padStart(8, "0")).join("");
  const numbers = [["unsure", "open"], ["open", "expected"], ["surprising", "surprise"]].filter(([, name]) => found[name])
    .map(([text, name]) => `${text} ${found[name][n].toFixed(2)}`).join(" · ");
  $("token").textContent = `token ${n}, row ${Math.floor(n / found.grid)}, column ${n % found.grid} · ${numbers} · bits ${bits.slice(0, found.bits_per_token)}`;
}

for (const grid of document.querySelectorAll("#views .grid")) {
  grid.tabIndex = 0;
  grid.setAttribute("role", "img");
  grid.setAttribute("aria-label", "Tokens; arrow keys move from one to the next");
  grid.addEventListener("pointermove", (event) => {
    const box = grid.getBoundingClientRect();
    const at = (share) => Math.min(found.grid - 1, Math.max(0, Math.floor(share * found.grid)));
    if (found) point(at((event.clientY - box.top) / box.height) * found.grid + at((event.clientX - box.left) / box.width));
  });
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -found.grid, ArrowDown: found.grid }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = (token ?? 0) + (token === null ? 0 : step);
    if (next >= 0 && next < found.grid ** 2) point(next);
  });
}

// ---- unmasking

function frame() {
  const at = +$("at").value;
  $("frame").src = film.frames[at - 1];
  $("at-value").textContent = `${at} of ${film.frames.length}`;
  cells("when", film.grid, (n) => film.when[n] <= at ? color(film.when[n] / film.frames.length) : [128, 128, 128]);
}

function play(on) {
  clearInterval(playing);
  playing = null;
  $("play").setAttribute("aria-pressed", String(on));
  $("play").textContent = on ? "Pause" : "Play";
  if (!on) return;
  if (+$("at").value === film.frames.length) $("at").value = 1;
  frame();
  playing = setInterval(() => {
    if (+$("at").value >= film.frames.length) return play(false);
    $("at").value = +$("at").value + 1;
    frame();
  }, 350);
}

let running = null;

whenSent($("watch"), async () => {
  $("watch-error").textContent = "";
  const seed = $("seed").value === "" ? randomSeed() : +$("seed").value;
  try {
    const body = { label: $("label").value.trim(), steps: +$("steps").value, order: $("order").value, seed };
    running = (await ask("/inside/unmask", { body })).job;
    $("stop").hidden = false;
    $("film").hidden = false;
    play(false);
    const job = await follow(running, (at) => { if (at.look) $("frame").src = at.look; });
    if (job.state === "failed") throw new Error(job.error.message);
    if (job.state === "done") {
      film = job.result;
      $("at").max = film.frames.length;
      $("at").value = 1;
      play(true);
    }
  } catch (wrong) {
    $("watch-error").textContent = wrong.message;
    $("film").hidden = !film;
  } finally {
    running = null;
    $("stop").hidden = true;
  }
});
$("stop").addEventListener("click", () => running && ask(`/jobs/${running}`, { method: "DELETE" }).catch(() => {}));
$("play").addEventListener("click", () => film && play(!playing));
$("at").addEventListener("input", () => { if (film) { play(false); frame(); } });
$("block").addEventListener("input", () => { block(); if (token !== null) point(token); });

// ---- start

async function begin() {
  whenGiven(take);
  about = await ask("/about");
  showSamples(about.samples, look);
  $("classes").replaceChildren(...about.classes.map((name) => element("option", { value: name })));
  $("label-row").hidden = !about.classes.length;
  $("order").replaceChildren(...about.settings.find((each) => each.name === "order").choices.map((name) => element("option", {}, name)));
  for (const name of ["steps", "order"]) { // autoregressive models draw token by token
    $(name).disabled = about.in_turn;
    $(name).parentElement.hidden = about.in_turn;
  }
  $("steps").max = Math.min(64, about.grid ** 2);
  const wanted = new URLSearchParams(location.search).get("picture");
  if (wanted) await look({ id: wanted });
}

begin().catch((wrong) => { $("wrong").textContent = wrong.message; });
