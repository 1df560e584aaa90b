// The form above the search page: which index or folder of pictures to search.

import { $, ask, follow, told, whenSent } from "./common.js";

let running = null;

whenSent($("opening"), async () => {
  $("opening-error").textContent = "";
  try {
    const body = { path: $("path").value.trim(), images: $("images").value.trim() };
    running = (await ask("/search/open", { body })).job;
    $("opening-progress").hidden = false;
    const job = await follow(running, (at) => {
      $("opening-left").textContent = told(at);
      $("opening-bar").value = at.share;
      $("opening-on").hidden = at.state !== "asking";
    });
    if (job.state === "failed") throw new Error(job.error.message);
    if (job.state === "done") location.assign("/search/");
  } catch (wrong) {
    $("opening-error").textContent = wrong.message;
  } finally {
    running = null;
    $("opening-progress").hidden = true;
  }
});
$("opening-stop").addEventListener("click", () => running && ask(`/jobs/${running}`, { method: "DELETE" }).catch(() => {}));
$("opening-on").addEventListener("click", () => running && ask(`/jobs/${running}/confirm`, { method: "POST" }));

const { path, open_paths: allowed, unreadable } = await ask("/search/opened");
if (path) $("path").value = path;
$("unreadable").hidden = !unreadable;
$("unreadable").textContent = `Files that cannot be read as pictures: ${unreadable.toLocaleString("en")}.`;
if (!allowed) {
  for (const each of $("opening").elements) each.disabled = true;
  $("opening-error").textContent = "Other machines can reach this page, so it does not open folders: start it with --password or --search.";
}
