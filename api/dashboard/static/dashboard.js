// What every page needs: the pulse that refreshes it, keys, dialogs, and dropping a picture.
"use strict";
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const home = document.body.dataset.home;
const csrf = document.body.dataset.csrf;

$(".side [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

// --- theme
$("#theme")?.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("nif-theme", root.dataset.theme);
  dispatchEvent(new Event("theme"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("theme")));

// --- the pulse: pages refresh themselves while somebody can see them and nobody is choosing
const live = $("#live");
let lastTick = Date.now();
const page = () => $("[data-live]");
const held = () =>
  document.hidden ||
  live?.getAttribute("aria-pressed") !== "true" ||
  $("dialog[open]") !== null ||
  $$("#page input[type=checkbox]:checked").length > 0 ||
  page()?.classList.contains("htmx-request");
function tick() {
  if (!page() || !window.htmx) return;
  lastTick = Date.now();
  htmx.trigger(page(), "tick");
}
setInterval(() => {
  const every = Number(page()?.dataset.every || 3000);
  if (!held() && Date.now() - lastTick >= every) tick();
}, 250);
document.addEventListener("visibilitychange", () => { if (!held()) tick(); });
addEventListener("refresh", () => { if (!held()) tick(); });
live?.addEventListener("click", () => {
  const on = live.getAttribute("aria-pressed") !== "true";
  live.setAttribute("aria-pressed", String(on));
  $("span", live).textContent = on ? "Live" : "Held";
  if (on) tick();
});
document.addEventListener("htmx:response:error", (event) => {
  const response = event.detail?.ctx?.response;
  if (response?.status === 401) location.reload();
  // The key's requests of this minute are used up: nothing is asked for until there are more.
  if (response?.status === 429) lastTick = Date.now() + 1000 * (Number(response.headers?.get("Retry-After")) || 10);
});

// --- lists: j and k move, Enter opens, x chooses
const rows = () => $$("[data-row]").filter((row) => row.offsetParent !== null);
let currentId = null;
function current() {
  const all = rows();
  const index = all.findIndex((row) => row.hasAttribute("data-current"));
  return [all, index];
}
function move(step) {
  const [all, index] = current();
  if (!all.length) return;
  const next = all[Math.min(all.length - 1, Math.max(0, index + step))];
  all[index]?.removeAttribute("data-current");
  next.setAttribute("data-current", "");
  currentId = next.id || null;
  next.scrollIntoView({ block: "nearest" });
  ($("[data-open]", next) ?? next).focus({ preventScroll: true });
}
document.addEventListener("htmx:after:swap", () => {
  const row = currentId && document.getElementById(currentId);
  if (row && !row.hasAttribute("data-current")) row.setAttribute("data-current", "");
  choose();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input:not([type=checkbox]), textarea, select, dialog")) {
    if (event.key === "Escape" && event.target.id === "search") event.target.blur();
    return;
  }
  const act = {
    "/": () => $("#search")?.select(),
    "?": () => $("#help")?.showModal(),
    j: () => move(1),
    k: () => move(-1),
    u: () => openUpload(),
    p: () => live?.click(),
    x: () => { const [all, i] = current(); const box = all[i] && $("input[type=checkbox]", all[i]); if (box) { box.checked = !box.checked; choose(); } },
    Enter: () => {
      if (event.target.closest("a, button, summary, [role=slider]")) return false;
      const [all, i] = current();
      const link = all[i] && $("[data-open]", all[i]);
      if (!link) return false;
      link.click();
    },
  }[event.key];
  if (act && act() !== false) event.preventDefault();
});

// --- choosing rows
function choose() {
  const chosen = $$("input[name=id]:checked");
  for (const button of $$("[data-needs-choice]")) button.disabled = !chosen.length;
  const said = $("[data-chosen]");
  if (said) { said.hidden = !chosen.length; said.textContent = `${chosen.length} chosen, the page is held`; }
}
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-choose-all]"))
    for (const box of $$("input[name=id]")) box.checked = event.target.checked;
  if (event.target.matches("[data-choose-all], input[name=id]")) choose();
});

// --- small things
document.addEventListener("click", async (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    await navigator.clipboard?.writeText($(`#${copy.dataset.copy}`).textContent);
    copy.setAttribute("data-copied", "");
    copy.title = "Copied";
  }
  if (event.target.closest("[data-help]")) $("#help").showModal();
  if (event.target.closest("[data-upload]")) openUpload();
  const close = event.target.closest("[data-close]");
  if (close) close.closest("dialog").close();
});

// --- submitting a picture: dropped anywhere, or chosen
const dialog = $("#upload");
const sizes = (n) => (n < 999.5 ? `${n} B` : n < 999500 ? `${(n / 1000).toPrecision(3)} KB` : `${(n / 1e6).toPrecision(3)} MB`);
let dropped = [];
let dimensions = null;
let asked = 0;

function openUpload() {
  if (!dialog || dialog.open) return;
  $("#upload-error").textContent = "";
  dialog.showModal();
}

async function show(files) {
  dropped = [...files];
  const file = dropped[0];
  const canvas = $("#upload-preview");
  dimensions = null;
  canvas.hidden = true;
  $("#estimate").textContent = "";
  if (!file) return;
  const more = dropped.length > 1 ? ` and ${dropped.length - 1} more` : "";
  $("#upload-facts").textContent = `${file.name}, ${sizes(file.size)}${more}`;
  try {
    const bitmap = await createImageBitmap(file);
    dimensions = [bitmap.width, bitmap.height];
    const scale = Math.min(1, 396 / bitmap.width, 200 / bitmap.height);
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    canvas.hidden = false;
    $("#upload-facts").textContent = `${file.name}, ${bitmap.width}×${bitmap.height}, ${sizes(file.size)}${more}`;
    bitmap.close();
    estimate();
  } catch {
    // A format that this browser cannot show; the service may well read it.
  }
}

async function estimate() {
  if (!dimensions) return;
  const turn = ++asked;
  const query = new URLSearchParams({ width: dimensions[0], height: dimensions[1], effort: $("#upload-effort").value, quality: $("#upload-quality").value });
  const answer = await fetch(`${home}/estimate?${query}`, { headers: { Accept: "application/json" } });
  if (!answer.ok || turn !== asked) return;
  const found = await answer.json();
  const seconds = found.seconds < 90 ? `${Math.round(found.seconds)} s` : `${Math.round(found.seconds / 60)} min`;
  $("#estimate").textContent = `About ${seconds} of work and ${sizes(found.bytes)}${found.calibrated ? "" : " (a first guess: no worker has measured itself yet)"}.`;
}

function send(file, form) {
  return new Promise((resolve, reject) => {
    const body = new FormData();
    for (const name of ["effort", "quality"]) body.append(name, form.elements[name].value);
    body.append("file", file, file.name);
    const request = new XMLHttpRequest();
    request.open("POST", `${home}/jobs`);
    request.setRequestHeader("X-CSRF-Token", csrf);
    request.setRequestHeader("Accept", "application/json");
    request.upload.onprogress = (event) => { if (event.lengthComputable) $("#upload-progress").value = event.loaded / event.total; };
    request.onload = () => {
      const answer = JSON.parse(request.responseText || "{}");
      if (request.status < 300) resolve(answer);
      else reject(new Error(answer.detail || `refused with status ${request.status}`));
    };
    request.onerror = () => reject(new Error("the service did not answer"));
    request.send(body);
  });
}

if (dialog) {
  const form = $("form", dialog);
  for (const name of ["effort", "quality"]) {
    const dial = $(`#upload-${name}`);
    dial.value = localStorage.getItem(`nif-${name}`) || dial.value;
    const say = () => { $(`#${name}-said`).textContent = dial.value; };
    dial.addEventListener("input", () => { say(); localStorage.setItem(`nif-${name}`, dial.value); estimate(); });
    say();
  }
  $("#upload-file").addEventListener("change", (event) => show(event.target.files));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const files = dropped.length ? dropped : [...$("#upload-file").files];
    if (!files.length) return;
    const button = $("button.primary", form);
    button.disabled = true;
    $("#upload-progress").hidden = false;
    $("#upload-error").textContent = "";
    try {
      let last;
      for (const file of files) last = await send(file, form);
      location.assign(files.length === 1 ? last.location : `${home}/jobs`);
    } catch (error) {
      $("#upload-error").textContent = `Not accepted: ${error.message}`;
    } finally {
      button.disabled = false;
      $("#upload-progress").hidden = true;
    }
  });

  const zone = $("#dropzone");
  const carriesFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  let depth = 0;
  addEventListener("dragenter", (event) => { if (carriesFiles(event)) { depth++; zone.hidden = dialog.open; event.preventDefault(); } });
  addEventListener("dragleave", (event) => { if (carriesFiles(event) && --depth <= 0) { depth = 0; zone.hidden = true; } });
  addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth = 0;
    zone.hidden = true;
    $("#upload-file").required = false;
    openUpload();
    show(event.dataTransfer.files);
  });
}
