// Shared by the studio's pages: requests, pictures, jobs.

export const $ = (id) => document.getElementById(id);

export async function ask(path, { method, body, file } = {}) {
  const json = body && { "Content-Type": "application/json" };
  const answer = await fetch(path, {
    method: method ?? (body || file ? "POST" : "GET"), headers: json ?? {}, body: file ?? (body && JSON.stringify(body)),
  });
  const found = await answer.json().catch(() => ({ error: { message: `the server answered ${answer.status}` } }));
  if (!answer.ok) throw Object.assign(new Error(found.error.message), { status: answer.status, field: found.error.param });
  return found;
}

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// A form that starts one job at a time: its button is disabled until the job is over.
export function whenSent(form, work) {
  const button = form.querySelector("button[type=submit], button:not([type])");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    try { await work(); } finally { button.disabled = false; }
  });
}

export const address = (picture) => `/pictures/${picture.id}`;

export function upload(file) {
  return ask(`/pictures?name=${encodeURIComponent(file.name || "pasted picture")}`, { file });
}

// Buttons with the sample photographs; take(picture) is called with the chosen one.
export function showSamples(samples, take) {
  $("samples").replaceChildren(...samples.map((sample) => {
    const image = element("img", { src: address(sample), alt: "" });
    const button = element("button", { type: "button", title: sample.name, "aria-label": `Sample ${sample.name}` }, image);
    button.addEventListener("click", () => take(sample));
    return button;
  }));
}

// Pictures that are opened, dropped anywhere on the page, or pasted.
export function whenGiven(take, over) {
  $("open").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => { if ($("file").files[0]) take($("file").files[0]); $("file").value = ""; });
  for (const kind of ["dragenter", "dragover"]) {
    addEventListener(kind, (event) => { event.preventDefault(); over?.classList.add("over"); });
  }
  for (const kind of ["dragleave", "drop"]) addEventListener(kind, () => over?.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (file) { event.preventDefault(); take(file); }
  });
}

export function duration(seconds) {
  if (seconds === null) return "";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} minutes` : `${(seconds / 3600).toFixed(1)} hours`;
}

// Follow a job until it is over: tell(job) at every change. Returns its last state.
export async function follow(id, tell) {
  let seen = -1;
  let failures = 0;
  for (;;) {
    let job;
    try {
      job = await ask(`/jobs/${id}?seen=${seen}`);
      failures = 0;
    } catch (error) {
      if (error.status || ++failures > 5) throw error; // retry if the server is briefly unreachable
      await new Promise((done) => setTimeout(done, 1000));
      continue;
    }
    seen = job.version;
    tell(job);
    if (["done", "failed", "stopped"].includes(job.state)) return job;
  }
}

export function told(job) {
  if (job.state === "waiting") return job.ahead ? `Waiting; ${job.ahead} ahead.` : "Waiting.";
  const left = duration(job.seconds_left);
  if (job.state === "asking") return `This takes about ${left} on this machine. Continue?`;
  return `${Math.round(100 * job.share)} %${left ? `, about ${left} left` : ""}`;
}

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];
