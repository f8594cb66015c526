// The page of one job: curves that grow, the picture that comes into focus, and the comparison.
"use strict";
(() => {
const viewer = $("#viewer");
const here = viewer.dataset.here;
const colour = (name) => {
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};
const state = () => $("#page")?.dataset.state;
const over = (name) => ["succeeded", "failed", "cancelled"].includes(name);
const asJson = { headers: { Accept: "application/json" } };

// --- curves
const known = { points: [], previews: [], started: null, pixels: null, budget: null, result: null, last: "" };
let curve = null;
function axis(label, side, tint) {
  const ink = colour("muted");
  return { scale: label, side, stroke: tint || ink, grid: { show: side !== 1, stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui", size: side === 2 ? 30 : 46, gap: 4 };
}
function wide(box) { return Math.max(240, box.clientWidth); }
const byteText = (n) => (n == null ? "" : n < 999.5 ? `${Math.round(n)} B` : n < 999500 ? `${(n / 1000).toPrecision(3)} KB` : `${(n / 1e6).toPrecision(3)} MB`);
const secondsText = (s) => (s < 100 ? `${+s.toPrecision(3)} s` : `${Math.round(s / 60)} min`);

function drawCurve(fresh = false) {
  const box = $("#curve");
  const points = known.points.filter((point) => point.psnr_db != null || point.bpp != null);
  if (points.length < 2) return;
  const began = known.started ?? points[0].at;
  const size = (point) => (point.bpp == null || !known.pixels ? null : (point.bpp * known.pixels) / 8);
  const data = [points.map((point) => point.at - began), points.map((point) => point.psnr_db), points.map(size), points.map(() => known.budget)];
  if (known.result && known.finished) {
    data[0].push(Math.max(known.finished - began, data[0].at(-1)));
    data[1].push(known.result.psnr_db);
    data[2].push(known.result.bytes);
    data[3].push(known.budget);
  }
  if (curve && !fresh) { curve.setData(data); say(box); return; }
  curve?.destroy();
  box.replaceChildren();
  const accent = colour("accent"), other = colour("codec-1");
  curve = new uPlot({
    width: wide(box), height: 210, cursor: { y: false }, legend: { show: false },
    scales: { x: { time: false }, dB: { range: (u, low, high) => [Math.floor(low - 0.5), Math.ceil(high + 0.5)] }, size: { range: (u, low, high) => [0, (high || 1) * 1.25] } },
    axes: [{ ...axis("x", 2), values: (u, ticks) => ticks.map(secondsText) }, { ...axis("dB", 3, accent), values: (u, ticks) => ticks.map((tick) => `${tick} dB`) }, { ...axis("size", 1, other), size: 58, values: (u, ticks) => ticks.map(byteText) }],
    series: [{}, { label: "PSNR", scale: "dB", stroke: accent, width: 2, spanGaps: true, points: { show: false } }, { label: "Size", scale: "size", stroke: other, width: 1.5, spanGaps: true, points: { show: false } }, { label: "Asked", scale: "size", stroke: colour("muted"), width: 1, dash: [5, 4], points: { show: false } }],
  }, data, box);
  box.setAttribute("role", "img");
  say(box);
}
function say(box) {
  const psnr = known.points.map((point) => point.psnr_db).filter((value) => value != null);
  if (psnr.length) box.setAttribute("aria-label", `PSNR from ${psnr[0].toFixed(1)} to ${psnr.at(-1).toFixed(1)} dB over ${psnr.length} measurements`);
  box.dataset.points = psnr.length;
  box.dataset.sizes = known.points.filter((point) => point.bpp != null).length;
  if (known.budget != null) box.dataset.budget = Math.round(known.budget);
}

// --- rate and distortion
const RATES = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10];
const CODECS = { JPEG: ["JPEG", "codec-1"], WEBP: ["WebP", "codec-2"], AVIF: ["AVIF", "codec-3"] };
let rd = null, measured = null;
const retryAfter = (answer) => Math.min(120, Math.max(1, Number(answer.headers.get("Retry-After")) || 10));
async function measure() {
  const box = $("#rd");
  if (measured || box.dataset.asked) { if (measured) drawRates(); return; }
  box.dataset.asked = "1";
  box.replaceChildren(Object.assign(document.createElement("p"), { className: "sub", textContent: "Coding this picture as JPEG, WebP and AVIF…" }));
  const answer = await fetch(`${here}/rivals`, asJson);
  const found = await answer.json();
  if (answer.status === 429 || answer.status === 503) {
    const seconds = retryAfter(answer);
    $("p", box).textContent = `Others are served just now; asked again in ${seconds} s.`;
    setTimeout(() => { delete box.dataset.asked; measure(); }, seconds * 1000);
    return;
  }
  if (!answer.ok) { $("p", box).textContent = `No comparison: ${found.detail}`; return; }
  measured = found;
  drawRates();
}
function drawRates() {
  const box = $("#rd"), own = measured.nif, names = Object.keys(CODECS).filter((name) => measured.rivals.some((each) => each.codec === name));
  const xs = [...new Set([...measured.rivals.map((each) => each.bpp), own.bpp])].sort((a, b) => a - b);
  const row = (list) => { const at = new Map(list.map((each) => [each.bpp, each.psnr_db])); return xs.map((x) => at.get(x) ?? null); };
  const data = [xs, ...names.map((name) => row(measured.rivals.filter((each) => each.codec === name))), row([own])];
  rd?.destroy();
  box.replaceChildren();
  const accent = colour("accent");
  rd = new uPlot({
    width: wide(box), height: 210, legend: { show: false }, cursor: { y: false },
    scales: { x: { time: false, distr: 3, range: (u, low, high) => [low * 0.85, high * 1.18] }, dB: { range: (u, low, high) => [Math.floor(low - 0.5), Math.ceil(high + 0.5)] } },
    axes: [{ ...axis("x", 2), splits: (u, i, low, high) => RATES.filter((rate) => rate >= low && rate <= high), filter: (u, ticks) => ticks, values: (u, ticks) => ticks.map((tick, i) => (i === ticks.length - 1 ? `${tick} bpp` : tick)) }, { ...axis("dB", 3), values: (u, ticks) => ticks.map((tick) => `${tick} dB`) }],
    series: [{}, ...names.map((name) => ({ label: CODECS[name][0], scale: "dB", stroke: colour(CODECS[name][1]), width: 1.6, spanGaps: true, points: { show: true, size: 5 } })), { label: "NIF", scale: "dB", stroke: accent, points: { show: true, size: 11, fill: accent, stroke: accent } }],
  }, data, box);
  const table = document.createElement("table");
  table.className = "rd-table";
  const line = (cells, tag = "td") => { const tr = document.createElement("tr"); for (const text of cells) { const cell = document.createElement(tag); if (text instanceof Node) cell.append(text); else cell.textContent = text; tr.append(cell); } table.append(tr); };
  const key = (name, kind) => { const span = document.createElement("span"); const dot = document.createElement("i"); dot.className = `k ${kind}`; span.append(dot, name); return span; };
  line(["In as many bytes", "Size", "PSNR", "MS-SSIM"], "th");
  line([key("NIF", "nif"), byteText(own.bytes), `${own.psnr_db.toFixed(2)} dB`, own.ms_ssim?.toFixed(4) ?? "–"]);
  for (const name of names) {
    const fits = measured.rivals.filter((each) => each.codec === name && !each.larger && each.bytes <= own.bytes);
    const best = fits.sort((a, b) => b.bytes - a.bytes)[0];
    if (best) line([key(CODECS[name][0], name.toLowerCase()), byteText(best.bytes), `${best.psnr_db.toFixed(2)} dB`, best.ms_ssim?.toFixed(4) ?? "–"]);
    else line([key(CODECS[name][0], name.toLowerCase()), "cannot be so small", "–", "–"]);
  }
  box.append(table);
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "PSNR over bits per pixel, and the codecs in as many bytes");
}

// --- what happens meanwhile
let asking = false, source = null, askedAt = 0, listenFrom = 0, pause = 0;
function take(found) {
  known.started = found.started ?? known.started;
  known.pixels = found.pixels;
  known.budget = found.budget;
  known.last = found.last || known.last;
  known.result = found.result;
  known.points.push(...found.points);
  known.previews.push(...found.previews);
  if (found.result) known.finished = (known.started ?? 0) + found.result.seconds;
  if (found.points.length || found.result) drawCurve();
  if (found.previews.length) showPreviews();
  if (found.state === "succeeded") { showResult(); measure(); }
  if (state() !== found.state) dispatchEvent(new Event("refresh"));
}
async function ask() {
  if (asking) return;
  asking = true;
  askedAt = Date.now();
  try {
    const answer = await fetch(`${here}/curve?after=${known.last}`, asJson);
    if (answer.status === 401) location.reload();
    if (answer.ok) take(await answer.json());
  } catch {
    // The next time may work.
  } finally {
    asking = false;
  }
}
// The service pushes what happens; every event only says that there is something to fetch, so that
// nothing is lost or shown twice however often the stream breaks. Nobody listens in a hidden tab.
// It is fetched at most once a second: every request counts against the key's minute.
let soon = 0;
function news(event) {
  if (event.type !== "job.progress" && event.type !== "job.preview") dispatchEvent(new Event("refresh"));
  if (!soon) soon = setTimeout(() => { soon = 0; ask(); }, Math.max(150, askedAt + 1000 - Date.now()));
}
// A browser mends a stream that breaks, but gives one up for good that is answered with an error.
// Then the page says so, asks for what it missed, and opens another one, later and later.
const FIRST_PAUSE = 1000, LONGEST_PAUSE = 60000;
function lost(gone) {
  if (gone !== source) return;
  viewer.dataset.stream = "lost";
  live.classList.add("lost");
  $("span", live).textContent = "Reconnecting";
  if (gone.readyState !== EventSource.CLOSED) return;
  source = null;
  pause = Math.min(LONGEST_PAUSE, pause ? pause * 2 : FIRST_PAUSE);
  listenFrom = Date.now() + pause * (0.75 + Math.random() / 2); // not everybody at once
  ask();
}
function connected() {
  pause = 0;
  listenFrom = 0;
  live.classList.remove("lost");
  $("span", live).textContent = live.getAttribute("aria-pressed") === "true" ? "Live" : "Held";
}
function listen() {
  const wanted = !document.hidden && live.getAttribute("aria-pressed") === "true" && !over(state());
  if (wanted && !source && Date.now() >= listenFrom) {
    source = new EventSource(`${here}/events${known.last ? `?after=${known.last}` : ""}`);
    for (const name of ["queued", "running", "progress", "preview", "requeued", "retried", "cancel_requested", "finish_requested", "succeeded", "failed", "cancelled", "deleted"]) source.addEventListener(`job.${name}`, news);
    source.addEventListener("end", () => { source?.close(); source = null; setTimeout(ask, 300); });
    source.onopen = () => { viewer.dataset.stream = "open"; connected(); };
    source.onerror = (event) => lost(event.target);
  } else if (!wanted && (source || viewer.dataset.stream)) {
    source?.close();
    source = null;
    delete viewer.dataset.stream;
    connected();
  }
}
setInterval(listen, 1000);
document.addEventListener("visibilitychange", () => { listen(); if (!document.hidden) ask(); });
document.addEventListener("htmx:after:swap", () => { if (over(state()) && !resultAsked) ask(); listen(); });

// --- the picture
const stage = $(".stage", viewer), canvas = $("canvas", stage), handle = $(".split", stage), said = $(".said", stage);
const view = { mode: "split", split: 0.5, scale: null, x: 0, y: 0, gain: 4, fit: 1 };
const pictures = { original: null, decoded: null, shown: null, difference: null };
let width = Number(viewer.dataset.width) || 0, height = Number(viewer.dataset.height) || 0;

function load(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error(url));
    image.src = url;
  });
}
function pixels(image) {
  const copy = document.createElement("canvas");
  copy.width = image.naturalWidth;
  copy.height = image.naturalHeight;
  copy.getContext("2d", { willReadFrequently: true }).drawImage(image, 0, 0);
  return copy;
}
async function showOriginal() {
  try {
    const answer = await fetch(`${here}/original`);
    if (answer.status === 429 || answer.status === 503) {
      said.textContent = "The original is fetched in a moment…";
      setTimeout(showOriginal, retryAfter(answer) * 1000);
      return;
    }
    if (!answer.ok) throw new Error(answer.statusText);
    const address = URL.createObjectURL(await answer.blob());
    const image = await load(address);
    pictures.original = pixels(image);
    URL.revokeObjectURL(address);
    if (said.textContent.startsWith("The original")) said.textContent = "";
    width = image.naturalWidth;
    height = image.naturalHeight;
    pictures.difference = null;
    draw();
  } catch {
    said.textContent = "The original cannot be shown.";
  }
}
let latest = 0;
async function showPreview(index) {
  const preview = known.previews[index];
  if (!preview) return;
  try {
    const image = await load(`${here}/previews/${preview.number}`);
    pictures.shown = pixels(image);
    pictures.difference = null;
    viewer.dataset.preview = preview.number;
    draw();
  } catch {
    // It may be gone already; the next one comes.
  }
}
function showPreviews() {
  const scrub = $(".scrub", viewer), range = $("input", scrub), count = known.previews.length;
  const follows = Number(range.value) >= latest || latest === 0;
  scrub.hidden = count < 2 && !pictures.decoded;
  range.max = String(count + (pictures.decoded ? 1 : 0));
  latest = Number(range.max);
  if (follows) { range.value = range.max; if (!pictures.decoded) showPreview(count - 1); }
  scrubbed(false);
}
function scrubbed(act = true) {
  const range = $(".scrub input", viewer), index = Number(range.value) - 1, preview = known.previews[index];
  const text = preview ? `${preview.iteration ?? "?"} of ${preview.iterations ?? "?"}${preview.psnr_db ? `, ${preview.psnr_db.toFixed(1)} dB` : ""}` : "the file";
  $("[data-scrub-said]", viewer).textContent = text;
  range.setAttribute("aria-valuetext", text);
  if (!act) return;
  if (preview) showPreview(index);
  else { pictures.shown = pictures.decoded; pictures.difference = null; draw(); }
}
let resultAsked = false;
async function showResult() {
  if (resultAsked) return;
  resultAsked = true;
  if (!pictures.shown) said.textContent = "Decoding the file…";
  try {
    pictures.decoded = pictures.shown = pixels(await load(`${here}/image`));
    pictures.difference = null;
    viewer.dataset.decoded = "1";
    if (known.previews.length) showPreviews();
    said.textContent = "";
  } catch {
    said.textContent = "The decoded picture cannot be shown just now.";
    resultAsked = false;
  }
  draw();
}

function difference() {
  if (pictures.difference?.gain === view.gain) return pictures.difference.canvas;
  const a = pictures.original, b = pictures.shown;
  const shrink = Math.min(1, Math.sqrt(16e6 / (a.width * a.height)));
  const made = document.createElement("canvas");
  made.width = Math.max(1, Math.round(a.width * shrink));
  made.height = Math.max(1, Math.round(a.height * shrink));
  const context = made.getContext("2d", { willReadFrequently: true });
  const read = (source) => { context.clearRect(0, 0, made.width, made.height); context.drawImage(source, 0, 0, made.width, made.height); return context.getImageData(0, 0, made.width, made.height); };
  const one = read(a), two = read(b);
  for (let i = 0; i < one.data.length; i += 4) {
    for (let c = 0; c < 3; c++) one.data[i + c] = Math.abs(one.data[i + c] - two.data[i + c]) * view.gain;
    one.data[i + 3] = 255;
  }
  context.putImageData(one, 0, 0);
  pictures.difference = { gain: view.gain, canvas: made };
  return made;
}

function place() {
  const box = stage.getBoundingClientRect();
  view.fit = width && height ? Math.min(box.width / width, box.height / height) : 1;
  if (view.scale === null) {
    view.x = (box.width - width * view.fit) / 2;
    view.y = (box.height - height * view.fit) / 2;
  }
  return box;
}
let due = 0;
function draw() { if (!due) due = requestAnimationFrame(paint); }
function paint() {
  due = 0;
  const box = place(), ratio = devicePixelRatio || 1, scale = view.scale ?? view.fit;
  canvas.width = Math.round(box.width * ratio);
  canvas.height = Math.round(box.height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.imageSmoothingQuality = "high";
  const put = (source, from = 0, to = box.width) => {
    if (!source) return;
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, box.height);
    context.clip();
    // Pixels stay squares when they are looked at from near; a small preview is smoothed.
    context.imageSmoothingEnabled = (source.width < width ? (scale * width) / source.width : scale) < 3;
    context.drawImage(source, view.x, view.y, width * scale, height * scale);
    context.restore();
  };
  const { original, shown } = pictures, at = view.split * box.width;
  const both = original && shown;
  const mode = both ? view.mode : original ? "original" : "decoded";
  if (mode === "split") { put(original, 0, at); put(shown, at, box.width); }
  else if (mode === "original") put(original);
  else if (mode === "decoded") put(shown);
  else put(difference());
  handle.hidden = mode !== "split";
  handle.style.left = `${at}px`;
  handle.setAttribute("aria-valuenow", Math.round(view.split * 100));
  $(".left", stage).hidden = mode !== "split" && mode !== "original";
  $(".right", stage).hidden = mode === "original" || !shown;
  $(".right", stage).textContent = mode === "difference" ? `difference × ${view.gain}` : pictures.shown === pictures.decoded && pictures.decoded ? "decoded" : "as learned so far";
  $(".gain", viewer).hidden = mode !== "difference";
  $("[data-scale]", viewer).textContent = width ? `${Math.round(scale * 100)} %` : "";
  stage.classList.toggle("zoomed", view.scale !== null);
  viewer.dataset.mode = mode;
  viewer.dataset.scale = scale.toFixed(3);
  if (!shown && original && !said.textContent.startsWith("Dec")) said.textContent = over(state()) ? "" : "The first preview comes with the first progress.";
  else if (shown && said.textContent.startsWith("The first")) said.textContent = "";
}

function zoom(factor, cx, cy) {
  const box = place(), before = view.scale ?? view.fit;
  const scale = Math.min(Math.max(32, view.fit * 2), Math.max(Math.min(1, view.fit) * 0.5, before * factor));
  const x = cx ?? box.width / 2, y = cy ?? box.height / 2;
  view.x = x - ((x - view.x) * scale) / before;
  view.y = y - ((y - view.y) * scale) / before;
  view.scale = scale;
  draw();
}
function shift(dx, dy) { place(); view.scale ??= view.fit; view.x += dx; view.y += dy; draw(); }
function split(to) { view.split = Math.min(1, Math.max(0, to)); draw(); }
function mode(name) {
  view.mode = name;
  for (const button of $$("button[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === name));
  draw();
}
const zooms = { in: () => zoom(1.6), out: () => zoom(1 / 1.6), fit: () => { view.scale = null; draw(); }, one: () => zoom(1 / (view.scale ?? view.fit)) };
document.addEventListener("click", (event) => {
  const chosen = event.target.closest("button[data-mode]"), asked = event.target.closest("[data-zoom]");
  if (chosen) mode(chosen.dataset.mode);
  if (asked) zooms[asked.dataset.zoom]();
});
$(".gain select", viewer).addEventListener("change", (event) => { view.gain = Number(event.target.value); draw(); });
$(".scrub input", viewer).addEventListener("input", () => scrubbed());
stage.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const far = event.shiftKey ? 0.1 : 0.02, step = 48;
  const act = {
    ArrowLeft: () => split(view.split - far), ArrowRight: () => split(view.split + far), Home: () => split(0), End: () => split(1),
    "+": zooms.in, "=": zooms.in, "-": zooms.out, 0: zooms.fit,
    w: () => shift(0, step), s: () => shift(0, -step), a: () => shift(step, 0), d: () => shift(-step, 0),
    1: () => mode("split"), 2: () => mode("original"), 3: () => mode("decoded"), 4: () => mode("difference"),
  }[event.key];
  if (!act) return;
  act();
  event.preventDefault();
  event.stopPropagation();
});

// Pointers: the handle moves the split, one finger or the mouse the picture, two fingers zoom.
const pointers = new Map();
let dragging = null, spread = 0;
stage.addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  dragging = event.target.closest(".split") ? "split" : "picture";
  stage.setPointerCapture(event.pointerId);
  spread = 0;
});
stage.addEventListener("pointermove", (event) => {
  const box = stage.getBoundingClientRect(), before = pointers.get(event.pointerId);
  if (before) {
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (pointers.size === 2) {
      const [[x1, y1], [x2, y2]] = [...pointers.values()], now = Math.hypot(x1 - x2, y1 - y2);
      if (spread) zoom(now / spread, (x1 + x2) / 2 - box.left, (y1 + y2) / 2 - box.top);
      spread = now;
    } else if (dragging === "split") split((event.clientX - box.left) / box.width);
    else if (event.pointerType === "mouse" || view.scale !== null) shift(event.clientX - before[0], event.clientY - before[1]);
  }
  const scale = view.scale ?? view.fit, x = Math.floor((event.clientX - box.left - view.x) / scale), y = Math.floor((event.clientY - box.top - view.y) / scale);
  const at = (source) => { if (!source) return ""; const px = Math.floor((x * source.width) / width), py = Math.floor((y * source.height) / height); return [...source.getContext("2d").getImageData(px, py, 1, 1).data.slice(0, 3)].join(" "); };
  const inside = x >= 0 && y >= 0 && x < width && y < height;
  $("[data-pixel]", viewer).textContent = inside && pictures.original ? `${x}, ${y}: ${at(pictures.original)}${pictures.shown ? ` → ${at(pictures.shown)}` : ""}` : "";
});
for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, (event) => { pointers.delete(event.pointerId); dragging = pointers.size ? dragging : null; });
stage.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && document.activeElement !== stage) return; // the page scrolls past
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
stage.addEventListener("dblclick", (event) => {
  const box = stage.getBoundingClientRect();
  if (view.scale === null) zoom(Math.max(2, 4 / view.fit), event.clientX - box.left, event.clientY - box.top);
  else zooms.fit();
});
new ResizeObserver(() => { draw(); if (curve) curve.setSize({ width: wide($("#curve")), height: 210 }); if (rd) rd.setSize({ width: wide($("#rd")), height: 210 }); }).observe(viewer.parentElement.parentElement);
addEventListener("theme", () => { drawCurve(true); if (measured) drawRates(); });

showOriginal();
ask().then(listen);
})();
